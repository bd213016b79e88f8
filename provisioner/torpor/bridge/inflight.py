"""How many bytes of large frames libzmq still holds for slow clients.

libzmq's high-water mark counts messages, and a message here may have a gigabyte. Small frames are
copied, so a thousand queued messages stay below 64 MiB for each client; large ones are shared,
tracked, and counted here for all endpoints of a kernel together.
"""

from __future__ import annotations

from collections.abc import Sequence

import zmq

from torpor.bridge.signing import Part
from torpor.bridge.sockets import COPY_BYTES

LIMIT_BYTES = 256 << 20


def large_bytes(parts: Sequence[Part]) -> int:
    """Give the bytes of the frames that would be shared instead of copied (0 for most messages)."""
    return sum(size for size in map(len, parts) if size >= COPY_BYTES)


class InFlight:
    """The large messages of one kernel that some client has not received yet."""

    __slots__ = ("_entries", "_limit_bytes", "total_bytes")

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._entries: list[tuple[list[zmq.MessageTracker], int]] = []
        self.total_bytes = 0

    def admits(self, nbytes: int) -> bool:
        """Say whether ``nbytes`` more may be queued. One message always may, however large."""
        if self.total_bytes + nbytes > self._limit_bytes:
            self._forget_sent()
        return not self._entries or self.total_bytes + nbytes <= self._limit_bytes

    def add(self, trackers: list[zmq.MessageTracker], nbytes: int) -> None:
        """Count a message that was just queued."""
        self._entries.append((trackers, nbytes))
        self.total_bytes += nbytes
        if self.total_bytes > self._limit_bytes // 2 or len(self._entries) > 256:
            self._forget_sent()

    def _forget_sent(self) -> None:
        self._entries = [
            entry for entry in self._entries if not all(tracker.done for tracker in entry[0])
        ]
        self.total_bytes = sum(nbytes for _, nbytes in self._entries)
