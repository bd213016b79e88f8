"""How many bytes of large messages libzmq still holds for slow clients.

libzmq's high-water mark counts messages, and a message here may have a gigabyte. So only messages that
cost less than ``SMALL_BYTES`` are left to it: 10,000 of them, 80 MB for each stuck client. What is
larger is shared with libzmq instead of copied, and counted here for all endpoints of a kernel together.

libzmq gives back the frames of a message in order, from another thread, by dropping the reference pyzmq
keeps for it. So a weak reference to the last frame tells when the whole message is gone. (pyzmq's
``MessageTracker`` says the same for 20 µs a message; this costs one.)
"""

from __future__ import annotations

import itertools
import weakref
from collections import deque
from collections.abc import Sequence

from torpor.bridge.signing import Part

SMALL_BYTES = 8_192
PART_BYTES = 100  # what libzmq needs for a frame besides its content
LIMIT_BYTES = 256 << 20


def message_cost(parts: Sequence[Part]) -> int:
    """Give about the bytes that a queued message takes."""
    return sum(map(len, parts)) + PART_BYTES * len(parts)


class InFlight:
    """The large messages of one kernel that some client has not received yet."""

    __slots__ = ("_freed", "_keys", "_limit_bytes", "_refs", "_total_bytes")

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._refs: dict[int, weakref.ref[memoryview]] = {}
        self._keys = itertools.count()
        self._freed: deque[int] = deque()  # filled by pyzmq's thread
        self._total_bytes = 0

    @property
    def total_bytes(self) -> int:
        """The cost of everything that is still held."""
        while self._freed:
            self._total_bytes -= self._freed.popleft()
        return self._total_bytes

    def admits(self, cost: int) -> bool:
        """Say whether a message may be queued. One always may, however large."""
        total = self.total_bytes
        return total == 0 or total + cost <= self._limit_bytes

    def track(self, parts: Sequence[Part], cost: int) -> list[Part]:
        """Give ``parts`` with a last frame that, once released, takes ``cost`` off again."""
        *others, last = parts
        view = memoryview(last)
        key = next(self._keys)

        def released(_: object) -> None:
            del self._refs[key]
            self._freed.append(cost)

        self._refs[key] = weakref.ref(view, released)
        self._total_bytes += cost
        return [*others, view]
