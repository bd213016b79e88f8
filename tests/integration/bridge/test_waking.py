"""What becomes of a sleeping kernel: woken, in vain, or with another bridge; and of who waits."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import pytest
from torpor.bridge.client import BridgeRefused

from tests.integration.bridge.sleeper import (
    KERNEL_INFO,
    SESSION,
    Bed,
    receive,
    refused,
)
from tests.integration.bridge.standin import Standin
from tests.integration.bridge.test_hold import ask, overheard
from tests.integration.bridge.test_recovery import kill_bridge


async def test_a_wake_that_fails_changes_nothing(bed: Bed) -> None:
    dealer = bed.raw.dealer()
    dealer.send_multipart(bed.raw.request(code="1"))
    await bed.waits(1)
    missing = dict.fromkeys(bed.guest.fifos, "/nowhere/at/all")
    assert await refused(bed, "wake", **missing) == "fifo"
    silent = bed.restore()
    silent.pause()
    waking = asyncio.create_task(refused(bed, "wake", **silent.fifos))
    await asyncio.sleep(0)  # what is asked next is asked after that
    assert (await bed.status())["state"] == "asleep"
    assert await refused(bed, "wake", **silent.fifos) == "state"
    assert await refused(bed, "wake_failed", reason="x") == "state"
    assert (await ask(bed, bed.raw.dealer("control"), "kernel_info_request"))["content"]
    await bed.call("sleep")  # before its time is up
    assert await waking == "link"
    start = time.monotonic()
    assert await refused(bed, "wake", timeout_s=0.4, **silent.fifos) == "link"
    assert 0.3 < time.monotonic() - start < 9
    fresh = Standin(bed.folder / "fresh")
    bed.world.sandboxes.append(fresh)  # type: ignore[arg-type]
    assert await refused(bed, "wake", timeout_s=0.4, **fresh.fifos) == "link"
    garbled = Standin(bed.folder / "garbled")
    bed.world.sandboxes.append(garbled)  # type: ignore[arg-type]
    garbled._lock.acquire()
    os.write(garbled.guest.stream.write_fileno(), b"\0" * 10)
    assert await refused(bed, "wake", timeout_s=0.3, **garbled.fifos) == "link"
    garbled._lock.release()
    assert fresh.received == garbled.received == []
    status = await bed.status()
    assert (status["state"], status["waiting"], status["link"]) == ("asleep", 1, "closed")
    assert bed.told("link_failed") == bed.told("link_open")[1:] == []
    assert len(bed.told("intent")) == 1
    await bed.wake()
    assert bed.raw.read(await receive(dealer))["content"]["status"] == "ok"
    assert bed.guest.ran == ["1"]


async def test_waking_and_still_held(bed: Bed) -> None:
    """The daemon may speak with the guest before its clients can."""
    dealer = bed.raw.dealer()
    dealer.send_multipart(bed.raw.request(code="1"))
    await bed.waits(1)
    assert await bed.wake(held=True) == {"waiting": 1, "asked": True}
    status = await bed.status()
    assert (status["state"], status["link"], status["waiting"]) == ("held", "open", 1)
    answer = await bed.call("rpc", method="status", params={})
    assert answer["state"] == "ready"
    assert bed.guest.ran == []
    await bed.call("release")
    assert bed.raw.read(await receive(dealer))["content"]["status"] == "ok"
    assert bed.guest.ran == ["1"]


async def test_who_waited_in_vain_is_told(bed: Bed) -> None:
    listener = bed.raw.listener()
    await receive(listener)
    one, two = bed.raw.dealer(identity=b"one"), bed.raw.dealer(identity=b"two")
    control, stdin = bed.raw.dealer("control"), bed.raw.dealer("stdin")
    for number, (socket, kind) in enumerate(
        [
            (one, "execute_request"),
            (two, "complete_request"),
            (control, "debug_request"),
            (one, "comm_msg"),
            (stdin, "input_reply"),
        ]
    ):
        socket.send_multipart(bed.raw.request(kind))
        await bed.waits(number + 1)
    result = await bed.call("wake_failed", reason="the disk is gone")
    assert result == {"failed": 3, "dropped": 2}
    error = {"ename": "WakeFailed", "evalue": "the disk is gone", "traceback": ["the disk is gone"]}
    for socket, kind in ((one, "execute"), (two, "complete"), (control, "debug")):
        reply = bed.raw.read(await receive(socket))
        assert reply["msg_type"] == f"{kind}_reply"
        assert reply["parent_header"]["msg_type"] == f"{kind}_request"
        assert reply["header"]["session"] == SESSION
        assert reply["content"].items() >= {"status": "error", **error}.items()
    found = await overheard(bed, listener, 9)
    assert found == [
        *("busy debug_request", "idle debug_request"),
        *("busy execute_request", "error execute_request", "idle execute_request"),
        *("busy complete_request", "idle complete_request"),
        *("busy comm_msg", "idle comm_msg"),
    ]
    status = await bed.status()
    assert (status["state"], status["waiting"]) == ("asleep", 0)
    assert status["counters"]["dropped.client.wake_failed"] == 2
    assert len(bed.told("intent")) == 1
    one.send_multipart(bed.raw.request(code="again"))
    await bed.waits(1)
    assert len(bed.told("intent")) == 2
    await bed.wake()
    assert bed.raw.read(await receive(one))["content"]["status"] == "ok"
    assert bed.guest.ran == ["again"]


async def test_errors_make_room_for_who_did_not_fit(bed: Bed) -> None:
    dealer = bed.raw.dealer()

    def send() -> None:
        for number in range(100):
            dealer.send_multipart(bed.raw.request(code=f"{number}.".ljust(1 << 20, "x")))

    sending = asyncio.create_task(asyncio.to_thread(send))
    await bed.waits(64)
    assert (await bed.call("wake_failed", reason="x"))["failed"] == 64
    await sending
    await bed.waits(36)
    await bed.until(lambda: len(bed.told("intent")) == 2)
    for number in range(64):
        assert bed.raw.read(await receive(dealer))["content"]["ename"] == "WakeFailed", number


async def reopened(bed: Bed, **changes: Any) -> None:
    """Kill the bridge; have the next one hold the kernel, asleep."""
    await kill_bridge(bed.world)
    await bed.aclose()
    bed.events.clear()
    await bed.world.connect()
    bed.listen()
    opened = await bed.call("open", **{**bed.request, "resume": True, "asleep": True, **changes})
    assert opened["ports"] == bed.raw.ports


async def test_a_killed_bridge_leaves_a_kernel_that_sleeps_on(bed: Bed) -> None:
    del bed.request["kernel_id"]
    listener, dealer = bed.raw.listener(), bed.raw.dealer(identity=b"me")
    assert await overheard(bed, listener, 1) == ["welcome"]  # so that the next bridge expects it
    await ask(bed, dealer, "kernel_info_request")
    dealer.send_multipart(bed.raw.request(code="lost"))
    await bed.waits(1)
    await reopened(bed)
    status = await bed.status()
    assert (status["state"], status["waiting"], status["link"]) == ("asleep", 0, "closed")
    assert (status["guest"], status["execution_state"]) == ("ready", "idle")
    reply = await ask(bed, dealer, "kernel_info_request")
    assert (reply["content"], reply["header"]["session"]) == (KERNEL_INFO, SESSION)
    reply = await ask(bed, dealer, "comm_info_request", target_name="t")
    assert reply["content"]["comms"] == {"c1": {"target_name": "t"}}
    found: list[str] = []
    while "idle comm_info_request" not in found:
        found += await overheard(bed, listener, 1)
    assert found.count("busy comm_info_request") == 1
    dealer.send_multipart(bed.raw.request(code="kept"))
    await bed.waits(1)
    assert len(bed.told("intent")) == 1
    assert await bed.wake() == {"waiting": 1, "asked": True}
    assert bed.raw.read(await receive(dealer))["content"]["status"] == "ok"
    assert bed.guest.ran == ["kept"]
    await bed.fall_asleep()  # and so on
    await reopened(bed)
    await bed.wake()
    assert (await ask(bed, dealer, "execute_request", code="2"))["content"]["status"] == "ok"
    assert bed.guest.ran == ["kept", "2"]


async def test_memory_in_place_of_a_lost_record(bed: Bed) -> None:
    """After a reboot: the folder for the record is empty, but the daemon has what ``hold`` gave."""
    del bed.request["kernel_id"]
    await bed.wake()
    memory = (await bed.hold())["memory"]
    bed.checkpoint = bed.guest.checkpoint()
    await bed.call("sleep")
    bed.guest.close()
    await kill_bridge(bed.world)
    for path in (bed.world.paths.runtime / "bridge").iterdir():
        path.unlink()
    await bed.aclose()
    await bed.world.connect()
    bed.listen()
    await bed.call("open", **bed.request, resume=True, asleep=True, memory=memory)
    dealer = bed.raw.dealer()
    assert (await ask(bed, dealer, "kernel_info_request"))["content"] == KERNEL_INFO
    assert (await ask(bed, dealer, "comm_info_request"))["header"]["session"] == SESSION
    dealer.send_multipart(bed.raw.request(code="1"))
    await bed.waits(1)
    await bed.wake()
    assert bed.raw.read(await receive(dealer))["content"]["status"] == "ok"
    assert bed.guest.ran == ["1"]


async def test_without_any_record_looking_is_intent(bed: Bed) -> None:
    del bed.request["kernel_id"]
    await kill_bridge(bed.world)
    for path in (bed.world.paths.runtime / "bridge").iterdir():
        path.write_bytes(b"broken")
    await bed.aclose()
    bed.events.clear()
    await bed.world.connect()
    bed.listen()
    await bed.call("open", **bed.request, resume=True, asleep=True)
    dealer = bed.raw.dealer()
    dealer.send_multipart(bed.raw.request("kernel_info_request"))
    await bed.waits(1)
    assert bed.told("intent")[0]["msg_type"] == "kernel_info_request"
    fresh = Standin(bed.folder / "fresh")
    bed.world.sandboxes.append(fresh)  # type: ignore[arg-type]
    start = time.monotonic()
    assert await refused(bed, "wake", **fresh.fifos) == "link"  # it says so itself: no time-out
    assert time.monotonic() - start < 5
    await bed.call("wake_failed", reason="x")
    assert bed.raw.read(await receive(dealer))["content"]["ename"] == "WakeFailed"
    dealer.send_multipart(bed.raw.request("kernel_info_request"))
    await bed.waits(1)
    await bed.wake()
    assert bed.raw.read(await receive(dealer))["content"] == KERNEL_INFO


@pytest.mark.parametrize("changes", [{"resume": False}, {"memory": 7}, {"asleep": False}])
async def test_opening_asleep_wants_sense(bed: Bed, changes: dict[str, Any]) -> None:
    request = {**bed.request, "resume": True, "asleep": True, **changes, "kernel_id": "k2"}
    with pytest.raises(BridgeRefused) as caught:
        await bed.world.bridge.call("open", **request)
    assert caught.value.reason == "bad_request"


async def test_a_sandbox_given_up_asleep_leaves_messages_for_the_next(bed: Bed) -> None:
    dealer = bed.raw.dealer()
    dealer.send_multipart(bed.raw.request(code="1"))
    await bed.waits(1)
    await bed.call("unlink")
    status = await bed.status()
    assert (status["state"], status["waiting"], status["link"]) == ("awake", 1, "closed")
    second = Standin(bed.folder / "second")
    bed.world.sandboxes.append(second)  # type: ignore[arg-type]
    await bed.call("relink", **second.fifos)
    await receive(dealer)
    assert len(second.received) == 1


async def test_calls_to_a_guest_that_sleeps(bed: Bed) -> None:
    assert await refused(bed, "rpc", method="ping", params={}) == "link"
