"""The receiving half of one channel: reassembly, credit, and what is acknowledged.

Everything a peer claims is checked before it costs anything. Memory of a channel is bounded: what was
received and not acknowledged stops the credit at one window, so at most one window more arrives, plus
the rest of one message: of at most ``max_message_bytes``, and no more than our own queue of the channel
would take, as small channels have no use for large messages. A message in the making grows as its bytes
come; room for what is only announced is never taken.
"""

from __future__ import annotations

import functools
import struct
from collections import deque

from .errors import LinkProtocolError
from .types import LENGTH_BYTES, MESSAGE_BYTES, Channel, Limits, Message, Opened, message_cost

_ACK_MESSAGES = 128  # acknowledge at least this often even when nothing flows the other way
_VIEW_BYTES = 4096  # a smaller part is copied out rather than keep a large message alive


@functools.lru_cache(maxsize=64)
def lengths_struct(parts: int) -> struct.Struct:
    """Give the layout of a table of ``parts`` lengths."""
    return struct.Struct(f"<{parts}I")


class Inbox:
    """Puts the messages of one channel together, in order, each once."""

    def __init__(self, channel: Channel, limits: Limits, events: deque[Opened | Message]) -> None:
        self.channel = channel
        self._frame = limits.max_frame_bytes
        self._most = min(limits.max_message_bytes, limits.queue_bytes[channel])
        self._max_parts = limits.max_parts
        self._window = limits.window_bytes[channel]
        self._half = self._window // 2
        self._events = events
        self._held: dict[int, int] = {}
        self._held_bytes = 0
        self._got = 0
        self._told = 0
        self._sizes: tuple[int, ...] = ()
        self._buffer = bytearray()
        self._left = self._total = 0  # bytes of the message in the making: due, and in all
        self.expected = 0
        self.handled_next = 0
        self._done: set[int] = set()
        self.limit = 0
        self.urgent = False

    def restart(self) -> None:
        """Begin a session: drop the message in the making, give what is left of the window."""
        self._sizes = ()
        self._buffer = bytearray()
        self._left = 0
        self._got = 0
        self.limit = max(0, self._window - self._held_bytes)
        self._told = self.handled_next
        self.urgent = False

    def adopt(self, expected: int) -> None:
        """Take the numbering from the peer: this end is a new process that has received nothing."""
        self.expected = self.handled_next = self._told = expected

    def whole(self, parts: int, seq: int, data: bytes, start: int, stop: int) -> None:
        """Take a message that came in one frame."""
        begin = start + LENGTH_BYTES * parts
        if seq != self.expected or self._left or not 0 < parts <= self._max_parts:
            raise self._refused(parts, seq)
        cost = message_cost(stop - begin, parts)
        got = self._got + cost
        if begin > stop or got > self.limit:
            raise self._refused(parts, seq)
        pieces: list[bytes | memoryview] = []
        end = begin
        for size in lengths_struct(parts).unpack_from(data, start):
            begin, end = end, end + size
            pieces.append(data[begin:end])
        if end != stop:
            raise LinkProtocolError(f"{self.channel.name}: lengths that do not add up")
        self._got = got
        self._complete(pieces, cost)

    def start(self, parts: int, seq: int, data: bytes, start: int, stop: int) -> None:
        """Take the table of lengths of a message that comes in chunks."""
        if seq != self.expected or self._left or not 0 < parts <= self._max_parts:
            raise self._refused(parts, seq)
        if stop - start != LENGTH_BYTES * parts:
            raise LinkProtocolError(f"{self.channel.name}: {stop - start} bytes of lengths")
        sizes = lengths_struct(parts).unpack_from(data, start)
        total = sum(sizes)
        whole = stop - start + total
        if not self._frame < whole <= self._most:
            raise LinkProtocolError(f"{self.channel.name}: a message of {whole} bytes in chunks")
        self._spend(message_cost(0, parts))
        self._sizes = sizes
        self._left = self._total = total

    def begin_chunk(self, parts: int, seq: int, length: int) -> bytearray:
        """Allow the next chunk of the message in the making; give where to append it."""
        if seq != self.expected or parts or length != min(self._left, self._frame):
            raise self._refused(parts, seq)
        if not length:
            raise LinkProtocolError(f"{self.channel.name}: a chunk of no message")
        self._spend(length)
        return self._buffer

    def end_chunk(self) -> None:
        """The chunk has come; complete the message when it was the last."""
        buffer, sizes = self._buffer, self._sizes
        self._left = self._total - len(buffer)
        if self._left:
            self._hurry()
            return
        self._sizes, self._buffer = (), bytearray()
        view = memoryview(buffer).toreadonly()
        pieces: list[bytes | memoryview] = []
        end = 0
        for size in sizes:
            begin, end = end, end + size
            piece = view[begin:end]
            pieces.append(piece if size >= _VIEW_BYTES else bytes(piece))
        self._complete(pieces, message_cost(end, len(sizes)))

    def handled(self, seq: int) -> None:
        """The application has handled message ``seq``; twice, or never received, is harmless."""
        cost = self._held.pop(seq, None)
        if cost is None:
            return
        self._held_bytes -= cost
        if seq == self.handled_next:
            self.handled_next = seq + 1
            if self._done:
                self._catch_up()
        else:
            self._done.add(seq)
            self._held_bytes += MESSAGE_BYTES  # so that remembering it stays bounded, too
        if self.handled_next - self._told >= _ACK_MESSAGES or self.limit - self._got <= self._half:
            self._hurry()

    def _catch_up(self) -> None:
        while self.handled_next in self._done:
            self._done.remove(self.handled_next)
            self._held_bytes -= MESSAGE_BYTES
            self.handled_next += 1

    @property
    def owes(self) -> bool:
        """Whether an acknowledgement would tell the peer anything."""
        return self._told != self.handled_next or self.urgent

    def tell(self) -> tuple[int, int]:
        """Give (first message not handled, bytes this session may send in all) for an ACK frame."""
        self.urgent = False
        self._told = self.handled_next
        self.limit = max(self.limit, self._allowed)
        return self._told, self.limit

    @property
    def _allowed(self) -> int:
        return self._got + max(0, self._window - self._held_bytes)

    def _hurry(self) -> None:
        """Ask for an ACK if the peer may run out of credit soon and would get a good deal more."""
        grows = (
            self.limit - self._got <= self._half and self._allowed - self.limit >= self._half // 2
        )
        if grows or self.handled_next - self._told >= _ACK_MESSAGES:
            self.urgent = True

    def _spend(self, nbytes: int) -> None:
        if self._got + nbytes > self.limit:
            raise LinkProtocolError(f"{self.channel.name}: {nbytes} bytes without credit")
        self._got += nbytes

    def _complete(self, pieces: list[bytes | memoryview], cost: int) -> None:
        seq = self.expected
        self.expected = seq + 1
        self._held[seq] = cost
        self._held_bytes += cost
        self._events.append(Message(self.channel, pieces, seq))

    def _refused(self, parts: int, seq: int) -> LinkProtocolError:
        return LinkProtocolError(
            f"{self.channel.name}: message {seq} of {parts} parts, expected {self.expected} of at most"
            f" {self._max_parts} ({self._left} bytes due, {self.limit - self._got} allowed)"
        )
