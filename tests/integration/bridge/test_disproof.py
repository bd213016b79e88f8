"""A woken kernel that does not show that it works: who asked is told, and nothing is passed twice."""

from __future__ import annotations

import asyncio
import json
import os
import time
from typing import Any

import pytest
from torpor.errors import BackendUnavailable
from torpor.link import Channel

from tests.integration.bridge.proving import (
    LONG_S,
    MIB,
    MUTE,
    cell,
    disproved,
    fresh,
    full,
    nothing_more,
    open_still,
    refusal,
    release,
    reply_of,
    waiting_cell,
    wakes_anew,
    woken,
)
from tests.integration.bridge.sleeper import SESSION, Bed, receive, refused
from tests.integration.bridge.test_hold import ask, idle, overheard
from tests.integration.bridge.test_recovery import kill_bridge

# -- when it does not prove it ------------------------------------------------------------------


async def test_who_was_passed_on_in_vain_is_told(bed: Bed) -> None:
    listener = bed.raw.listener()
    assert await overheard(bed, listener, 1) == ["welcome"]
    one, two = bed.raw.dealer(identity=b"one"), bed.raw.dealer(identity=b"two")
    requests = [bed.raw.request(kind) for kind in ("execute_request", "inspect_request")]
    requests += [bed.raw.request("comm_msg"), *(cell(bed, code)[0] for code in ("2", "3"))]
    for number, (socket, request) in enumerate(
        zip((one, two, one, two), requests[:4], strict=True)
    ):
        socket.send_multipart(request)
        await bed.waits(number + 1)
    kinds = [json.loads(request[2])["msg_type"] for request in requests]
    await woken(bed, kinds)
    start = time.monotonic()
    assert "0.3 s" in str(await refusal(await release(bed, 0.3)))
    assert 0.2 < time.monotonic() - start < 9  # 10 s if nothing is said
    status = await bed.status()
    assert (status["state"], status["waiting"], status["link"]) == ("awake", 0, "open")
    one.send_multipart(requests[4])  # nobody has decided yet
    await bed.until(lambda: bed.guest.heard == ["comm_info_request", *kinds])
    await nothing_more(one, two, listener)
    result = await bed.call("wake_failed", reason="it is ill", memory=bed.memory)
    assert result == {"failed": 4, "dropped": 1}
    bed.guest.close()
    idents = [json.loads(request[2])["msg_id"] for request in requests]
    for socket, expected in ((one, (0, 4)), (two, (1, 3))):
        for number in expected:
            reply = bed.raw.read(await receive(socket))
            assert reply["msg_type"] == kinds[number].replace("request", "reply")
            assert reply["parent_header"]["msg_id"] == idents[number]
            assert reply["header"]["session"] == SESSION
            error = {"status": "error", "ename": "WakeFailed", "evalue": "it is ill"}
            assert reply["content"].items() >= error.items()
    assert await overheard(bed, listener, 13) == [
        *("busy execute_request", "error execute_request", "idle execute_request"),
        *("busy inspect_request", "idle inspect_request"),
        *("busy comm_msg", "idle comm_msg"),
        *("busy execute_request", "error execute_request", "idle execute_request") * 2,
    ]
    await nothing_more(one, two, listener)
    status = await bed.status()
    names = ("state", "waiting", "link", "guest", "execution_state", "busy_reason")
    assert [status[name] for name in names] == ["asleep", 0, "closed", "ready", "idle", None]
    assert status["counters"]["dropped.client.wake_failed"] == 1
    assert len(bed.told("intent")) == 1
    # it may do better the next time, and is asked only what comes then
    header = await waiting_cell(bed, one, "again")
    await bed.until(lambda: len(bed.told("intent")) == 2)
    assert await woken(bed, ()) == {"waiting": 1, "asked": True}
    assert await (await release(bed)) == {}
    assert reply_of(bed, await receive(one)) == (header["msg_id"], "ok", "")
    assert bed.guest.heard == ["comm_info_request", "execute_request"]
    assert bed.guest.ran == ["again"]
    await nothing_more(one, two)


async def test_who_waits_behind_what_was_passed_is_told_in_his_turn(bed: Bed) -> None:
    """A kernel that reads nothing: only so much fits into the link."""
    dealer = bed.raw.dealer()
    headers = [await waiting_cell(bed, dealer, f"{number}".ljust(MIB, "x")) for number in range(20)]
    await woken(bed)
    bed.guest.pause()
    answer = await release(bed, 0.4)

    async def some() -> bool:
        return 0 < (await bed.status())["waiting"] < 20

    await bed.until(some)
    await refusal(answer)
    assert await bed.call("wake_failed", reason="x", memory=bed.memory) == {
        "failed": 20,
        "dropped": 0,
    }
    for header in headers:
        assert reply_of(bed, await receive(dealer)) == (header["msg_id"], "error", "WakeFailed")
    await nothing_more(dealer)
    await wakes_anew(bed, dealer)


@pytest.mark.parametrize("how", ["broke", "exited"])
async def test_an_end_needs_no_time(bed: Bed, how: str) -> None:
    dealer = bed.raw.dealer()
    header = await waiting_cell(bed, dealer)
    await woken(bed)
    answer = await release(bed)
    await bed.until(lambda: "execute_request" in bed.guest.heard)
    await open_still(bed, answer)
    start = time.monotonic()
    if how == "broke":
        os.write(bed.guest.guest.stream.write_fileno(), b"garbage" * 100)
    else:
        bed.guest.event(event="exited", generation=1, exit_code=-9, stderr_tail="")
    said = str(await refusal(answer))
    assert time.monotonic() - start < LONG_S / 2
    assert ("has died" in said) == (how == "exited")
    assert (await bed.status())["state"] == "awake"
    assert await bed.call("wake_failed", reason="x", memory=bed.memory) == {
        "failed": 1,
        "dropped": 0,
    }
    assert reply_of(bed, await receive(dealer)) == (header["msg_id"], "error", "WakeFailed")
    await nothing_more(dealer)
    await wakes_anew(bed, dealer)


@pytest.mark.parametrize("how", ["silent", "exited"])
async def test_what_comes_too_late_changes_nothing(bed: Bed, how: str) -> None:
    """The kernel is given up: that it began after all is no answer to who asked."""
    dealer, listener = bed.raw.dealer(), bed.raw.listener()
    assert await overheard(bed, listener, 1) == ["welcome"]
    header = await waiting_cell(bed, dealer)
    await woken(bed)
    answer = await release(bed, 0.3 if how == "silent" else LONG_S)
    if how == "exited":
        await bed.until(lambda: "execute_request" in bed.guest.heard)
        bed.guest.event(event="exited", generation=1, exit_code=-9, stderr_tail="")
    await refusal(answer)
    bed.guest.be("busy", header)
    assert await overheard(bed, listener, 1) == ["busy execute_request"]
    result = await bed.call("wake_failed", reason="x", memory=bed.memory)
    assert result == {"failed": 1, "dropped": 0}
    assert reply_of(bed, await receive(dealer)) == (header["msg_id"], "error", "WakeFailed")


async def test_who_was_answered_too_late_is_not_answered_twice(bed: Bed) -> None:
    dealer = bed.raw.dealer(identity=b"me")
    headers = [await waiting_cell(bed, dealer, code) for code in ("1", "2")]
    await woken(bed)
    await refusal(await release(bed, 0.2))
    bed.guest.be("busy", headers[0])
    bed.guest.tell(Channel.SHELL, [b"me"], "execute_reply", headers[0], status="ok")
    assert reply_of(bed, await receive(dealer)) == (headers[0]["msg_id"], "ok", "")
    result = await bed.call("wake_failed", reason="x", memory=bed.memory)
    assert result == {"failed": 1, "dropped": 0}
    assert reply_of(bed, await receive(dealer)) == (headers[1]["msg_id"], "error", "WakeFailed")
    await nothing_more(dealer)


async def test_who_was_passed_on_in_vain_on_control_is_told(bed: Bed) -> None:
    await waiting_cell(bed, bed.raw.dealer())
    socket, request = bed.raw.dealer("control"), bed.raw.request("debug_request")
    socket.send_multipart(request)
    await bed.waits(2)
    await woken(bed, (*MUTE, "debug_request"))
    await refusal(await release(bed, 0.2))
    result = await bed.call("wake_failed", reason="x", memory=bed.memory)
    assert result == {"failed": 2, "dropped": 0}
    ident = json.loads(request[2])["msg_id"]
    assert reply_of(bed, await receive(socket)) == (ident, "error", "WakeFailed")


async def test_more_than_can_be_kept_waits_for_the_proof(bed: Bed) -> None:
    dealer, control = bed.raw.dealer(), bed.raw.dealer("control")
    first = await waiting_cell(bed, dealer, "first")
    await woken(bed)
    answer = await release(bed)
    await bed.until(lambda: bed.guest.heard == ["comm_info_request", "execute_request"])
    count = 80

    def send() -> None:
        for number in range(count):
            dealer.send_multipart(bed.raw.request(code=f"{number}".ljust(MIB, "x")))

    sending = asyncio.create_task(asyncio.to_thread(send))
    kept = await full(bed)
    assert 64 <= kept < count
    # what needs no proof goes on
    assert (await ask(bed, control, "kernel_info_request"))["msg_type"] == "kernel_info_reply"
    assert len(bed.guest.heard) == kept + 1
    await open_still(bed, answer)
    bed.guest.mute.clear()
    bed.guest.be("busy", first)
    assert await answer == {}
    await sending
    await bed.until(lambda: len(bed.guest.heard) == count + 3, 20)
    left = count + 2 - kept
    for _ in range(left):
        assert bed.raw.read(await receive(dealer))["content"]["status"] == "ok"
    ran = [int(code.rstrip("x")) for code in bed.guest.ran]
    assert ran == list(range(count - left, count))
    assert (await bed.status())["waiting"] == 0


async def test_what_is_too_much_to_keep_is_answered_when_the_proof_fails(bed: Bed) -> None:
    dealer = bed.raw.dealer()
    await waiting_cell(bed, dealer)
    await woken(bed)
    answer = await release(bed, 3.0)
    count = 70

    def send() -> None:
        for number in range(count):
            dealer.send_multipart(bed.raw.request(code=f"{number}".ljust(MIB, "x")))

    sending = asyncio.create_task(asyncio.to_thread(send))
    await full(bed)
    await refusal(answer)
    failed = (await bed.call("wake_failed", reason="x", memory=bed.memory))["failed"]
    await sending
    await bed.waits(count + 1 - failed)  # what the clients' sockets held is for the next attempt
    for _ in range(failed):
        assert bed.raw.read(await receive(dealer))["content"]["ename"] == "WakeFailed"
    bed.guest.close()
    await woken(bed, ())
    await (await release(bed))
    for _ in range(count + 1 - failed):
        assert bed.raw.read(await receive(dealer))["content"]["status"] == "ok"
    assert [int(code.rstrip("x")) for code in bed.guest.ran] == list(range(failed - 1, count))


# -- who decides -------------------------------------------------------------------------------


async def test_plain_release_forgets_what_was_kept(bed: Bed) -> None:
    await disproved(bed)
    assert await bed.call("release") == {}
    assert await bed.call("wake_failed", reason="x", memory=bed.memory) == {
        "failed": 0,
        "dropped": 0,
    }
    assert (await bed.status())["state"] == "asleep"


async def test_plain_release_leaves_a_proof_that_is_awaited(bed: Bed) -> None:
    """A daemon that comes after the one that has asked for it may say so."""
    header = await waiting_cell(bed, bed.raw.dealer())
    await woken(bed)
    answer = await release(bed)
    assert await bed.call("release") == {}
    await open_still(bed, answer)
    bed.guest.be("busy", header)
    assert await answer == {}


async def test_plain_release_lets_flow_what_was_too_much(bed: Bed) -> None:
    dealer = bed.raw.dealer()
    await waiting_cell(bed, dealer, "first")
    await woken(bed)
    answer = await release(bed, 3.0)

    def send() -> None:
        for number in range(70):
            dealer.send_multipart(bed.raw.request(code=f"{number}".ljust(MIB, "x")))

    sending = asyncio.create_task(asyncio.to_thread(send))
    await full(bed)
    await refusal(answer)
    await bed.call("release")
    await sending
    await bed.until(lambda: len(bed.guest.heard) == 72, 20)
    assert (await bed.status())["waiting"] == 0


async def test_when_nobody_decides_a_kernel_that_works_goes_on(bed: Bed) -> None:
    """The daemon that has asked for the proof is no more, and the next one finds the kernel awake."""
    dealer = bed.raw.dealer()
    await disproved(bed)
    bed.guest.mute.clear()
    for number in range(80):  # more than can be kept
        code = f"{number}".ljust(MIB, "x")
        assert (await ask(bed, dealer, "execute_request", code=code))["content"]["status"] == "ok"


@pytest.mark.parametrize("when", ["proving", "disproved"])
@pytest.mark.parametrize("op", ["unlink", "relink", "sleep", "close"])
async def test_who_is_given_up_is_told(bed: Bed, op: str, when: str) -> None:
    """And whatever comes next does not get what was passed before."""
    dealer = bed.raw.dealer(identity=b"me")
    headers = [await waiting_cell(bed, dealer, code) for code in ("1", "2")]
    await woken(bed)
    answer = await release(bed, LONG_S if when == "proving" else 0.2)
    await bed.until(lambda: bed.guest.heard.count("execute_request") == 2)
    if when == "disproved":
        await refusal(answer)
    second = fresh(bed, "second")
    of: dict[str, dict[str, Any]] = {"relink": second.fifos, "sleep": {"memory": bed.memory}}
    await bed.call(op, **of.get(op, {}))
    if when == "proving":
        await refusal(answer)
    bed.guest.close()
    for header in headers:
        assert reply_of(bed, await receive(dealer)) == (header["msg_id"], "error", "WakeFailed")
    await nothing_more(dealer)
    if op == "close":
        return
    status = await bed.status()
    assert (status["state"], status["waiting"]) == ("asleep" if op == "sleep" else "awake", 0)
    if op == "sleep":
        again = await waiting_cell(bed, dealer, "again")
        await woken(bed, ())
        await (await release(bed))
        assert reply_of(bed, await receive(dealer)) == (again["msg_id"], "ok", "")
        assert bed.guest.ran == ["again"]
        return
    if op == "unlink":
        await bed.call("relink", **second.fifos)
    request, again = cell(bed, "again")
    dealer.send_multipart(request)
    await receive(dealer)  # as it was sent: this guest gives back what it gets
    assert [json.loads(bytes(each.parts[3]))["msg_id"] for each in second.received] == [
        again["msg_id"]
    ]


async def test_what_waits_is_kept_when_what_was_passed_is_refused(bed: Bed) -> None:
    """``sleep`` is no answer to who has not been passed on."""
    dealer = bed.raw.dealer()
    headers = [await waiting_cell(bed, dealer, f"{number}".ljust(MIB, "x")) for number in range(20)]
    await woken(bed)
    bed.guest.pause()
    await refusal(await release(bed, 0.3))
    kept = (await bed.call("sleep", memory=bed.memory))["waiting"]
    assert 0 < kept < 20
    await bed.until(lambda: len(bed.told("intent")) == 2)
    bed.guest.close()
    for header in headers[: 20 - kept]:
        assert reply_of(bed, await receive(dealer)) == (header["msg_id"], "error", "WakeFailed")
    await woken(bed, ())
    await (await release(bed))
    for header in headers[20 - kept :]:
        assert reply_of(bed, await receive(dealer)) == (header["msg_id"], "ok", "")
    assert [int(code.rstrip("x")) for code in bed.guest.ran] == list(range(20 - kept, 20))


async def test_a_bridge_that_dies_passes_nothing_twice(bed: Bed) -> None:
    """The next one has the kernel awake, and what that was passed is its own affair."""
    del bed.request["kernel_id"]
    dealer = bed.raw.dealer(identity=b"me")
    header = await waiting_cell(bed, dealer)
    await woken(bed)
    answer = await release(bed)
    await bed.until(lambda: "execute_request" in bed.guest.heard)
    await kill_bridge(bed.world)
    with pytest.raises(BackendUnavailable):
        await answer
    await bed.aclose()
    await bed.world.connect()
    bed.listen()
    await bed.call("open", **bed.request, **bed.guest.fifos, resume=True)
    await ask(bed, dealer, "kernel_info_request")  # it is connected again: no reply waits long
    bed.guest.be("busy", header)
    bed.guest.tell(Channel.SHELL, [b"me"], "execute_reply", header, status="ok")
    assert reply_of(bed, await receive(dealer)) == (header["msg_id"], "ok", "")
    bed.guest.mute.clear()
    assert (await ask(bed, dealer, "execute_request", code="2"))["content"]["status"] == "ok"
    assert bed.guest.heard == [
        *("comm_info_request", "execute_request"),
        *("kernel_info_request", "execute_request"),
    ]
    assert bed.guest.ran == ["2"]
    await nothing_more(dealer)


async def test_only_what_was_just_woken_can_prove_anything(bed: Bed) -> None:
    assert await refused(bed, "release", prove_s=1.0) == "state"  # asleep
    dealer = bed.raw.dealer()
    header = await waiting_cell(bed, dealer)
    await woken(bed)
    for prove_s in (0, -1, 1e9, "1", True):
        assert await refused(bed, "release", prove_s=prove_s) == "bad_request"
    assert (await bed.status())["state"] == "held"
    assert bed.guest.heard == ["comm_info_request"]
    answer = await release(bed)
    await bed.until(lambda: "execute_request" in bed.guest.heard)
    assert await refused(bed, "release", prove_s=1.0) == "state"  # it is released
    await open_still(bed, answer)
    bed.guest.be("busy", header)
    bed.guest.be("idle", header)
    await answer
    assert await refused(bed, "release", prove_s=1.0) == "state"  # awake
    await bed.until(lambda: idle(bed))
    await bed.hold()
    assert await refused(bed, "release", prove_s=1.0) == "state"  # held, and not restored
    assert (await bed.status())["state"] == "held"
    bed.guest.pause()
    await bed.call("release")
    holding = asyncio.create_task(bed.hold())
    await asyncio.sleep(0.1)
    assert await refused(bed, "release", prove_s=1.0) == "state"  # it is just being held
    bed.guest.go_on()
    await holding
