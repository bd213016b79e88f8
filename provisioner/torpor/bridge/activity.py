"""Whether a kernel is busy, and since when: read off its iopub as jupyter_server does."""

from __future__ import annotations

import time
from collections.abc import Sequence

from torpor.bridge.messages import (
    MAX_HEADER_BYTES,
    MAX_STATUS_BYTES,
    PRESENCE,
    STATES,
    Malformed,
    parse_object,
)
from torpor.bridge.signing import Part


class Activity:
    """State and last activity of one kernel; what merely looked at it changes neither."""

    __slots__ = ("last_s", "state")

    def __init__(self) -> None:
        self.state = "starting"
        self.last_s = time.time()

    def starting(self) -> None:
        """A (new) kernel process is being started, or the old one is gone."""
        self.state = "starting"
        self.last_s = time.time()

    def ready(self) -> None:
        """The kernel has answered; it is idle unless it said otherwise."""
        if self.state == "starting":
            self.state = "idle"

    def resumed(self, *, busy: bool, known: bool) -> None:
        """Take over what a bridge process before this one had seen of a kernel that was ready."""
        if known:
            self.state = "busy" if busy else "idle"

    def observe(self, kind: str, body: Sequence[Part]) -> tuple[str, str] | None:
        """Take note of one iopub message: its type and its four unchecked JSON parts.

        Gives, of a status, what it says and the id of the message that it is about.
        """
        if kind != "status":
            self.last_s = time.time()
            return None
        try:
            state = parse_object(body[3], MAX_STATUS_BYTES).get("execution_state")
            parent = parse_object(body[1], MAX_HEADER_BYTES)
        except Malformed:
            return None
        if not isinstance(state, str) or state not in STATES:
            return None
        cause, ident = parent.get("msg_type"), parent.get("msg_id")
        if cause not in PRESENCE if isinstance(cause, str) else True:
            self.state = state
            self.last_s = time.time()
        elif self.state == "starting" and state != "starting":
            self.state = "idle"
        return (state, ident) if isinstance(ident, str) else None
