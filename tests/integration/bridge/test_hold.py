"""Holding a kernel: when it is refused, what that leaves unchanged, and what a held kernel's clients see."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import zmq
from torpor.bridge.client import BridgeRefused
from torpor.link import Channel

from tests.integration.bridge.echo_guest import output
from tests.integration.bridge.harness import World
from tests.integration.bridge.sleeper import KERNEL_INFO, SESSION, TOPIC, Bed, bed_in, receive
from tests.integration.bridge.test_recovery import kill_bridge


@pytest_asyncio.fixture
async def bed(world: World, tmp_path: Path) -> AsyncIterator[Bed]:
    async with bed_in(world, tmp_path) as found:
        yield found


async def refusal(bed: Bed, timeout_s: float = 5.0, code: str = "busy") -> str:
    """Give why ``hold`` was refused; nothing has changed then."""
    with pytest.raises(BridgeRefused) as caught:
        await bed.hold(timeout_s)
    assert caught.value.reason == code
    assert (await bed.status())["state"] == "awake"
    return str(caught.value)


async def ask(bed: Bed, socket: zmq.Socket[bytes], kind: str, **content: Any) -> dict[str, Any]:
    socket.send_multipart(bed.raw.request(kind, **content))
    return bed.raw.read(await receive(socket))


async def overheard(bed: Bed, listener: zmq.Socket[bytes], count: int) -> list[str]:
    """Give so many published messages as ``type``, or ``state`` of a status, with its cause."""
    found = []
    for _ in range(count):
        parts = await receive(listener)
        message = bed.raw.read(parts)
        if message["msg_type"] == "iopub_welcome":
            found.append("welcome")
            continue
        assert parts[0].startswith(TOPIC.encode())
        what = message["content"].get("execution_state", message["msg_type"])
        found.append(f"{what} {message['parent_header']['msg_type']}")
    return found


async def test_what_waits_is_passed_once_and_in_order(bed: Bed) -> None:
    result = await bed.hold()
    assert result["memory"]["seen"]["comms"] == {"c1": "t", "c2": "u"}
    status = await bed.status()
    assert (status["state"], status["waiting"], status["link"]) == ("held", 0, "open")
    one, two = bed.raw.dealer(identity=b"one"), bed.raw.dealer(identity=b"two")
    for number in range(20):
        (one, two)[number % 2].send_multipart(bed.raw.request(code=f"{number}"))
    await bed.waits(20)
    assert bed.guest.ran == []
    assert bed.told("intent") == [
        {"event": "intent", "kernel_id": "k1", "msg_type": "execute_request"}
    ]
    assert await bed.call("release") == {}
    for number in range(10):
        for socket in (one, two):
            reply = bed.raw.read(await receive(socket))
            assert reply["content"]["status"] == "ok", number
    assert [code for code in bed.guest.ran if int(code) % 2 == 0] == [
        str(number) for number in range(0, 20, 2)
    ]
    assert sorted(bed.guest.ran, key=int) == [str(number) for number in range(20)]
    status = await bed.status()
    assert (status["state"], status["waiting"]) == ("awake", 0)


async def test_twice_is_fine_and_the_wrong_order_is_refused(bed: Bed) -> None:
    assert await bed.call("release") == {}
    for op, params in (("sleep", {}), ("wake", bed.guest.fifos), ("wake_failed", {"reason": "x"})):
        with pytest.raises(BridgeRefused) as caught:
            await bed.call(op, **params)
        assert caught.value.reason == "state"
    first = await bed.hold()
    assert await bed.hold() == first
    for op, params in (("wake", bed.guest.fifos), ("wake_failed", {"reason": "x"})):
        with pytest.raises(BridgeRefused) as caught:
            await bed.call(op, **params)
        assert caught.value.reason == "state"
    await bed.call("sleep")
    assert await bed.call("sleep") == {"waiting": 0}
    for op in ("hold", "release"):
        with pytest.raises(BridgeRefused) as caught:
            await bed.call(op)
        assert caught.value.reason == "state"
    for timeout_s in (0, -1, 1e9):
        with pytest.raises(BridgeRefused) as caught:
            await bed.call("hold", timeout_s=timeout_s)
        assert caught.value.reason == "bad_request"


async def test_the_bridges_own_question_reaches_nobody_else(bed: Bed) -> None:
    listener = bed.raw.listener()
    assert await overheard(bed, listener, 1) == ["welcome"]
    before = await bed.status()
    await bed.hold()
    await bed.call("release")
    after = await bed.status()
    assert bed.guest.heard == ["comm_info_request"]
    listener.rcvtimeo = 300
    with pytest.raises(zmq.Again):
        await receive(listener)
    names = ("execution_state", "last_activity")
    assert [after[name] for name in names] == [before[name] for name in names]
    assert [name for name in after["counters"] if name.startswith("dropped")] == []


async def test_a_busy_kernel_is_left_alone(bed: Bed) -> None:
    bed.guest.be("busy")

    await bed.until(lambda: busy(bed))
    assert "a cell is running" in await refusal(bed, code="finishing")
    bed.guest.be("idle")
    await bed.until(lambda: idle(bed))
    await bed.hold()


async def busy(bed: Bed) -> bool:
    return bool((await bed.status())["execution_state"] == "busy")


async def idle(bed: Bed) -> bool:
    return bool((await bed.status())["execution_state"] == "idle")


async def test_one_that_has_replied_and_is_not_idle_yet_is_told_apart(bed: Bed) -> None:
    """A cell has replied, and "idle" comes a moment later, on another channel."""
    bed.guest.mute.add("execute_request")
    dealer = bed.raw.dealer(identity=b"me")
    request = bed.raw.request("execute_request", code="1")
    dealer.send_multipart(request)
    await bed.until(lambda: bed.guest.heard == ["execute_request"])
    cause = json.loads(request[2])
    bed.guest.be("busy", cause)

    await bed.until(lambda: busy(bed))
    assert "a cell is running" in await refusal(bed)
    bed.guest.tell(Channel.SHELL, [b"me"], "execute_reply", cause, status="ok")
    await receive(dealer)
    assert "a cell is running" in await refusal(bed, code="finishing")
    bed.guest.be("idle", cause)
    await bed.until(lambda: idle(bed))
    await bed.hold()


async def test_a_request_without_a_reply_is_waited_for(bed: Bed) -> None:
    bed.guest.mute.add("inspect_request")
    dealer = bed.raw.dealer(identity=b"me")
    request = bed.raw.request("inspect_request", code="x")
    dealer.send_multipart(request)
    await bed.until(lambda: bed.guest.heard == ["inspect_request"])
    assert "inspect_request has no reply yet" in await refusal(bed)
    bed.guest.tell(Channel.SHELL, [b"me"], "inspect_reply", json.loads(request[2]), status="ok")
    await receive(dealer)
    await bed.hold()


async def test_what_is_never_answered_is_done_when_the_kernel_says_so(bed: Bed) -> None:
    bed.guest.mute.update({"odd_request", "comm_msg"})
    dealer = bed.raw.dealer()
    request = bed.raw.request("odd_request")
    dealer.send_multipart(request)
    await bed.until(lambda: bed.guest.heard == ["odd_request"])
    assert "odd_request" in await refusal(bed)
    bed.guest.be("idle", json.loads(request[2]))
    dealer.send_multipart(bed.raw.request("comm_msg", comm_id="x"))  # nothing answers these
    await bed.until(lambda: bed.guest.heard == ["odd_request", "comm_msg"])
    await asyncio.sleep(0.1)
    await bed.hold()


async def test_what_the_guest_has_dropped_is_not_waited_for(bed: Bed) -> None:
    bed.guest.mute.add("inspect_request")
    dealer = bed.raw.dealer()
    dealer.send_multipart(bed.raw.request("inspect_request", code="x"))
    await bed.until(lambda: bed.guest.heard == ["inspect_request"])
    await refusal(bed)
    bed.guest.event(event="dropped", channel=int(Channel.IOPUB), messages=1, bytes=1)
    await refusal(bed)
    bed.guest.event(event="dropped", channel=int(Channel.SHELL), messages=1, bytes=1)
    await bed.until(lambda: len(bed.told("guest")) == 3)
    await bed.hold()


async def test_an_open_question_is_waited_for(bed: Bed) -> None:
    stdin = bed.raw.dealer("stdin", identity=b"me")
    stdin.send_multipart(bed.raw.request("input_reply", value="to nothing"))
    await bed.until(lambda: bed.guest.heard == ["input_reply"])  # now the bridge knows "me"
    cause = {"msg_type": "execute_request", "msg_id": "x"}
    bed.guest.tell(Channel.STDIN, [b"me"], "input_request", cause, prompt="? ", password=False)
    await receive(stdin)
    assert "input()" in await refusal(bed)
    stdin.send_multipart(bed.raw.request("input_reply", value="42"))
    await bed.until(lambda: bed.guest.heard == ["input_reply"] * 2)
    await bed.hold()


async def test_a_stopped_debugger_is_waited_for(bed: Bed) -> None:
    listener = bed.raw.listener()
    await receive(listener)

    async def debugger(kind: str, **body: Any) -> None:
        first = [f"{TOPIC}debug_event".encode()]
        bed.guest.tell(Channel.IOPUB, first, "debug_event", {}, type="event", event=kind, body=body)
        await receive(listener)

    await debugger("stopped", threadId=1, reason="breakpoint")
    assert "debugger" in await refusal(bed)
    await debugger("continued", threadId=1, allThreadsContinued=True)
    await bed.hold()


async def test_a_kernel_that_does_not_answer_is_left_alone(bed: Bed) -> None:
    bed.guest.mute.add("comm_info_request")
    start = time.monotonic()
    assert "comm_info_request" in await refusal(bed, 0.4)
    assert 0.3 < time.monotonic() - start < 4.5  # 5 s if nothing is said
    listener, dealer = bed.raw.listener(), bed.raw.dealer()
    await receive(listener)
    bed.guest.mute.clear()
    probe = bed.guest.received[-1].parts  # the kernel answers it now, too late
    header = json.loads(bytes(probe[3]))
    bed.guest.be("busy", header)
    bed.guest.tell(Channel.SHELL, [bytes(probe[0])], "comm_info_reply", header, comms={})
    bed.guest.be("idle", header)
    assert (await ask(bed, dealer, "execute_request", code="1"))["content"]["status"] == "ok"
    assert await overheard(bed, listener, 2) == ["busy execute_request", "idle execute_request"]
    assert (await bed.hold())["memory"]["seen"]["comms"] == {"c1": "t", "c2": "u"}
    counters = (await bed.status())["counters"]
    assert [name for name in counters if name.startswith("dropped")] == []


async def test_a_kernel_that_talks_on_is_left_alone(bed: Bed) -> None:
    bed.guest.guest.to_publish = [output(number, 60) for number in range(60_000)]
    await bed.until(lambda: published(bed, 1), 20)
    await refusal(bed, 0.3)  # for which of the reasons, is up to the guest
    await bed.until(lambda: published(bed, 60_000), 20)
    await bed.hold()


async def published(bed: Bed, count: int) -> bool:
    return bool((await bed.status())["counters"]["from_guest"] >= count)


async def test_a_kernel_with_too_many_comms_is_left_alone(bed: Bed) -> None:
    bed.guest.memory["comms"] = {f"{number:064}": "t" for number in range(20_000)}
    assert "comms" in await refusal(bed)


@pytest.mark.parametrize("state", ["starting", "exited"])
async def test_a_kernel_that_does_not_run_is_left_alone(bed: Bed, state: str) -> None:
    if state == "exited":
        bed.guest.event(event="exited", generation=1, exit_code=1, stderr_tail="")
        await bed.until(lambda: bed.told("guest")[-1:] and len(bed.told("guest")) == 2)
        assert "died" in await refusal(bed)
    else:
        await bed.call("rpc", method="restart", params={})
        assert "starting" in await refusal(bed)


async def test_without_a_link_there_is_nothing_to_hold(bed: Bed) -> None:
    await bed.call("unlink")
    with pytest.raises(BridgeRefused) as caught:
        await bed.hold()
    assert caught.value.reason == "link"


async def test_intent_ends_an_attempt_and_is_run_once(bed: Bed) -> None:
    """A message that comes while the kernel is asked for its comms."""
    dealer, control = bed.raw.dealer(), bed.raw.dealer("control")
    bed.guest.pause()
    holding = asyncio.create_task(refusal(bed))
    await asyncio.sleep(0.1)
    control.send_multipart(bed.raw.request("kernel_info_request"))  # this does not
    await bed.waits(1)
    dealer.send_multipart(bed.raw.request(code="1"))
    assert await holding == "execute_request has just come"
    bed.guest.go_on()
    assert bed.raw.read(await receive(dealer))["content"]["status"] == "ok"
    assert bed.raw.read(await receive(control))["msg_type"] == "kernel_info_reply"
    assert bed.guest.ran == ["1"]
    assert bed.told("intent") == []
    await bed.hold()


async def test_presence_during_an_attempt_is_answered_after_it(bed: Bed) -> None:
    dealer = bed.raw.dealer()
    bed.guest.pause()
    holding = asyncio.create_task(bed.hold())
    await asyncio.sleep(0.1)
    dealer.send_multipart(bed.raw.request("kernel_info_request"))
    await bed.waits(1)
    bed.guest.go_on()
    await holding
    assert bed.raw.read(await receive(dealer))["content"] == KERNEL_INFO
    assert bed.guest.heard == ["comm_info_request"]


async def test_an_attempt_ends_with_its_sandbox(bed: Bed) -> None:
    bed.guest.pause()
    for end in ("release", "unlink"):
        holding = asyncio.create_task(bed.hold())
        await asyncio.sleep(0.1)
        with pytest.raises(BridgeRefused) as caught:
            await bed.hold()
        assert caught.value.reason == "state"
        await bed.call(end)
        with pytest.raises(BridgeRefused) as caught:
            await holding
        assert caught.value.reason == ("busy" if end == "release" else "link")


async def test_a_broken_link_ends_an_attempt(bed: Bed) -> None:
    bed.guest.pause()
    holding = asyncio.create_task(bed.hold())
    await asyncio.sleep(0.1)
    os.write(bed.guest.guest.stream.write_fileno(), b"garbage" * 100)
    with pytest.raises(BridgeRefused) as caught:
        await holding
    assert caught.value.reason == "link"
    await bed.until(lambda: len(bed.told("link_failed")) == 1)


async def test_looking_at_a_held_kernel_does_not_reach_it(bed: Bed) -> None:
    listener = bed.raw.listener()
    await receive(listener)
    await bed.hold()
    for channel in ("shell", "control"):
        socket = bed.raw.dealer(channel)
        reply = await ask(bed, socket, "kernel_info_request")
        assert (reply["msg_type"], reply["content"]) == ("kernel_info_reply", KERNEL_INFO)
        assert reply["header"]["session"] == SESSION
        assert reply["header"]["username"] == "ada"
        reply = await ask(bed, socket, "comm_info_request", target_name="u")
        assert reply["content"] == {"status": "ok", "comms": {"c2": {"target_name": "u"}}}
        reply = await ask(bed, socket, "interrupt_request")
        assert (reply["msg_type"], reply["content"]) == ("interrupt_reply", {"status": "ok"})
    kinds = ("kernel_info_request", "comm_info_request", "interrupt_request") * 2
    expected = [f"{state} {kind}" for kind in kinds for state in ("busy", "idle")]
    assert await overheard(bed, listener, 12) == expected
    assert bed.guest.heard == ["comm_info_request"]
    assert bed.told("intent") == []
    assert (await bed.status())["counters"]["answered"] == 6


async def test_a_late_reply_and_output_reach_the_clients_of_a_held_kernel(bed: Bed) -> None:
    dealer, listener = bed.raw.dealer(identity=b"me"), bed.raw.listener()
    await receive(listener)
    await ask(bed, dealer, "kernel_info_request")
    await overheard(bed, listener, 2)
    await bed.hold()
    cause = {"msg_type": "execute_request", "msg_id": "x"}
    bed.guest.tell(Channel.SHELL, [b"me"], "execute_reply", cause, status="ok")
    bed.guest.tell(Channel.IOPUB, [TOPIC.encode()], "stream", cause, name="stdout", text="late")
    assert bed.raw.read(await receive(dealer))["msg_type"] == "execute_reply"
    assert await overheard(bed, listener, 1) == ["stream execute_request"]
    bed.checkpoint = bed.guest.checkpoint()
    await bed.call("sleep")
    bed.guest.close()
    await bed.wake()
    assert (await ask(bed, dealer, "execute_request", code="1"))["msg_type"] == "execute_reply"
    assert await overheard(bed, listener, 2) == ["busy execute_request", "idle execute_request"]


async def test_a_bridge_killed_while_it_holds_comes_back_awake(bed: Bed) -> None:
    await bed.hold()
    await kill_bridge(bed.world)
    await bed.world.connect()
    await bed.world.bridge.call("open", **bed.request, **bed.guest.fifos, resume=True)
    assert (await bed.status())["state"] == "awake"
    dealer = bed.raw.dealer()
    assert (await ask(bed, dealer, "execute_request", code="1"))["content"]["status"] == "ok"
    await bed.hold()
