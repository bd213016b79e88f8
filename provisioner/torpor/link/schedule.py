"""Which bytes go next: the frames of all channels in one order, without ever copying them.

Only a frame whose first byte was written has to be finished. Every other one stays with its channel, so
the order is made anew each time: a control message that comes while output is waiting goes before it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from .outbox import Frame, Outbox
from .types import Buffer

_MAX_BUFFERS = 1000  # writev takes at most 1024


class Schedule:
    """The frames of a link in the order of writing."""

    def __init__(self, outboxes: Sequence[Outbox]) -> None:
        self.urgent: deque[Frame] = deque()  # goes before every channel
        self._outboxes = outboxes
        self._plan: list[tuple[deque[Frame], int, list[Buffer]]] = []
        self._rest: list[Buffer] = []  # of a frame that is partly written

    @property
    def busy(self) -> bool:
        """Whether some channel has something to send, be it only for want of credit."""
        if self._rest:
            return True
        for outbox in self._outboxes:  # noqa: SIM110 (runs for every small message)
            if outbox.waiting or outbox.ready:
                return True
        return False

    def peek(self, max_bytes: int, *, channels: bool) -> list[Buffer]:
        """Give whole frames until ``max_bytes`` are reached; without ``channels`` only urgent ones."""
        buffers = list(self._rest)
        room = max_bytes - sum(map(len, buffers))
        plan = self._plan = []
        for frame in self.urgent:
            plan.append((self.urgent, *frame))
            buffers += frame[1]
            room -= frame[0]
        if not channels:
            return buffers
        for outbox in self._outboxes:
            ready = outbox.ready
            if not ready and not outbox.waiting:
                continue
            for frame in ready:
                if room <= 0 or len(buffers) >= _MAX_BUFFERS:
                    return buffers
                plan.append((ready, *frame))
                buffers += frame[1]
                room -= frame[0]
            while room > 0 and len(buffers) < _MAX_BUFFERS and (made := outbox.next_frame()):
                plan.append((ready, *made))
                buffers += made[1]
                room -= made[0]
        return buffers

    def sent(self, nbytes: int) -> None:
        """The first ``nbytes`` of the last ``peek`` were written.

        Raises:
            ValueError: those were fewer.
        """
        if self._rest:
            nbytes, self._rest = _cut(self._rest, nbytes)
        for queue, size, buffers in self._plan:
            if not nbytes:
                break
            queue.popleft()
            if nbytes < size:
                nbytes, self._rest = _cut(buffers, nbytes)
            else:
                nbytes -= size
        self._plan = []
        if nbytes:
            raise ValueError(f"{nbytes} bytes more were written than there were")

    def reset(self) -> None:
        """Forget every frame, also the one that is partly written."""
        self.urgent.clear()
        self._plan = []
        self._rest = []
        for outbox in self._outboxes:
            outbox.drop_frames()


def _cut(buffers: list[Buffer], nbytes: int) -> tuple[int, list[Buffer]]:
    """Give how many of ``nbytes`` remain after ``buffers``, and what of these remains."""
    for index, buffer in enumerate(buffers):
        if nbytes < len(buffer):
            return 0, [memoryview(buffer)[nbytes:], *buffers[index + 1 :]]
        nbytes -= len(buffer)
    return nbytes, []
