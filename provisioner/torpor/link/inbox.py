"""The receiving half of one channel: reassembly, credit, and what is acknowledged."""

from __future__ import annotations

import struct

from .errors import LinkProtocolError
from .frames import FIRST, LAST, Frame
from .types import Buffer, Channel, Limits, Message

_ACK_MESSAGES = 128  # acknowledge at least this often even when nothing flows the other way
_HELD_MESSAGES = 1 << 17  # tiny messages cost more memory than their bytes
_U32 = struct.Struct(">I")


class Inbox:
    """Puts the messages of one channel together. Everything a peer claims is checked before it costs."""

    def __init__(self, channel: Channel, limits: Limits) -> None:
        self._channel = channel
        self._limits = limits
        self._window = limits.window_bytes[channel]
        self._whole: bytearray | None = None
        self._sizes: tuple[int, ...] = ()
        self._filled = 0
        self._got = 0
        self._held: dict[int, int] = {}
        self._done: set[int] = set()
        self._held_bytes = 0
        self._told = 0
        self.limit = 0
        self.expected = 0
        self.handled_next = 0

    def restart(self, expected: int | None = None) -> None:
        """Begin a session: drop a half-received message, give a full window."""
        if expected is not None:
            self.expected = self.handled_next = self._told = expected
            self._held.clear()
            self._done.clear()
            self._held_bytes = 0
        self._whole = None
        self._got = 0
        self.limit = self._window

    def receive(self, frame: Frame) -> Message | None:
        """Take one DATA frame; give the message it completes."""
        size = len(frame.payload)
        if frame.seq != self.expected:
            raise self._error(f"message {frame.seq}, expected {self.expected}")
        if frame.flags & ~(FIRST | LAST) or bool(frame.flags & FIRST) == (self._whole is not None):
            raise self._error(f"flags {frame.flags} out of order")
        if self._got + size > self.limit:
            raise self._error(f"{self._got + size} bytes, {self.limit} were allowed")
        self._got += size
        if frame.flags == FIRST | LAST:
            return self._complete(self._small(frame.payload), size)
        self._fill(frame)
        if not frame.flags & LAST:
            return None
        whole = self._whole
        assert whole is not None
        if self._filled != len(whole):
            raise self._error(f"ended after {self._filled} of {len(whole)} bytes")
        self._whole = None
        return self._complete(_split(memoryview(whole), self._sizes), len(whole))

    def _table(self, payload: memoryview) -> int:
        """Check the length table at the head of ``payload``; give where the parts start."""
        if len(payload) < _U32.size:
            raise self._error("no length table")
        count: int = _U32.unpack_from(payload)[0]
        if count > self._limits.max_parts:
            raise self._error(f"{count} parts, at most {self._limits.max_parts}")
        start: int = _U32.size * (count + 1)
        if len(payload) < start:
            raise self._error(f"length table of {count} parts cut short")
        self._sizes = struct.unpack_from(f">{count}I", payload, _U32.size)
        total = sum(self._sizes)
        if start + total > self._limits.max_message_bytes:
            raise self._error(f"message of {total} bytes")
        return start

    def _small(self, payload: memoryview) -> list[Buffer]:
        start = self._table(payload)
        if start + sum(self._sizes) != len(payload):
            raise self._error("lengths do not add up")
        parts: list[Buffer] = []
        for size in self._sizes:
            parts.append(bytes(payload[start : start + size]))
            start += size
        return parts

    def _fill(self, frame: Frame) -> None:
        payload = frame.payload
        if self._whole is None:
            payload = payload[self._table(payload) :]
            self._whole = bytearray(sum(self._sizes))
            self._filled = 0
        if self._filled + len(payload) > len(self._whole):
            raise self._error(f"more than the {len(self._whole)} bytes it announced")
        if not payload and not frame.flags & LAST and not frame.flags & FIRST:
            raise self._error("an empty frame in the middle")
        self._whole[self._filled : self._filled + len(payload)] = payload
        self._filled += len(payload)

    def _complete(self, parts: list[Buffer], size: int) -> Message:
        if len(self._held) >= _HELD_MESSAGES:
            raise self._error(f"more than {_HELD_MESSAGES} messages wait to be handled")
        seq = self.expected
        self.expected += 1
        self._held[seq] = size
        self._held_bytes += size
        return Message(self._channel, parts, seq)

    def handled(self, seq: int) -> None:
        """The application has handled message ``seq``; twice, or never received, is harmless."""
        size = self._held.pop(seq, None)
        if size is None:
            return
        self._held_bytes -= size
        self._done.add(seq)
        while self.handled_next in self._done:
            self._done.remove(self.handled_next)
            self.handled_next += 1

    @property
    def owes(self) -> bool:
        """Whether an acknowledgement would tell the peer anything."""
        return self._told != self.handled_next or self._may_grow

    @property
    def urgent(self) -> bool:
        """Whether the peer may be waiting for an acknowledgement."""
        return self._may_grow or self.handled_next - self._told >= _ACK_MESSAGES

    @property
    def _may_grow(self) -> bool:
        return self.limit - self._got <= self._window // 2 and self._held_bytes < self._window

    def tell(self) -> tuple[int, int]:
        """Give (first message not handled, bytes this session may send in all) for an ACK frame."""
        if self._may_grow:
            self.limit = self._got + self._window
        self._told = self.handled_next
        return self.handled_next, self.limit

    def _error(self, what: str) -> LinkProtocolError:
        return LinkProtocolError(f"{self._channel.name}: {what}")


def _split(view: memoryview, sizes: tuple[int, ...]) -> list[Buffer]:
    parts: list[Buffer] = []
    start = 0
    for size in sizes:
        parts.append(view[start : start + size])
        start += size
    return parts
