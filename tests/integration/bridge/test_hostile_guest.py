"""A guest that does its worst: the bridge stays up, bounded, and useful to everybody else."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import zmq
from torpor.link import Channel, QueueFull

from tests.integration.bridge.echo_guest import output
from tests.integration.bridge.harness import GUEST_KEY, World
from tests.integration.bridge.raw import Raw, client_side, number_of, zmq_context
from tests.integration.bridge.standin import Standin

GOOD = output(1, 10)


class Pair:
    """A bad guest ``k1`` and a good one ``k2`` behind the same bridge."""

    def __init__(self, world: World, guests: list[Standin], raws: list[Raw]) -> None:
        self.world = world
        self.bad, self.good = guests
        self.bad_raw, self.good_raw = raws

    async def dropped(self, reason: str) -> int:
        status = await self.world.bridge.call("status", kernel_id="k1")
        return int(status["counters"].get(f"dropped.{reason}", 0))

    async def until_dropped(self, reason: str, count: int) -> None:
        for _ in range(200):
            if await self.dropped(reason) >= count:
                return
            await asyncio.sleep(0.05)
        raise AssertionError(await self.world.bridge.call("status", kernel_id="k1"))

    async def neighbour_answers(self) -> float:
        """Give the seconds of a round trip through the good kernel."""
        dealer = self.good_raw.dealer()
        request = self.good_raw.request(code="1")
        start = time.monotonic()
        dealer.send_multipart(request)
        assert await asyncio.to_thread(dealer.recv_multipart) == request
        return time.monotonic() - start


@pytest_asyncio.fixture
async def pair(world: World, tmp_path: Path) -> AsyncIterator[Pair]:
    guests = [Standin(tmp_path / "g1"), Standin(tmp_path / "g2")]
    world.sandboxes += guests  # type: ignore[arg-type]
    with zmq_context() as context:
        raws = []
        for kernel_id, guest in zip(("k1", "k2"), guests, strict=True):
            opened = await world.bridge.call(
                "open",
                kernel_id=kernel_id,
                client=client_side(),
                guest_key=GUEST_KEY,
                **guest.fifos,
            )
            raws.append(Raw(context, opened["ports"]))
        yield Pair(world, guests, raws)


def with_header(header: bytes) -> list[bytes]:
    return [*GOOD[:3], header, *GOOD[4:]]


BAD_OUTPUT = (
    ("no_delimiter", [b""] * 4_096),
    ("no_delimiter", [b"x" * 1_000_000]),
    ("no_delimiter", [b"t"] * 9 + GOOD[1:]),
    ("too_few_parts", GOOD[:5]),
    ("not_json", with_header(b"")),
    ("not_json", with_header(b"{")),
    ("not_json", with_header(b"\xff\xfe{}")),
    ("not_json", with_header(b'{"msg_type": "stream"} x')),
    ("not_json", with_header(b'{"a":' * 3_000)),
    ("not_json", with_header(b"[" * 16_000)),
    ("not_an_object", with_header(b"[]")),
    ("not_an_object", with_header(b"null")),
    ("no_msg_type", with_header(b"{}")),
    ("no_msg_type", with_header(b'{"msg_type": 7}')),
    ("no_msg_type", with_header(b'{"msg_type": "stream"}')),
    ("not_an_object", [*GOOD[:4], b"[]", *GOOD[5:]]),
    ("not_an_object", [*GOOD[:6], b"7"]),
    ("not_an_object", [*GOOD[:6], b""]),
    ("json_too_long", with_header(b'{"msg_type": "' + b"x" * 20_000 + b'"}')),
)


async def test_malformed_output_is_dropped_and_counted(pair: Pair) -> None:
    listener = pair.bad_raw.listener()
    await pair.bad.ready_for(listener)
    for number, (_, parts) in enumerate(BAD_OUTPUT):
        pair.bad.publish(parts, output(number, 10))
        assert number_of(await asyncio.to_thread(listener.recv_multipart)) == number
    for reason, count in Counter(reason for reason, _ in BAD_OUTPUT).items():
        assert (reason, await pair.dropped(f"guest.{reason}")) == (reason, count)


BAD_RPC = (
    ("not_json", b"hello"),
    ("not_an_object", b"7"),
    ("rpc_shape", b"{}"),
    ("rpc_shape", b'{"id": "1"}'),
    ("unknown_event", b'{"event": "boo"}'),
    ("unknown_event", b'{"event": ["ready"]}'),
    ("json_too_long", b'{"event": "' + b"x" * 300_000 + b'"}'),
)


async def test_malformed_rpc_is_dropped_and_counted(pair: Pair) -> None:
    for _, body in BAD_RPC:
        pair.bad.send(Channel.RPC, [body])
    for reason, count in Counter(reason for reason, _ in BAD_RPC).items():
        await pair.until_dropped(f"guest.{reason}", count)
    result = await pair.world.bridge.call("rpc", kernel_id="k1", method="status", params={})
    assert result["state"] == "ready"


async def test_lies_about_types_in_events_do_no_harm(pair: Pair) -> None:
    pair.bad.event(event="ready", generation="x", kernel_info=[1], iopub_welcome="yes")
    pair.bad.event(event="exited", generation=1 << 80, exit_code=True, stderr_tail=["x"])
    pair.bad.event(event="failed", reason=7, message={"a": 1}, stderr_tail="x" * 200_000)
    await pair.world.event("k1", "failed", failing=False)
    status = await pair.world.bridge.call("status", kernel_id="k1")
    assert status["failure"] == {"reason": "", "message": ""}
    assert (status["generation"], status["exit_code"], status["kernel_info"]) == (0, None, None)
    assert len(status["stderr_tail"]) == 65_536


async def test_a_flood_of_events_is_rationed(pair: Pair) -> None:
    for _ in range(5_000):
        pair.bad.event(event="heartbeat", beating=True)
    await pair.until_dropped("guest.too_many_events", 4_000)
    assert min([await pair.neighbour_answers() for _ in range(5)]) < 1


async def test_garbage_on_the_link_ends_that_link_only(pair: Pair) -> None:
    await pair.neighbour_answers()
    await pair.world.bridge.call("rpc", kernel_id="k1", method="status", params={})
    pair.bad.scribble(os.urandom(4_096) + b"\xff" * 64)
    async with asyncio.timeout(5):
        async for event in pair.world.bridge.events():
            if event["event"] == "link_failed":
                assert event["kernel_id"] == "k1"
                break
    status = await pair.world.bridge.call("status", kernel_id="k1")
    assert status["link"] == "failed"
    assert status["link_error"]
    beat = pair.bad_raw.dealer("hb")
    beat.send_multipart([b"", b"ping"])
    beat.rcvtimeo = 300
    with pytest.raises(zmq.Again):
        await asyncio.to_thread(beat.recv_multipart)
    await pair.neighbour_answers()


async def test_a_flood_of_output_leaves_room_for_others(pair: Pair) -> None:
    listener = pair.bad_raw.listener(rcvhwm=0)
    await asyncio.sleep(0.2)
    stop = False

    def flood() -> None:
        while not stop:
            with contextlib.suppress(QueueFull):
                for _ in range(200):
                    pair.bad.publish(output(1, 10))
            time.sleep(0.001)

    flooding = asyncio.ensure_future(asyncio.to_thread(flood))
    try:
        await asyncio.to_thread(listener.recv_multipart)
        assert sorted([await pair.neighbour_answers() for _ in range(20)])[10] < 0.5
    finally:
        stop = True
        await flooding


async def test_a_flood_of_stderr_is_read_slowly_and_kept_short(pair: Pair) -> None:
    fd = os.open(pair.bad.fifos["fifo_err"], os.O_RDWR | os.O_NONBLOCK)
    written = 0
    try:
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            with contextlib.suppress(BlockingIOError):
                written += os.write(fd, b"stderr " * 1_000)
            await asyncio.sleep(0)
    finally:
        os.close(fd)
    assert written < 300_000
    status = await pair.world.bridge.call("status", kernel_id="k1")
    assert "stderr" in status["guest_stderr"]
    assert len(status["guest_stderr"]) <= 16_384


async def test_replies_cannot_reach_clients_of_another_kernel(pair: Pair) -> None:
    victim = pair.good_raw.dealer(identity=b"victim")
    request = pair.good_raw.request(code="1")
    victim.send_multipart(request)
    await asyncio.to_thread(victim.recv_multipart)
    pair.bad.send(Channel.SHELL, [b"victim", *pair.good_raw.request(code="evil")])
    await pair.until_dropped("to_client.gone", 1)
    victim.rcvtimeo = 200
    with pytest.raises(zmq.Again):
        await asyncio.to_thread(victim.recv_multipart)


async def test_status_messages_of_any_shape(pair: Pair) -> None:
    listener = pair.bad_raw.listener()
    await pair.bad.ready_for(listener)
    header = json.dumps({"msg_type": "status", "msg_id": "x"}).encode()
    for content in (b"{7}", b"{}", b'{"execution_state": 1}', b'{"execution_state": "x"}', b"{ }"):
        pair.bad.publish([*GOOD[:3], header, b' {"msg_type": 5}\n', b"{}", content])
    pair.bad.publish([*GOOD[:3], header, b"{7}", b"{}", b'{"execution_state": "busy"}'])
    pair.bad.publish([*GOOD[:3], header, b"{}", b"{}", b'{"execution_state": "busy"}'])
    for _ in range(7):
        await asyncio.to_thread(listener.recv_multipart)
    status = await pair.world.bridge.call("status", kernel_id="k1")
    assert status["execution_state"] == "busy"
