"""What is known about a kernel that it will not say again, as JSON: who comes later takes it from here.

A bridge process leaves it in the record for the one that follows; the daemon gets it from ``hold`` and
keeps it with the snapshot that it then makes. Shape: ``Guest.to_json`` and ::

    {"seen": {…} | null,      comms and voice, from the last hold
     "marks": {"SHELL": 12},  per channel of the link, the first message not handed on
     "idle_since": 17….5,     seconds since 1970
     "debug_info": {…} | null,  the body of the last reply to debugInfo, if it still holds
     "hold_id": "9f…" | ""}   which hold; "" while awake

``marks`` say where the link stands in a snapshot made now. They may be behind the snapshot's, then what
the guest said in between is heard twice, but never ahead: then no guest would open the link.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from torpor.bridge.body import Subject
from torpor.bridge.hold import idle_since
from torpor.link import Channel

_MOST = 1 << 62


def memory_of(kernel: Subject, hibernation: Mapping[str, Any]) -> dict[str, Any]:
    """Give what is known now; ``hibernation`` says what it adds."""
    marks = {channel.name: number for channel, number in kernel.record.remembered().items()}
    known = {"idle_since": idle_since(kernel), "debug_info": kernel.underway.debug_info}
    return {**kernel.guest.to_json(), "marks": marks, **known, **hibernation}


def recall(kernel: Subject, memory: Mapping[str, Any], *, busy: bool) -> None:
    """Take over what an earlier process knew of a kernel that was awake."""
    kernel.guest.load(memory)
    kernel.activity.resumed(busy=busy, known=kernel.guest.state == "ready")


def recall_asleep(kernel: Subject, memory: Mapping[str, Any]) -> None:
    """Make a kernel what it was when it was put to sleep, its link included."""
    recall(kernel, memory, busy=False)
    kernel.record.set_back(parse_marks(memory.get("marks")))
    since = memory.get("idle_since")
    if isinstance(since, int | float) and not isinstance(since, bool):
        kernel.activity.last_s = min(float(since), time.time())
    kernel.underway.asked_s = 0.0
    debug_info = memory.get("debug_info")
    kernel.underway.debug_info = debug_info if isinstance(debug_info, dict) else None


def newer(recorded: Mapping[str, Any], given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Choose between what was recorded last and what came with a snapshot.

    Of the same hold the record knows more; else it is about something else than the snapshot.
    """
    same = recorded.get("hold_id") and recorded.get("hold_id") == given.get("hold_id")
    return recorded if same or not given else given


def parse_marks(given: object) -> dict[Channel, int]:
    """Read ``marks``. With 0, also in place of what cannot be read, the guest's memory decides."""
    marks = given if isinstance(given, Mapping) else {}
    found = {channel: marks.get(channel.name) for channel in Channel}
    return {c: n if type(n) is int and 0 <= n < _MOST else 0 for c, n in found.items()}
