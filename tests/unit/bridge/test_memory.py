"""What is kept of a kernel: chosen, read, and applied; and when a kernel was last asked for something."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torpor.bridge.activity import Activity
from torpor.bridge.hold import idle_since
from torpor.bridge.memory import memory_of, newer, parse_marks, recall_asleep
from torpor.bridge.record import Record
from torpor.bridge.underway import Underway
from torpor.link import Channel, Link, Role


class Guest:
    state = "ready"

    def to_json(self) -> dict[str, Any]:
        return {"guest": self.state}

    def load(self, memory: dict[str, Any]) -> None:
        self.state = memory.get("guest", "unknown")


def kernel(folder: Path) -> Any:
    activity = Activity()
    activity.ready()
    parts = {"guest": Guest(), "activity": activity, "underway": Underway()}
    return SimpleNamespace(**parts, record=Record(folder, "k1"))


@pytest.mark.parametrize(
    ("recorded", "given", "chosen"),
    [
        ({}, {}, {}),
        ({"a": 1}, {}, {"a": 1}),
        ({}, {"a": 2}, {"a": 2}),
        ({"hold_id": "x", "a": 1}, {"hold_id": "x", "a": 2}, {"hold_id": "x", "a": 1}),
        ({"hold_id": "x"}, {"hold_id": "y"}, {"hold_id": "y"}),
        ({"hold_id": "", "a": 1}, {"hold_id": "", "a": 2}, {"hold_id": "", "a": 2}),
    ],
)
def test_the_record_counts_for_the_same_hold_only(
    recorded: dict[str, Any], given: dict[str, Any], chosen: dict[str, Any]
) -> None:
    assert newer(recorded, given) == chosen


@pytest.mark.parametrize(
    "odd", [None, 7, [], {}, {"SHELL": -1}, {"SHELL": True}, {"SHELL": 1 << 63}, {"SHELL": "3"}]
)
def test_marks_that_cannot_be_read_are_zero(odd: object) -> None:
    assert parse_marks(odd) == dict.fromkeys(Channel, 0)


def test_a_memory_survives_json_and_sets_everything_back(tmp_path: Path) -> None:
    subject = kernel(tmp_path)
    subject.activity.last_s = 1_000.5
    subject.record.begin(os.stat(tmp_path), resume=False)
    for channel in Channel:
        subject.record.handled(channel, 10 + channel)
    memory = json.loads(json.dumps(memory_of(subject, {"hold_id": "x"})))
    assert memory["idle_since"] == 1_000.5
    for channel in Channel:
        subject.record.handled(channel, 99)
    subject.underway.passed(b'{"msg_type": "execute_request", "msg_id": "a"}')
    recall_asleep(subject, memory)
    assert subject.record.remembered() == {channel: 10 + channel for channel in Channel}
    assert idle_since(subject) == 1_000.5
    assert subject.activity.state == "idle"
    recall_asleep(subject, {"idle_since": time.time() + 1e9})
    assert idle_since(subject) <= time.time()
    assert subject.record.remembered() == dict.fromkeys(Channel, 0)
    subject.record.close()
    subject = kernel(tmp_path / "..")  # a record that was lost
    subject.record.set_back({channel: 3 for channel in Channel})
    assert subject.record.begin(os.stat(tmp_path), resume=True, moved=True)
    assert subject.record.remembered() == dict.fromkeys(Channel, 3)
    subject.record.remove()


@pytest.mark.parametrize(
    ("header", "asked"),
    [
        (b'{"msg_type": "execute_request", "msg_id": "a"}', True),
        (b'{"msg_type": "debug_request", "msg_id": "a"}', True),
        (b'{"msg_type": "comm_msg", "msg_id": "a"}', True),
        (b'{"msg_type": "kernel_info_request", "msg_id": "a"}', False),
        (b'{"msg_type": "comm_info_request", "msg_id": "a"}', False),
    ],
)
def test_looking_is_no_activity(tmp_path: Path, header: bytes, asked: bool) -> None:
    subject = kernel(tmp_path)
    subject.activity.last_s = 5.0
    subject.underway.passed(header)
    assert (idle_since(subject) > 5.0) is asked
    subject.activity.state = "busy"
    assert idle_since(subject) > 5.0
    subject.record.remove()


def converse(host: Link, guest: Link) -> None:
    """Carry bytes until neither has more to say; a guest that refuses waits for another host."""
    while True:
        to_guest, to_host = host.data_to_send(), guest.data_to_send()
        if not to_guest and not to_host:
            return
        host.sent(sum(map(len, to_guest)))
        guest.sent(sum(map(len, to_host)))
        for end, buffers in ((guest, to_guest), (host, to_host)):
            try:
                end.receive_data(b"".join(bytes(one) for one in buffers))
            except Exception:
                assert end is guest


@pytest.mark.parametrize(
    ("mark", "heard"), [(0, [b"2"]), (1, [b"2"]), (2, [b"2"]), (3, []), (4, None)]
)
def test_marks_may_be_behind_a_snapshot_and_never_ahead(
    mark: int, heard: list[bytes] | None
) -> None:
    """A guest has said 0, 1 and 2, and has heard that 0 and 1 were handled."""
    guest, first = Link(Role.GUEST), Link(Role.HOST)
    first.connect()
    converse(first, guest)
    for number in range(3):
        guest.send(Channel.SHELL, [b"%d" % number])
    converse(first, guest)
    events = [first.next_event() for _ in range(4)]
    for message in events[1:3]:
        first.acknowledge(message)  # type: ignore[arg-type]
    first.flush()
    converse(first, guest)
    marks = {channel: mark if channel is Channel.SHELL else 0 for channel in Channel}
    second = Link(Role.HOST, handled=marks)
    second.connect()
    converse(second, guest)
    found = []
    opened = second.next_event()
    while (event := second.next_event()) is not None:
        found.append(bytes(event.parts[0]))  # type: ignore[union-attr]
    assert (found if opened is not None else None) == heard
