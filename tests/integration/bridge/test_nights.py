"""Races: what comes at any moment of falling asleep and waking is handled once, in order, by somebody."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import zmq
from jupyter_client.blocking.client import BlockingKernelClient
from torpor.bridge.client import BridgeRefused
from torpor.bridge.endpoints import RESUME_CLIENTS_S
from torpor.link import Channel

from tests.integration.bridge.harness import World, soon
from tests.integration.bridge.sleeper import Bed, bed_in, receive
from tests.integration.bridge.test_hold import ask, idle, overheard
from tests.integration.bridge.test_kernel import outputs, ready, text
from tests.integration.bridge.test_recovery import kill_bridge

STEPS = ("held", "checkpointed", "asleep", "waking", "awake")


@pytest_asyncio.fixture
async def bed(world: World, tmp_path: Path) -> AsyncIterator[Bed]:
    async with bed_in(world, tmp_path) as found:
        yield found


@pytest.mark.parametrize("when", STEPS)
async def test_intent_at_any_step_is_run_once(bed: Bed, when: str) -> None:
    one, two = bed.raw.dealer(identity=b"one"), bed.raw.dealer(identity=b"two")
    await ask(bed, one, "kernel_info_request")
    told = 0

    async def step(name: str) -> None:
        nonlocal told
        if name == when:
            for number, socket in enumerate((one, two, one)):
                socket.send_multipart(bed.raw.request(code=f"{number}"))
                if name != "awake":
                    await bed.waits(number + 1)
            told = 0 if name == "awake" else 1

    await bed.hold()
    await step("held")
    bed.checkpoint = bed.guest.checkpoint()
    await step("checkpointed")
    slept = await bed.call("sleep")
    assert slept == {"waiting": 3 if when in STEPS[:2] else 0}
    bed.guest.close()
    await step("asleep")
    restored = bed.restore()
    restored.pause()
    waking = asyncio.create_task(bed.call("wake", **restored.fifos))
    await asyncio.sleep(0.1)
    await step("waking")
    restored.go_on()
    await waking
    await step("awake")
    for socket in (one, two, one):
        assert bed.raw.read(await receive(socket))["content"]["status"] == "ok"
    ran = bed.guest.ran
    assert sorted(ran) == ["0", "1", "2"]
    assert ran.index("0") < ran.index("2")
    assert len(bed.told("intent")) == told
    assert (await bed.status())["state"] == "awake"


class Sleepless(threading.Thread):
    """A client that asks for something in bursts, and notes what it was answered.

    It asks ``count`` times, and ten times as often at most while ``goes_on`` is set.
    """

    def __init__(self, bed: Bed, name: str, count: int) -> None:
        super().__init__()
        self.asked, self.count, self.goes_on = 0, count, True
        self.socket = bed.raw.dealer(identity=name.encode())
        self.socket.rcvtimeo = 30_000
        self.requests = [bed.raw.request(code=f"{name} {number}") for number in range(10 * count)]
        self.answered: list[str] = []
        self.raw = bed.raw

    def run(self) -> None:
        choice = random.Random(self.name)
        while self.asked < (len(self.requests) if self.goes_on else self.count):
            burst = self.requests[self.asked :][: choice.randrange(1, 6)]
            self.asked += len(burst)
            for request in burst:
                self.socket.send_multipart(request)
                time.sleep(choice.random() * 0.01)
            for _ in burst:
                reply = self.raw.read(self.socket.recv_multipart())
                self.answered.append(reply["parent_header"]["msg_id"])
            time.sleep(choice.random() * 0.1)


async def held(bed: Bed) -> bool:
    """Try to hold the kernel."""
    with contextlib.suppress(BridgeRefused):
        await bed.hold(1.0)
    state = (await bed.status())["state"]
    assert state in ("awake", "held")
    return bool(state == "held")


@pytest.mark.parametrize("count", [40, pytest.param(300, marks=pytest.mark.slow)])
async def test_whole_nights_of_clients_that_do_not_sleep(bed: Bed, count: int) -> None:
    clients = [Sleepless(bed, name, count) for name in ("ada", "grace")]
    for client in clients:
        client.start()
    choice, nights, refusals = random.Random(1), 0, 0
    enough = count // 12

    async def a_moment() -> None:
        await asyncio.sleep(choice.random() * 0.03)

    while any(client.is_alive() for client in clients):
        await a_moment()
        if not await held(bed):
            refusals += 1
            continue
        if choice.random() < 0.3:  # frozen for a while
            bed.guest.pause()
            await a_moment()
            bed.guest.go_on()
        await a_moment()
        if choice.random() < 0.2:
            await bed.call("release")
            continue
        bed.checkpoint = bed.guest.checkpoint()
        await a_moment()
        await bed.call("sleep")
        bed.guest.close()
        await a_moment()
        if choice.random() < 0.3:
            nobody = bed.restore()
            nobody.pause()
            with pytest.raises(BridgeRefused, match="did not answer"):
                await bed.call("wake", timeout_s=0.02, **nobody.fifos)
            nobody.close()
        if choice.random() < 0.3:  # restored, and found to be ill
            await bed.wake(held=True)
            await bed.call("rpc", method="status", params={})
            await a_moment()
            await bed.call("sleep")
            bed.guest.close()
        asked = (await bed.wake(held=choice.random() < 0.5))["asked"]
        await a_moment()
        proof = {"prove_s": 5.0} if asked and (await bed.status())["state"] == "held" else {}
        await bed.call("release", **proof)
        nights += 1
        for client in clients:
            client.goes_on = nights < enough  # on a busy machine fewer nights fit in between
    for client in clients:
        client.join()
        asked = client.requests[: client.asked]
        expected = [bed.raw.read(request)["header"]["msg_id"] for request in asked]
        assert client.answered == expected
        own = [code for code in bed.guest.ran if code.startswith(client.socket.identity.decode())]
        assert [int(code.split()[1]) for code in own] == list(range(client.asked))
        assert client.asked >= count
    print(f"{nights} nights, {refusals} refusals")
    assert nights >= enough
    counters = (await bed.status())["counters"]
    assert [name for name in counters if name.startswith("dropped")] == []


async def test_a_reply_that_its_client_comes_late_for(bed: Bed) -> None:
    """It was received while held and its client is away: it is kept over ``sleep``, and sent once."""
    for _ in range(5):  # a busy machine may not get that far while the bridge still keeps it
        await kill_bridge(bed.world)
        await bed.world.connect()
        opened = time.monotonic()
        await bed.world.bridge.call("open", **bed.request, **bed.guest.fifos, resume=True)
        await bed.until(lambda: may_sleep(bed))
        await bed.hold()
        cause = {"msg_type": "execute_request", "msg_id": "x"}
        bed.guest.tell(Channel.SHELL, [b"late"], "execute_reply", cause, status="ok")
        await bed.until(lambda: received(bed))
        bed.checkpoint = bed.guest.checkpoint()
        await bed.call("sleep")
        bed.guest.close()
        dealer = bed.raw.dealer(identity=b"late")
        if await came(bed, dealer):
            break
        assert time.monotonic() - opened > RESUME_CLIENTS_S, "it was given up too soon"
        dealer.close()
        await bed.wake()
    assert bed.raw.read(await receive(dealer))["parent_header"]["msg_id"] == "x"
    await bed.wake()
    assert (await ask(bed, dealer, "execute_request", code="1"))["parent_header"]["msg_id"] != "x"


async def came(bed: Bed, socket: zmq.Socket[bytes]) -> bool:
    """Whether something comes for a client before that is given up."""

    async def decided() -> bool:
        given_up = "dropped.to_client.gone" in (await bed.status())["counters"]
        return given_up or bool(socket.poll(0))

    assert await soon(decided)
    return bool(socket.poll(0))


async def may_sleep(bed: Bed) -> bool:
    return (await bed.status())["busy_reason"] is None


async def received(bed: Bed) -> bool:
    return bool((await bed.status())["counters"]["from_guest"])


def debug_info(client: BlockingKernelClient, seq: int) -> dict[str, Any]:
    """Ask as JupyterLab does for a notebook that is opened."""
    content = {"type": "request", "seq": seq, "command": "debugInfo", "arguments": {}}
    client.control_channel.send(client.session.msg("debug_request", content))
    return dict(client.get_control_msg(timeout=20)["content"])


async def hold(world: World) -> dict[str, Any]:
    """Hold a real kernel, which may say only after its reply that it is idle."""
    found: list[dict[str, Any]] = []

    async def held() -> bool:
        try:
            found.append(await world.bridge.call("hold", kernel_id="k1"))
        except BridgeRefused as exc:
            if exc.reason not in ("busy", "finishing"):
                raise
        return bool(found)

    assert await soon(held)
    return found[0]


async def test_a_real_kernel_dreams_on(world: World) -> None:
    """The guest's process is stopped instead of checkpointed; everything else is the real thing."""
    await world.open()
    client = await ready(world)
    await world.run(outputs, client, "x = 41")
    await world.run(
        outputs, client, "from comm import create_comm; c = create_comm(target_name='t')"
    )
    debugger = await world.run(debug_info, client, 1)
    assert debugger["body"]["isStarted"] is False
    guest = world.sandboxes[0]
    start = time.monotonic()
    memory = (await hold(world))["memory"]
    print(f"held after {(time.monotonic() - start) * 1000:.0f} ms")
    assert list(memory["seen"]["comms"].values()) == ["t"]
    voice = memory["seen"]["voice"]
    assert voice["topic"].startswith("kernel.")
    assert voice["topic"].endswith(".")
    os.kill(guest.process.pid, signal.SIGSTOP)
    await world.bridge.call("sleep", kernel_id="k1")
    await world.run(client.wait_for_ready, timeout=10)
    info = await world.run(client.kernel_info, reply=True, timeout=10)
    assert info["content"]["implementation"] == "ipython"
    assert info["header"]["session"] == voice["session"]
    comms = await world.run(client.comm_info, "t", reply=True, timeout=10)
    assert comms["content"]["comms"] == {
        ident: {"target_name": "t"} for ident in memory["seen"]["comms"]
    }
    assert await world.run(debug_info, client, 2) == {**debugger, "request_seq": 2}
    status = await world.bridge.call("status", kernel_id="k1")
    assert (status["state"], status["waiting"]) == ("asleep", 0)
    running = asyncio.create_task(world.run(outputs, client, "print(x + 1)"))

    async def waits() -> bool:
        return bool((await world.bridge.call("status", kernel_id="k1"))["waiting"] == 1)

    assert await soon(waits)
    os.kill(guest.process.pid, signal.SIGCONT)
    await world.bridge.call("wake", kernel_id="k1", **guest.fifos)
    assert text(await running) == "42\n"
    status = await world.bridge.call("status", kernel_id="k1")
    assert status["execution_state"] == "idle"
    assert [name for name in status["counters"] if name.startswith("dropped")] == []


async def test_a_real_kernel_that_is_busy_stays_awake(world: World, tmp_path: Path) -> None:
    await world.open()
    client = await ready(world)
    go_on, answer = tmp_path / "go on", threading.Event()
    code = (
        f"import os, time\nwhile not os.path.exists({str(go_on)!r}): time.sleep(0.01)\ninput('?')"
    )

    async def refusal() -> str:
        with pytest.raises(BridgeRefused) as caught:
            await world.bridge.call("hold", kernel_id="k1")
        assert caught.value.reason == "busy"
        return str(caught.value)

    running = asyncio.create_task(
        world.run(
            outputs,
            client,
            code,
            allow_stdin=True,
            stdin_hook=lambda _: (answer.wait(30), client.input("x")),
        )
    )

    async def busy() -> bool:
        status = await world.bridge.call("status", kernel_id="k1")
        return bool(status["busy_reason"] == "a cell is running")

    assert await soon(busy)
    said = [await refusal()]
    assert "a cell is running" in said[0]
    go_on.touch()
    while "a cell is running" in said[-1]:
        await asyncio.sleep(0.05)
        said.append(await refusal())
    assert "input()" in said[-1]
    answer.set()
    await running
    await hold(world)


@pytest.mark.slow
async def test_holding_again_and_again_goes_unnoticed(bed: Bed) -> None:
    listener, dealer = bed.raw.listener(), bed.raw.dealer()
    await receive(listener)
    took = []
    for number in range(50):
        start = time.monotonic()
        await bed.hold()
        took.append(time.monotonic() - start)
        await bed.call("release")
        assert (await ask(bed, dealer, "execute_request", code=f"{number}"))["content"]
        found = await overheard(bed, listener, 2)
        assert found == ["busy execute_request", "idle execute_request"]
        await bed.until(lambda: idle(bed))
    print(f"hold: {sorted(took)[25] * 1000:.0f} ms")
    assert bed.guest.ran == [f"{number}" for number in range(50)]
