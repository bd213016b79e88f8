"""Several clients, bad clients, slow clients, and what they may and may not do to each other."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest_asyncio
import zmq
from torpor.link import Channel

from tests.integration.bridge.echo_guest import output
from tests.integration.bridge.harness import GUEST_KEY, World, soon
from tests.integration.bridge.raw import Raw, client_side, number_of, published, zmq_context
from tests.integration.bridge.standin import Standin


class Scene:
    """A bridge, a stand-in guest and raw clients."""

    def __init__(self, world: World, guest: Standin, raw: Raw) -> None:
        self.world = world
        self.guest = guest
        self.raw = raw

    async def status(self) -> dict[str, Any]:
        return await self.world.bridge.call("status", kernel_id="k1")

    async def dropped(self) -> dict[str, int]:
        """Give the reasons and numbers of dropped messages."""
        counters = (await self.status())["counters"]
        return {
            name.removeprefix("dropped."): count
            for name, count in counters.items()
            if name.startswith("dropped.")
        }

    async def until_dropped(self, **expected: int) -> None:
        """Wait until exactly these were dropped."""
        wanted = {name.replace("__", "."): count for name, count in expected.items()}
        found: dict[str, int] = {}
        for _ in range(100):
            found = await self.dropped()
            if found == wanted:
                return
            await asyncio.sleep(0.05)
        assert found == wanted


@pytest_asyncio.fixture
async def scene(world: World, tmp_path: Path) -> AsyncIterator[Scene]:
    guest = Standin(tmp_path / "guest")
    world.sandboxes.append(guest)  # type: ignore[arg-type]
    opened = await world.bridge.call(
        "open", kernel_id="k1", client=client_side(), guest_key=GUEST_KEY, **guest.fifos
    )
    with zmq_context() as context:
        yield Scene(world, guest, Raw(context, opened["ports"]))


async def receive(socket: zmq.Socket[bytes]) -> list[bytes]:
    return await asyncio.to_thread(socket.recv_multipart)


async def test_messages_are_signed_anew_in_both_directions(scene: Scene) -> None:
    dealer, request = scene.raw.dealer(), scene.raw.request(code="1")
    dealer.send_multipart(request)
    reply = await receive(dealer)
    assert reply == request  # echoed: what the guest got was signed with another key
    got = scene.guest.received[0].parts
    assert bytes(got[2]) != request[1]
    assert [bytes(part) for part in got[3:]] == request[2:]


BAD_MESSAGES: tuple[tuple[str, Callable[[list[bytes]], list[bytes]]], ...] = (
    ("bad_signature", lambda parts: [parts[0], b"0" * 64, *parts[2:]]),
    ("bad_signature", lambda parts: [*parts[:5], b'{"code": "other"}']),
    ("bad_signature", lambda parts: [parts[0], b"0" * 100_000, *parts[2:]]),
    ("unsigned", lambda parts: [parts[0], b"", *parts[2:]]),
    ("too_few_parts", lambda parts: parts[:5]),
    ("no_delimiter", lambda parts: parts[1:]),
    ("no_delimiter", lambda parts: [b""]),
    ("no_delimiter", lambda parts: [b"x"] * 20 + parts),
    ("no_delimiter", lambda parts: [b"x" * 300, *parts]),
    ("too_large", lambda parts: parts + [b""] * 5_000),
)


async def test_bad_messages_are_dropped_and_counted(scene: Scene) -> None:
    dealer = scene.raw.dealer()
    for reason, change in BAD_MESSAGES:
        dealer.send_multipart(change(scene.raw.request(code="bad")))
        if reason == "too_large":  # the only one that is well-formed, and from a client of ours
            reply = scene.raw.read(await receive(dealer))
            assert "4,096 parts are the most" in reply["content"]["evalue"]
        good = scene.raw.request(code="good")
        dealer.send_multipart(good)
        assert await receive(dealer) == good
    expected = Counter(f"client.{reason}" for reason, _ in BAD_MESSAGES)
    assert await scene.dropped() == expected
    assert len(scene.guest.received) == len(BAD_MESSAGES)


async def test_a_repeated_message_is_refused_on_every_channel(scene: Scene) -> None:
    shell, control = scene.raw.dealer(), scene.raw.dealer("control")
    request = scene.raw.request(code="once")
    shell.send_multipart(request)
    await receive(shell)
    shell.send_multipart(request)
    control.send_multipart(request)
    await scene.until_dropped(client__replayed=2)
    assert len(scene.guest.received) == 1


async def test_heartbeat_echoes_bounded_messages(scene: Scene) -> None:
    beat = scene.raw.dealer("hb")
    beat.send_multipart([b"", b"x" * 10_000])
    beat.send_multipart([b"", b"ping"])
    assert await receive(beat) == [b"", b"ping"]
    await scene.until_dropped(client__heartbeat_too_long=1)


async def test_subscribers_that_are_not(scene: Scene) -> None:
    socket = scene.raw.context.socket(zmq.XSUB)
    socket.linger = 0
    socket.connect(f"tcp://127.0.0.1:{scene.raw.ports['iopub']}")
    socket.send(b"\x07 what?")
    socket.send(b"\x01" + b"x" * 5_000)
    await scene.until_dropped(client__not_a_subscription=2)


async def test_every_subscriber_is_welcomed_when_the_kernel_does_so(scene: Scene) -> None:
    early = scene.raw.listener()
    await asyncio.sleep(0.2)
    scene.guest.ready(welcome=True)
    message = scene.raw.read(await receive(early))
    assert message["msg_type"] == "iopub_welcome"
    assert message["content"] == {"subscription": ""}
    late = scene.raw.listener()
    assert scene.raw.read(await receive(late))["msg_type"] == "iopub_welcome"
    narrow = scene.raw.listener(b"stream.")
    parts = await receive(narrow)
    assert parts[0] == b"stream."
    assert scene.raw.read(parts)["content"] == {"subscription": "stream."}


async def test_no_welcome_from_a_kernel_that_does_not(scene: Scene) -> None:
    scene.guest.ready(welcome=False)

    async def ready() -> bool:
        return bool((await scene.status())["guest"] == "ready")

    assert await soon(ready)
    listener = scene.raw.listener()
    while not listener.poll(0):  # until it has subscribed
        scene.guest.publish(output(1, 10))
        await asyncio.sleep(0.02)
    scene.guest.publish(output(2, 10))
    found = 0
    while found != 2:
        found = number_of(await receive(listener))  # a welcome has no number
        assert found in (1, 2)


async def test_replies_go_to_who_asked_and_output_to_all(scene: Scene) -> None:
    first, second = scene.raw.dealer(), scene.raw.dealer()
    listeners = [scene.raw.listener(), scene.raw.listener()]
    requests = [scene.raw.request(code=str(index)) for index in range(2)]
    first.send_multipart(requests[0])
    second.send_multipart(requests[1])
    assert await receive(first) == requests[0]
    assert await receive(second) == requests[1]
    await scene.guest.ready_for(*listeners)
    scene.guest.publish(output(7, 10))
    found = [await asyncio.to_thread(published, listener) for listener in listeners]
    assert [number_of(parts) for parts in found] == [7, 7]


async def test_a_client_that_comes_back_takes_over_its_identity(scene: Scene) -> None:
    first = scene.raw.dealer(identity=b"me")
    request = scene.raw.request(code="1")
    first.send_multipart(request)
    await receive(first)
    second = scene.raw.dealer(identity=b"me")
    other = scene.raw.request(code="2")
    second.send_multipart(other)
    assert await receive(second) == other


async def test_reply_to_a_client_that_is_gone_is_dropped(scene: Scene) -> None:
    body = scene.raw.request(code="1")
    scene.guest.send(Channel.SHELL, [b"nobody", *body])
    scene.guest.send(Channel.SHELL, body)
    await scene.until_dropped(to_client__gone=1, guest__no_identity=1)


def memory_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(pid)


async def test_a_stuck_subscriber_costs_others_neither_output_nor_much_time(scene: Scene) -> None:
    pid = await scene.world.bridge_pid()
    stuck = scene.raw.listener(rcvhwm=1, rcvbuf=4_096)
    healthy = scene.raw.listener(rcvhwm=0)
    await scene.guest.ready_for(stuck, healthy)
    before, count = memory_bytes(pid), 20_000
    start = time.monotonic()
    publisher = asyncio.to_thread(scene.guest.publish, *(output(i, 2_000) for i in range(count)))
    publishing = asyncio.ensure_future(publisher)

    def read() -> list[int]:
        return [number_of(published(healthy)) for _ in range(count)]

    assert await asyncio.to_thread(read) == list(range(count))
    await publishing
    assert time.monotonic() - start < 20
    assert (await scene.dropped())["to_client.stuck"] > 0
    assert memory_bytes(pid) - before < 64 << 20
    stuck.close()


async def test_large_outputs_for_a_stuck_subscriber_are_bounded(scene: Scene) -> None:
    pid = await scene.world.bridge_pid()
    stuck = scene.raw.listener(rcvhwm=1, rcvbuf=4_096)
    await scene.guest.ready_for(stuck)
    before = memory_bytes(pid)
    big = output(0, 20_000_000)

    def publish() -> None:
        for _ in range(15):
            scene.guest.publish(big)
            time.sleep(0.05)

    await asyncio.to_thread(publish)
    for _ in range(200):
        if "to_client.too_much_unsent" in await scene.dropped():
            break
        await asyncio.sleep(0.1)
    assert (await scene.dropped())["to_client.too_much_unsent"] > 0
    assert memory_bytes(pid) - before < 400 << 20
    stuck.close()


async def test_a_guest_that_does_not_read_holds_clients_back_but_not_control(scene: Scene) -> None:
    pid = await scene.world.bridge_pid()
    link = scene.guest.guest.link
    acknowledge = link.acknowledge
    link.acknowledge = lambda message: (  # type: ignore[method-assign]
        None if message.channel is Channel.SHELL else acknowledge(message)
    )
    scene.guest.echo = False
    dealer, before = scene.raw.dealer(), memory_bytes(pid)
    dealer.sndhwm = 0

    def push() -> None:
        for index in range(200):
            dealer.send_multipart([*scene.raw.request(code=str(index)), b"x" * 1_000_000])

    await asyncio.to_thread(push)
    scene.guest.echo = True
    control, request = scene.raw.dealer("control"), scene.raw.request("interrupt_request")
    control.send_multipart(request)
    assert await receive(control) == request
    await asyncio.sleep(1)
    assert memory_bytes(pid) - before < 64 << 20


CLIENT = """
import sys, zmq
context = zmq.Context()
dealer, listener = context.socket(zmq.DEALER), context.socket(zmq.SUB)
dealer.connect(f"tcp://127.0.0.1:{sys.argv[1]}")
listener.connect(f"tcp://127.0.0.1:{sys.argv[2]}")
listener.subscribe(b"")
listener.recv()
print("x", flush=True)
input()
"""


async def test_killing_a_client_harms_nobody(scene: Scene) -> None:
    ports = scene.raw.ports
    argv = [sys.executable, "-c", CLIENT, str(ports["shell"]), str(ports["iopub"])]
    scene.guest.ready()
    client = subprocess.Popen(argv, stdout=subprocess.PIPE, stdin=subprocess.PIPE)  # noqa: ASYNC220
    assert client.stdout is not None
    assert client.stdin is not None
    await asyncio.to_thread(client.stdout.readline)
    client.send_signal(signal.SIGKILL)
    client.wait()
    client.stdout.close()
    client.stdin.close()
    listener = scene.raw.listener()
    await receive(listener)
    scene.guest.publish(*(output(index, 1_000) for index in range(3_000)))

    def read() -> list[int]:
        return [number_of(listener.recv_multipart()) for _ in range(3_000)]

    assert await asyncio.to_thread(read) == list(range(3_000))
    assert await scene.dropped() == {}
