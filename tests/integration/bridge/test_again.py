"""One snapshot restored more than once, an older one, another bridge in between; and frozen kernels."""

from __future__ import annotations

import asyncio
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

from tests.integration.bridge.harness import World
from tests.integration.bridge.raw import Raw, client_side
from tests.integration.bridge.sleeper import KERNEL_INFO, TOPIC, Bed, bed_in, receive
from tests.integration.bridge.test_hold import ask, idle, overheard
from tests.integration.bridge.test_waking import reopened


@pytest_asyncio.fixture
async def bed(world: World, tmp_path: Path) -> AsyncIterator[Bed]:
    async with bed_in(world, tmp_path) as found:
        yield found


async def run(bed: Bed, socket: zmq.Socket[bytes], code: str) -> None:
    assert (await ask(bed, socket, "execute_request", code=code))["content"]["status"] == "ok"


async def check(bed: Bed) -> None:
    """Do what a daemon does before it lets a restored kernel go on: the link moves on by it."""
    for _ in range(3):
        assert (await bed.call("rpc", method="status", params={}))["state"] == "ready"


async def dropped(bed: Bed) -> list[str]:
    """Give the names of what got lost."""
    return [name for name in (await bed.status())["counters"] if name.startswith("dropped")]


@pytest.mark.parametrize("how", ["refused", "died", "broke", "twice"])
async def test_a_wake_that_is_taken_back_leaves_the_same_snapshot(bed: Bed, how: str) -> None:
    dealer = bed.raw.dealer(identity=b"me")
    await run(bed, dealer, "1")
    await bed.fall_asleep()
    dealer.send_multipart(bed.raw.request(code="2"))
    await bed.waits(1)
    for _ in range(2 if how == "twice" else 1):
        assert await bed.wake(held=True) == {"waiting": 1, "asked": True}
        await check(bed)
        if how == "died":
            bed.guest.event(event="exited", generation=1, exit_code=-9, stderr_tail="")
            await bed.until(lambda: bed.told("guest")[-1]["body"]["event"] == "exited")
        elif how == "broke":
            os.write(bed.guest.guest.stream.write_fileno(), b"garbage" * 100)
            await bed.until(lambda: bed.told("link_failed"))
        assert await bed.call("sleep") == {"waiting": 1}
        bed.guest.close()
        assert bed.guest.ran == ["1"]
    status = await bed.status()
    names = ("state", "guest", "execution_state", "link", "busy_reason")
    assert [status[name] for name in names] == ["asleep", "ready", "idle", "closed", None]
    control = bed.raw.dealer("control")
    assert (await ask(bed, control, "kernel_info_request"))["content"] == KERNEL_INFO
    await bed.wake(held=True)
    await check(bed)
    await bed.call("release")
    assert bed.raw.read(await receive(dealer))["content"]["status"] == "ok"
    assert bed.guest.ran == ["1", "2"]
    assert len(bed.told("intent")) == 1
    await bed.fall_asleep()  # and this is another one
    await bed.wake()
    await run(bed, dealer, "3")
    assert bed.guest.ran == ["1", "2", "3"]
    assert await dropped(bed) == []


async def test_a_woken_kernel_is_saved_again_before_it_was_released(bed: Bed) -> None:
    dealer = bed.raw.dealer()
    await bed.fall_asleep()
    before = bed.memory
    await bed.wake(held=True)
    await check(bed)
    bed.guest.memory["ran"].append("by itself")
    await bed.fall_asleep()
    assert bed.memory["hold_id"] != before["hold_id"]
    assert bed.memory["marks"]["RPC"] > before["marks"]["RPC"]
    await bed.wake()
    await run(bed, dealer, "1")
    assert bed.guest.ran == ["by itself", "1"]


async def test_put_to_sleep_again_while_it_wakes(bed: Bed) -> None:
    await bed.fall_asleep()
    silent = bed.restore()
    silent.pause()
    waking = asyncio.create_task(bed.call("wake", **silent.fifos))
    await asyncio.sleep(0.1)
    assert await bed.call("sleep") == {"waiting": 0}
    with pytest.raises(BridgeRefused, match="put to sleep again") as caught:
        await waking
    assert caught.value.reason == "link"
    assert (await bed.status())["state"] == "asleep"
    await bed.call("wake_failed", reason="x")
    await bed.wake()
    await run(bed, bed.raw.dealer(), "1")


@pytest.mark.parametrize("from_memory", [False, True])
async def test_a_bridge_killed_before_a_woken_kernel_was_released(
    bed: Bed, from_memory: bool
) -> None:
    del bed.request["kernel_id"]
    dealer = bed.raw.dealer(identity=b"me")
    await run(bed, dealer, "1")
    await bed.fall_asleep()
    await bed.wake(held=True)
    await check(bed)
    bed.guest.event(event="heartbeat", beating=True)
    await bed.until(lambda: bed.told("guest")[-1]["body"]["event"] == "heartbeat")
    await reopened(bed, **({"memory": bed.memory} if from_memory else {}))
    assert (await bed.status())["state"] == "asleep"
    await bed.wake()
    await run(bed, dealer, "2")
    assert bed.guest.ran == ["1", "2"]


async def test_what_came_after_the_hold_is_not_repeated_by_another_bridge(bed: Bed) -> None:
    """The daemon has the memory that ``hold`` gave, and the record knows more of the same hold."""
    del bed.request["kernel_id"]
    listener = bed.raw.listener()
    await receive(listener)
    bed.memory = (await bed.hold())["memory"]
    cause = {"msg_type": "execute_request", "msg_id": "x"}
    bed.guest.tell(Channel.IOPUB, [TOPIC.encode()], "stream", cause, name="stdout", text="late")
    assert await overheard(bed, listener, 1) == ["stream execute_request"]
    bed.checkpoint = bed.guest.checkpoint()
    await bed.call("sleep")
    bed.guest.close()
    await reopened(bed, memory=bed.memory)
    assert await overheard(bed, listener, 1) == ["welcome"]
    await bed.wake()
    await run(bed, bed.raw.dealer(), "1")
    assert await overheard(bed, listener, 2) == ["busy execute_request", "idle execute_request"]


WHENCE = ("awake", "asleep", "dead", "holding", "waking")
RARELY = [pytest.param(whence, marks=pytest.mark.slow) for whence in ("held", "busy", "unlinked")]


@pytest.mark.parametrize("whence", [*WHENCE, *RARELY])
async def test_back_to_an_older_snapshot(bed: Bed, whence: str) -> None:
    dealer, listener = bed.raw.dealer(identity=b"me"), bed.raw.listener()
    await receive(listener)
    await run(bed, dealer, "1")
    await bed.fall_asleep()
    older, memory = bed.checkpoint, bed.memory
    await bed.wake()
    for number in range(20):
        await run(bed, dealer, f"2.{number}")
    await overheard(bed, listener, 42)
    bed.guest.memory["comms"]["c3"] = "v"
    if whence in ("held", "asleep", "waking"):
        await (bed.hold() if whence == "held" else bed.fall_asleep())
    if whence == "waking":
        bed.restore().pause()
        waking = asyncio.create_task(bed.call("wake", **bed.guest.fifos))
        await asyncio.sleep(0.1)
    elif whence == "holding":
        bed.guest.pause()
        waking = asyncio.create_task(bed.hold())
        await asyncio.sleep(0.1)
        looking = bed.raw.dealer("control")
        looking.send_multipart(bed.raw.request("kernel_info_request"))
        await bed.waits(1)
    elif whence == "busy":
        bed.guest.be("busy")
        await overheard(bed, listener, 1)
    elif whence == "dead":
        bed.guest.event(event="exited", generation=1, exit_code=-9, stderr_tail="")
        await bed.until(lambda: bed.told("guest")[-1]["body"]["event"] == "exited")
    elif whence == "unlinked":
        await bed.call("unlink")
    assert await bed.call("sleep", memory=memory) == {"waiting": 0}
    if whence in ("waking", "holding"):
        with pytest.raises(BridgeRefused) as caught:
            await waking
        assert caught.value.reason == "link"
    if whence == "holding":
        assert bed.raw.read(await receive(looking))["content"] == KERNEL_INFO
        await overheard(bed, listener, 2)
    if whence != "asleep":
        bed.guest.close()
    status = await bed.status()
    names = ("state", "guest", "execution_state", "link", "busy_reason")
    assert [status[name] for name in names] == ["asleep", "ready", "idle", "closed", None]
    assert status["idle_since"] == memory["idle_since"]
    comms = (await ask(bed, dealer, "comm_info_request"))["content"]["comms"]
    assert set(comms) == {"c1", "c2"}
    bed.checkpoint = older
    dealer.send_multipart(bed.raw.request(code="3"))
    await bed.waits(1)
    assert len(bed.told("intent")) == 1
    await bed.wake()
    assert bed.raw.read(await receive(dealer))["content"]["status"] == "ok"
    assert bed.guest.ran == ["1", "3"]
    found = await overheard(bed, listener, 4)
    assert found[2:] == ["busy execute_request", "idle execute_request"]
    await bed.fall_asleep()
    await bed.wake()
    await run(bed, dealer, "4")
    assert bed.guest.ran == ["1", "3", "4"]
    assert await dropped(bed) == []


async def test_what_waits_is_kept_and_told_when_a_kernel_goes_back(bed: Bed) -> None:
    await bed.fall_asleep()
    await bed.wake(held=True)
    dealer = bed.raw.dealer()
    dealer.send_multipart(bed.raw.request(code="1"))
    await bed.waits(1)
    assert await bed.call("sleep", memory=bed.memory) == {"waiting": 1}
    await bed.until(lambda: len(bed.told("intent")) == 2)
    await bed.wake()
    assert bed.raw.read(await receive(dealer))["content"]["status"] == "ok"


async def test_back_without_any_memory(bed: Bed) -> None:
    """Nothing is known of the kernel, so looking is intent; and the guest says where the link stands."""
    dealer, listener = bed.raw.dealer(), bed.raw.listener()
    await receive(listener)
    await run(bed, dealer, "1")
    await overheard(bed, listener, 2)
    await bed.fall_asleep()
    await bed.call("sleep", memory={})
    dealer.send_multipart(bed.raw.request("kernel_info_request"))
    await bed.waits(1)
    await bed.wake()
    assert bed.raw.read(await receive(dealer))["content"] == KERNEL_INFO
    assert len(await overheard(bed, listener, 2)) == 2
    with pytest.raises(BridgeRefused) as caught:
        await bed.call("sleep", memory=7)
    assert caught.value.reason == "bad_request"


async def test_two_kernels_from_one_snapshot(bed: Bed) -> None:
    await run(bed, bed.raw.dealer(), "1")
    await bed.fall_asleep()
    request = {"client": client_side(), "guest_key": bed.request["guest_key"], "kernel_id": "k2"}
    call = bed.world.bridge.call
    opened = await call("open", **request, resume=True, asleep=True, memory=bed.memory)
    fork = Raw(bed.raw.context, opened["ports"])
    bed.raw.ports, ports = fork.ports, bed.raw.ports
    dealer = bed.raw.dealer()
    assert (await ask(bed, dealer, "kernel_info_request"))["content"] == KERNEL_INFO
    twin = bed.restore()
    await call("wake", kernel_id="k2", **twin.fifos)
    await run(bed, dealer, "2")
    bed.raw.ports = ports
    await bed.wake()
    await run(bed, bed.raw.dealer(), "3")
    assert twin.ran == ["1", "2"]
    assert bed.guest.ran == ["1", "3"]


async def beats(bed: Bed) -> None:
    heart = bed.raw.context.socket(zmq.REQ)
    heart.rcvtimeo = 5_000
    heart.connect(f"tcp://127.0.0.1:{bed.raw.ports['hb']}")
    heart.send(b"ping")
    assert await asyncio.to_thread(heart.recv) == b"ping"


async def test_a_frozen_kernel(bed: Bed) -> None:
    """It is held, and its processor is taken away; then it goes on, and later it is put to sleep."""
    dealer, control = bed.raw.dealer(), bed.raw.dealer("control")
    await bed.hold()
    bed.guest.pause()
    await beats(bed)
    assert (await ask(bed, dealer, "kernel_info_request"))["content"] == KERNEL_INFO
    assert (await ask(bed, control, "comm_info_request"))["content"]["comms"]
    assert bed.told("intent") == []
    for code in ("1", "2"):
        dealer.send_multipart(bed.raw.request(code=code))
    await bed.waits(2)
    told = [{"event": "intent", "kernel_id": "k1", "msg_type": "execute_request"}]
    assert bed.told("intent") == told
    status = await bed.status()
    assert (status["state"], status["busy_reason"]) == ("held", "messages wait for the kernel")
    with pytest.raises(BridgeRefused, match="wait") as caught:
        await bed.hold()
    assert caught.value.reason == "busy"
    bed.guest.go_on()
    await bed.call("release")
    for _ in range(2):
        assert bed.raw.read(await receive(dealer))["content"]["status"] == "ok"
    assert bed.guest.ran == ["1", "2"]
    await bed.until(lambda: idle(bed))
    await bed.hold()
    bed.guest.pause()
    await asyncio.sleep(0.1)
    bed.guest.go_on()
    await bed.fall_asleep()
    dealer.send_multipart(bed.raw.request(code="3"))
    await bed.waits(1)
    await bed.wake()
    assert bed.raw.read(await receive(dealer))["content"]["status"] == "ok"
    assert bed.guest.ran == ["1", "2", "3"]


async def test_how_long_a_kernel_has_been_idle(bed: Bed) -> None:
    dealer, listener = bed.raw.dealer(), bed.raw.listener()
    await receive(listener)

    async def since() -> float:
        return float((await bed.status())["idle_since"])

    start = await since()
    assert time.time() - 10 < start <= time.time()
    for kind in ("kernel_info_request", "comm_info_request"):
        await ask(bed, dealer, kind)
    await overheard(bed, listener, 4)
    await beats(bed)
    assert await since() == start
    assert (await bed.status())["busy_reason"] is None
    await ask(bed, dealer, "debug_request")  # which jupyter_server would not count
    asked = await since()
    assert asked > start
    await overheard(bed, listener, 2)
    bed.guest.be("busy")
    await overheard(bed, listener, 1)
    before = time.time()
    status = await bed.status()
    assert (status["idle_since"] >= before, status["busy_reason"]) == (True, "a cell is running")
    bed.guest.be("idle")
    await overheard(bed, listener, 1)
    done = await since()
    assert done > asked
    cause: dict[str, Any] = {"msg_type": "execute_request", "msg_id": "x"}
    bed.guest.tell(Channel.IOPUB, [TOPIC.encode()], "stream", cause, name="stdout", text="thread")
    await overheard(bed, listener, 1)
    assert await since() > done
    await bed.call("unlink")
    assert "link" in (await bed.status())["busy_reason"]


async def test_how_long_a_kernel_has_been_asleep_is_known_to_the_next_bridge(bed: Bed) -> None:
    del bed.request["kernel_id"]
    await run(bed, bed.raw.dealer(), "1")
    await bed.fall_asleep()
    since = (await bed.status())["idle_since"]
    await reopened(bed)
    assert (await bed.status())["idle_since"] == since
