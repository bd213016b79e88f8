"""The small parts: requests, activity, records, what is in flight, the loop."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from torpor.bridge.activity import Activity
from torpor.bridge.inflight import InFlight, message_cost
from torpor.bridge.protocol import RequestError, parse_kernel_id, parse_number, parse_open
from torpor.bridge.reactor import READ, Reactor
from torpor.bridge.record import Record, remove_record
from torpor.link import Channel

PORTS = {"shell": 1, "iopub": 2, "stdin": 3, "control": 4, "hb": 5}
CLIENT = {"transport": "tcp", "ip": "127.0.0.1", "ports": PORTS, "key": "k", "signature_scheme": ""}
OPEN = {"kernel_id": "k1", "client": CLIENT, "guest_key": "g", "fifo_in": "/i", "fifo_out": "/o"}


def test_open_request_is_parsed_and_keeps_its_secrets() -> None:
    request = parse_open(OPEN)
    assert request.client.address("hb", 5) == "tcp://127.0.0.1:5"
    assert (request.resume, request.fifos.guest_stderr) == (False, None)
    assert request.client.signature_scheme == "hmac-sha256"
    assert "b'k'" not in repr(request)
    assert "b'g'" not in repr(request)
    ipc = parse_open(OPEN | {"client": CLIENT | {"transport": "ipc", "ip": "/tmp/x"}})
    assert ipc.client.address("hb", 5) == "ipc:///tmp/x-5"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel_id": "a/b"}, "kernel_id"),
        ({"kernel_id": ".."}, "kernel_id"),
        ({"kernel_id": 7}, "kernel_id"),
        ({"fifo_in": "relative"}, "fifo_in"),
        ({"fifo_out": "/a\0b"}, "fifo_out"),
        ({"guest_key": None}, "guest_key"),
        ({"client": CLIENT | {"ip": None}}, "ip"),
        ({"client": CLIENT | {"transport": "ipc", "ip": "x"}}, "ip"),
        ({"client": CLIENT | {"transport": "ipc", "ip": "/" + "x" * 120}}, "ip"),
        ({"client": CLIENT | {"ports": []}}, "ports"),
        ({"client": CLIENT | {"ports": PORTS | {"hb": True}}}, "hb"),
        ({"client": CLIENT | {"ports": PORTS | {"hb": 70_000}}}, "hb"),
        ({"client": CLIENT | {"curve_publickey": "x" * 40}}, "curve"),
        ({"client": CLIENT | {"curve_publickey": "x", "curve_secretkey": "y"}}, "curve"),
    ],
)
def test_bad_open_requests_name_the_field(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as refused:
        parse_open(OPEN | change)
    assert refused.value.code == "bad_request"


def test_numbers_and_names() -> None:
    assert parse_number({}, "n", 3.0, 10) == 3.0
    for bad in (0, -1, 11, "1", True, None):
        with pytest.raises(RequestError):
            parse_number({"n": bad}, "n", 3.0, 10)
    assert parse_kernel_id({"kernel_id": "0b5e-11_x.y"}) == "0b5e-11_x.y"


def status(activity: Activity, state: str, cause: str) -> str:
    parent = b'{"msg_type": "%s"}' % cause.encode() if cause else b"{}"
    activity.observe("status", [b"", parent, b"", b'{"execution_state": "%s"}' % state.encode()])
    return activity.state


def test_only_work_counts_as_activity() -> None:
    activity = Activity()
    assert status(activity, "busy", "kernel_info_request") == "idle"
    before = activity.last_s
    assert status(activity, "busy", "kernel_info_request") == "idle"
    assert activity.last_s == before
    assert status(activity, "busy", "execute_request") == "busy"
    assert status(activity, "idle", "comm_info_request") == "busy"
    assert activity.last_s > before
    assert status(activity, "idle", "execute_request") == "idle"
    assert status(activity, "starting", "") == "starting"
    assert status(activity, "nonsense", "execute_request") == "starting"


def test_record_survives_its_process(tmp_path: Path) -> None:
    (tmp_path / "fifo").touch()
    (tmp_path / "other").touch()
    fifo, other = (tmp_path / "fifo").stat(), (tmp_path / "other").stat()
    first = Record(tmp_path, "k")
    assert not first.begin(fifo, resume=True)
    first.handled(Channel.IOPUB, 7)
    first.subscribers = 3
    first.save_state({"guest": "ready"})
    second = Record(tmp_path, "k")  # the first was killed: nothing was closed
    assert second.begin(fifo, resume=True)
    assert second.remembered()[Channel.IOPUB] == 7
    assert (second.subscribers, second.load_state()) == (3, {"guest": "ready"})
    assert not second.begin(other, resume=True), "another sandbox has another history"
    assert second.remembered() == dict.fromkeys(Channel, 0)
    second.begin(fifo, resume=True)
    assert not second.begin(fifo, resume=False)
    second.close()
    second.close()
    first.remove()
    assert {path.name for path in tmp_path.iterdir()} == {"fifo", "other"}
    remove_record(tmp_path, "k")


def test_unreadable_state_is_no_state(tmp_path: Path) -> None:
    record = Record(tmp_path, "k")
    for text in ("", "[]", "{"):
        (tmp_path / "k.json").write_text(text)
        assert record.load_state() == {}
    record.remove()


def test_in_flight_counts_until_the_last_frame_is_released() -> None:
    ledger = InFlight(limit_bytes=1_000)
    assert ledger.admits(10_000), "one may always pass, however large"
    tracked = ledger.track([b"a", bytearray(5_000)], 5_200)
    assert (ledger.total_bytes, ledger.admits(1)) == (5_200, False)
    held = [tracked[-1]]
    del tracked
    assert ledger.total_bytes == 5_200
    held.clear()
    assert (ledger.total_bytes, ledger.admits(900)) == (0, True)
    assert message_cost([b"x" * 10, b""]) == 210


class Loop:
    """An owner that notes what was done to it."""

    def __init__(self) -> None:
        self.reactor = Reactor()
        self.seen: list[str] = []

    def crashed(self, exc: Exception) -> None:
        self.seen.append(f"crashed {exc}")

    def note(self, name: str) -> Any:
        return lambda: self.seen.append(name)


def test_timers_fire_in_order_and_can_be_cancelled() -> None:
    loop = Loop()
    loop.reactor.later(0.02, loop, loop.note("second"))
    loop.reactor.later(0.01, loop, loop.note("first"))
    cancelled = loop.reactor.later(0.0, loop, loop.note("never"))
    cancelled.cancel()
    cancelled.cancel()
    loop.reactor.soon(loop, loop.note("soon"))
    loop.reactor.later(0.03, loop, loop.reactor.stop)
    loop.reactor.run()
    loop.reactor.close()
    assert loop.seen == ["soon", "first", "second"]


def test_a_callback_that_fails_is_handed_to_its_owner() -> None:
    loop = Loop()

    def fail() -> None:
        raise RuntimeError("oops")

    loop.reactor.soon(loop, fail)
    loop.reactor.later(0.0, loop, fail)
    loop.reactor.later(0.01, loop, loop.reactor.stop)
    loop.reactor.run()
    loop.reactor.close()
    assert loop.seen == ["crashed oops", "crashed oops"]


def test_an_fd_unwatched_in_the_same_turn_is_not_called() -> None:
    loop = Loop()
    pipes = [os.pipe(), os.pipe()]

    def run(own: int, other: int) -> Any:
        def call() -> None:
            loop.seen.append("called")
            loop.reactor.unwatch(other)
            loop.reactor.unwatch(own)
            loop.reactor.unwatch(own)
            loop.reactor.stop()

        return call

    reads = [pipe[0] for pipe in pipes]
    for index, (read, write) in enumerate(pipes):
        os.write(write, b"x")
        loop.reactor.watch(read, READ, loop, run(read, reads[1 - index]))
    loop.reactor.run()
    loop.reactor.close()
    assert loop.seen == ["called"]
    for read, write in pipes:
        os.close(read)
        os.close(write)
