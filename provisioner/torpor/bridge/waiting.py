"""Clients' messages that wait for their kernel: in order, and bounded for all channels together."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from torpor.bridge.inflight import message_cost
from torpor.bridge.signing import Part
from torpor.link import Channel

ROUTED = (Channel.CONTROL, Channel.SHELL, Channel.STDIN)
LIMIT_BYTES = 64 << 20
LIMIT_MESSAGES = 10_000

Entry = tuple[list[Part], int]  # an admitted message, and the index of its delimiter


class Waiting:
    """What was taken from the sockets and not passed on. It never refuses: ask ``full`` before."""

    def __init__(
        self, limit_bytes: int = LIMIT_BYTES, limit_messages: int = LIMIT_MESSAGES
    ) -> None:
        self._limit_bytes = limit_bytes
        self._limit_messages = limit_messages
        self._queues: dict[Channel, deque[Entry]] = {channel: deque() for channel in ROUTED}
        self._bytes = 0
        self._messages = 0

    def __len__(self) -> int:
        return self._messages

    def holds(self, channel: Channel) -> bool:
        """Say whether something waits on ``channel``."""
        return bool(self._queues[channel])

    def full(self, channel: Channel) -> bool:
        """Say whether nothing more should be taken from ``channel``'s clients.

        A channel on which nothing waits may always take one, so that what needs no waiting is seen
        on control while shell is full: the bounds are exceeded by at most one message per channel.
        """
        over = self._bytes >= self._limit_bytes or self._messages >= self._limit_messages
        return over and bool(self._queues[channel])

    def push(self, channel: Channel, parts: list[Part], cut: int) -> None:
        """Add the last message of ``channel``."""
        self._queues[channel].append((parts, cut))
        self._count(1, parts)

    def pop(self, channel: Channel) -> Entry:
        """Take the first message of ``channel``. Raises IndexError if none waits."""
        entry = self._queues[channel].popleft()
        self._count(-1, entry[0])
        return entry

    def put_back(self, channel: Channel, entry: Entry) -> None:
        """Make the message that was just popped the first again."""
        self._queues[channel].appendleft(entry)
        self._count(1, entry[0])

    def take_all(self) -> list[tuple[Channel, Entry]]:
        """Empty it; give everything, each channel in order."""
        found = [(channel, entry) for channel, queue in self._queues.items() for entry in queue]
        for queue in self._queues.values():
            queue.clear()
        self._bytes = self._messages = 0
        return found

    def drop(self, channel: Channel) -> int:
        """Forget what waits on ``channel``; give how many messages that were."""
        dropped = 0
        while self._queues[channel]:
            self.pop(channel)
            dropped += 1
        return dropped

    def _count(self, change: int, parts: Sequence[Part]) -> None:
        self._messages += change
        self._bytes += change * message_cost(parts)
