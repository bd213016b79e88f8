"""The sending half of one channel: what is queued, what may go, what must be kept until acknowledged."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Sequence

from .errors import LinkProtocolError, QueueFull
from .frames import FIRST, LAST, Kind, frame_header
from .types import Buffer, Channel, Limits

_JOIN_BYTES = 16 * 1024  # below this one copy is cheaper than many buffers


class _Outgoing:
    """A message as pieces (its length table first) and how far it has gone in this session."""

    __slots__ = ("offset", "piece", "pieces", "sent", "total")

    def __init__(self, pieces: Sequence[Buffer], total: int) -> None:
        self.pieces = pieces
        self.total = total
        self.rewind()

    def rewind(self) -> None:
        self.sent = self.piece = self.offset = 0

    def take(self, limit: int) -> list[Buffer]:
        """Give the next pieces, at most ``limit`` bytes, without copying."""
        taken: list[Buffer] = []
        while limit and self.piece < len(self.pieces):
            whole = self.pieces[self.piece]
            left = len(whole) - self.offset
            if left <= limit:
                taken.append(memoryview(whole)[self.offset :] if self.offset else whole)
                self.piece += 1
                self.offset = 0
                limit -= left
                self.sent += left
            else:
                taken.append(memoryview(whole)[self.offset : self.offset + limit])
                self.offset += limit
                self.sent += limit
                limit = 0
        return taken


class Outbox:
    """Numbered messages of one channel. A message is kept until the peer has acknowledged it."""

    def __init__(self, channel: Channel, limits: Limits) -> None:
        self._channel = channel
        self._limits = limits
        self._bound = limits.queue_bytes[channel]
        self._sent: deque[_Outgoing] = deque()
        self._waiting: deque[_Outgoing] = deque()
        self._limit = 0
        self._used = 0
        self._reached = 0
        self.base = 0
        self.kept_bytes = 0

    @property
    def next_seq(self) -> int:
        """The number of the first message that has not gone out whole in this session."""
        return self.base + len(self._sent)

    def can_push(self, nbytes: int) -> bool:
        """Say whether a message of ``nbytes`` fits the bound of the queue."""
        return self.kept_bytes + nbytes <= self._bound

    def push(self, parts: Sequence[Buffer]) -> None:
        """Queue a message. Raises QueueFull, with nothing queued; the parts must not change later."""
        flat = [part if isinstance(part, bytes) else memoryview(part).cast("B") for part in parts]
        sizes = [len(part) for part in flat]
        table = struct.pack(f">I{len(sizes)}I", len(sizes), *sizes)
        total = len(table) + sum(sizes)
        if len(sizes) > self._limits.max_parts or total > self._limits.max_message_bytes:
            raise QueueFull(
                f"a message of {len(sizes)} parts and {total} bytes: at most "
                f"{self._limits.max_parts} parts and {self._limits.max_message_bytes} bytes"
            )
        if not self.can_push(total):
            raise QueueFull(f"{self._channel.name}: {self.kept_bytes} bytes already wait")
        if total <= _JOIN_BYTES:
            self._waiting.append(_Outgoing((b"".join([table, *flat]),), total))
        else:
            self._waiting.append(_Outgoing((table, *flat), total))
        self.kept_bytes += total

    @property
    def ready(self) -> bool:
        """Whether a frame may go now: only whole frames go, so the credit must hold one."""
        if not self._waiting:
            return False
        message = self._waiting[0]
        frame = min(self._limits.max_frame_bytes, message.total - message.sent)
        return self._limit - self._used >= frame

    def next_frame(self) -> list[Buffer]:
        """Give the next frame as buffers; call only when ``ready``."""
        message = self._waiting[0]
        flags = 0 if message.sent else FIRST
        before = message.sent
        pieces = message.take(self._limits.max_frame_bytes)
        length = message.sent - before
        seq = self.next_seq
        if message.sent == message.total:
            flags |= LAST
            self._sent.append(self._waiting.popleft())
            self._reached = max(self._reached, seq + 1)
        self._used += length
        header = frame_header(Kind.DATA, self._channel, flags, seq, pieces, length)
        if length <= _JOIN_BYTES:
            return [b"".join([header, *pieces])]
        return [header, *pieces]

    def acknowledged(self, handled_next: int, limit: int) -> None:
        """Forget what the peer has handled; ``limit`` is the bytes this session may send in all."""
        if not self.base <= handled_next <= self.next_seq or limit < self._limit:
            raise LinkProtocolError(
                f"{self._channel.name}: acknowledges {handled_next} of {self.base}..{self.next_seq}"
                f" and allows {limit} bytes after {self._limit}"
            )
        while self.base < handled_next:
            self.kept_bytes -= self._sent.popleft().total
            self.base += 1
        self._limit = limit

    def restart(self, received_next: int | None, limit: int) -> None:
        """Begin a session: send again what the peer has not received (None: it does not know).

        What it has received but not acknowledged stays kept.
        """
        self._waiting.extendleft(reversed(self._sent))
        self._sent.clear()
        for message in self._waiting:
            message.rewind()
        received = self.base if received_next is None else received_next
        if not self.base <= received <= max(self._reached, self.base):
            raise LinkProtocolError(
                f"{self._channel.name}: the peer is at {received}, "
                f"we keep {self.base} and later and have sent up to {self._reached}"
            )
        for _ in range(received - self.base):
            self._sent.append(self._waiting.popleft())
        self._limit = limit
        self._used = 0

    def adopt(self, base: int, limit: int) -> None:
        """Take the numbering from the peer: this end is a new process that has sent nothing yet."""
        self.base = self._reached = base
        self.restart(None, limit)
