"""Sudden death of bridge, daemon and sandbox: what comes back, what is lost, what is never repeated.

What cannot be guaranteed when the bridge is killed: a message is acknowledged to the guest when libzmq
took it, so what libzmq had not yet written to a client dies with the process, and so does what a client
had sent and the bridge had not yet passed on. What the guest still holds is neither lost nor repeated.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import zmq
from jupyter_client.blocking.client import BlockingKernelClient
from torpor.bridge.record import Record
from torpor.link import Channel

from tests.integration.bridge.echo_guest import output
from tests.integration.bridge.harness import GUEST_KEY, World, soon
from tests.integration.bridge.raw import Raw, client_side, number_of, zmq_context
from tests.integration.bridge.standin import Standin


async def kill_bridge(world: World) -> None:
    pid = await world.bridge_pid()
    os.kill(pid, signal.SIGKILL)

    def gone() -> bool:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:  # its parent has just been told of its end
            return True
        return stat.rsplit(")", 1)[1].split()[0] == "Z"

    assert await soon(gone)
    await world.bridge.aclose()


async def resume(world: World) -> None:
    """Start the next bridge and open every kernel again, as a daemon does."""
    await world.connect()
    for request in world.requests.values():
        again = {**request, "resume": True}
        again["client"] = {**request["client"], "ports": request["client"]["ports"]}
        opened = await world.bridge.call("open", **again)
        assert opened["ports"] == request["client"]["ports"]


async def open_standin(world: World, folder: Path) -> Standin:
    guest = Standin(folder)
    world.sandboxes.append(guest)  # type: ignore[arg-type]
    request = {"kernel_id": "k1", "client": client_side(), "guest_key": GUEST_KEY, **guest.fifos}
    opened = await world.bridge.call("open", **request)
    request["client"]["ports"] = opened["ports"]
    world.requests["k1"] = request
    return guest


async def subscribed(world: World, count: int) -> None:
    """Wait until it is written down for the next bridge that so many listen: it waits for them."""
    record = Record(world.paths.runtime / "bridge", "k1")
    try:
        assert await soon(lambda: record.subscribers == count)
    finally:
        record.close()


def collect(listener: zmq.Socket[bytes], until: int, found: list[int]) -> None:
    while not found or found[-1] != until:
        found.append(number_of(listener.recv_multipart()))


async def test_output_goes_on_after_the_bridge_was_killed(world: World, tmp_path: Path) -> None:
    guest = await open_standin(world, tmp_path / "guest")
    count, found = 6_000, list[int]()
    with zmq_context() as context:
        raw = Raw(context, world.requests["k1"]["client"]["ports"])
        listener = raw.listener(rcvtimeo=30_000)
        await subscribed(world, 1)

        def publish() -> None:
            for number in range(count):
                guest.publish(output(number, 200))
                if number % 20 == 0:
                    time.sleep(0.01)

        publisher = threading.Thread(target=publish)
        reader = asyncio.ensure_future(asyncio.to_thread(collect, listener, count - 1, found))
        publisher.start()
        for _ in range(3):
            await asyncio.sleep(0.5)
            await kill_bridge(world)
            await resume(world)
        await asyncio.wait_for(reader, 30)
        publisher.join()
    assert found == sorted(set(found)), "something came twice or out of order"
    assert count - len(found) < 300, "more was lost than libzmq can have had in its hands"


async def test_nothing_is_lost_that_the_guest_sent_while_no_bridge_lived(
    world: World, tmp_path: Path
) -> None:
    guest = await open_standin(world, tmp_path / "guest")
    found: list[list[int]] = [[], []]
    with zmq_context() as context:
        raw = Raw(context, world.requests["k1"]["client"]["ports"])
        readers = [
            asyncio.ensure_future(
                asyncio.to_thread(collect, raw.listener(rcvtimeo=30_000), 999, one)
            )
            for one in found
        ]
        dealer, request = raw.dealer(identity=b"me"), raw.request(code="1")
        dealer.rcvtimeo = 30_000
        dealer.send_multipart(request)
        assert await asyncio.to_thread(dealer.recv_multipart) == request
        await subscribed(world, 2)
        await kill_bridge(world)
        guest.publish(*(output(number, 200) for number in range(1_000)))
        reply = raw.request(code="late")
        guest.send(Channel.SHELL, [b"me", *reply])
        await resume(world)
        assert await asyncio.to_thread(dealer.recv_multipart) == reply
        await asyncio.gather(*readers)
    assert found == [list(range(1_000))] * 2


async def test_state_survives_the_bridge(world: World) -> None:
    await world.open()
    before = await world.bridge.call("status", kernel_id="k1")
    await kill_bridge(world)
    world.requests["k1"]["client"]["ports"] = before["ports"]
    await resume(world)
    client = world.client()
    await world.run(client.wait_for_ready, timeout=20)
    after = await world.bridge.call("status", kernel_id="k1")
    names = ("guest", "generation", "kernel_info", "execution_state", "iopub_welcome", "link")
    assert {name: after[name] for name in names} == {name: before[name] for name in names}


def run_slowly(
    client: BlockingKernelClient, found: list[str], go_on: Path = Path("/")
) -> dict[str, Any]:
    """Execute something that prints for a while, and ends once ``go_on`` exists; give the reply."""

    def hook(message: dict[str, Any]) -> None:
        if message["msg_type"] == "stream":
            found.extend(message["content"]["text"].split())

    code = (
        "import os, time\n"
        "for i in range(300):\n"
        f"    while i == 299 and not os.path.exists({str(go_on)!r}): time.sleep(0.005)\n"
        "    print(i, flush=True); time.sleep(0.005)"
    )
    return dict(client.execute_interactive(code, timeout=30, output_hook=hook))


async def test_a_cell_goes_on_when_the_bridge_is_killed_under_it(
    world: World, tmp_path: Path
) -> None:
    await world.open()
    client = world.client()
    await world.run(client.wait_for_ready, timeout=20)
    found: list[str] = []
    go_on = tmp_path / "go on"
    running = asyncio.ensure_future(world.run(run_slowly, client, found, go_on))
    assert await soon(lambda: len(found) > 20)
    await kill_bridge(world)
    await resume(world)
    assert (await world.bridge.call("status", kernel_id="k1"))["execution_state"] == "busy"
    go_on.touch()
    reply = await asyncio.wait_for(running, 30)
    assert reply["content"]["status"] == "ok"
    assert found == sorted(set(found), key=int)
    assert found[-1] == "299"
    assert len(found) >= 290


async def test_the_daemon_may_die_without_anybody_noticing(world: World) -> None:
    await world.open()
    client = world.client()
    await world.run(client.wait_for_ready, timeout=20)
    found: list[str] = []
    running = asyncio.ensure_future(world.run(run_slowly, client, found))
    await asyncio.sleep(0.3)
    pid = await world.bridge_pid()
    await world.bridge.aclose()
    await asyncio.sleep(0.3)
    await world.connect()
    assert await world.bridge_pid() == pid
    await asyncio.wait_for(running, 30)
    assert found == [str(number) for number in range(300)]


async def test_a_new_sandbox_behind_the_same_endpoints(world: World, tmp_path: Path) -> None:
    first = await open_standin(world, tmp_path / "first")
    ports = world.requests["k1"]["client"]["ports"]
    with zmq_context() as context:
        raw = Raw(context, ports)
        dealer = raw.dealer()
        await world.bridge.call("unlink", kernel_id="k1")
        await world.bridge.call("unlink", kernel_id="k1")
        assert (await world.bridge.call("status", kernel_id="k1"))["link"] == "closed"
        waiting = raw.request(code="waits")
        dealer.send_multipart(waiting)
        await asyncio.sleep(0.2)
        second = Standin(tmp_path / "second")
        world.sandboxes.append(second)  # type: ignore[arg-type]
        await world.bridge.call("relink", kernel_id="k1", **second.fifos)
        assert await asyncio.to_thread(dealer.recv_multipart) == waiting
        assert first.received == []
        status = await world.bridge.call("status", kernel_id="k1")
        assert (status["link"], status["ports"]) == ("open", ports)


async def test_calls_end_when_the_sandbox_goes(world: World, tmp_path: Path) -> None:
    guest = await open_standin(world, tmp_path / "guest")
    guest.guest.link.acknowledge = lambda message: None  # type: ignore[method-assign]
    guest.guest._handle = lambda event: None  # type: ignore[method-assign]
    call = asyncio.ensure_future(
        world.bridge.call("rpc", kernel_id="k1", method="ping", params={}, timeout_s=20)
    )
    await asyncio.sleep(0.2)
    await world.bridge.call("unlink", kernel_id="k1")
    with pytest.raises(Exception, match="sandbox is gone"):
        await asyncio.wait_for(call, 5)
    with pytest.raises(Exception, match="no link"):
        await world.bridge.call("rpc", kernel_id="k1", method="ping", params={})


async def test_a_call_ends_in_time(world: World, tmp_path: Path) -> None:
    guest = await open_standin(world, tmp_path / "guest")
    guest.guest._handle = lambda event: None  # type: ignore[method-assign]
    start = time.monotonic()
    with pytest.raises(Exception, match="did not answer 'ping' in time"):
        await world.bridge.call("rpc", kernel_id="k1", method="ping", params={}, timeout_s=0.3)
    assert time.monotonic() - start < 3
