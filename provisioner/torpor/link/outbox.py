"""The sending half of one channel: what is queued, what may go, what is kept until acknowledged.

Frames are made only as far as credit and the caller's appetite go, and wait in ``ready`` until they are
written; a frame there may still be overtaken by another channel's. Small parts are joined (one copy is
cheaper than many buffers), large ones are sent from where they are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from .errors import LinkProtocolError, MessageTooLarge, QueueFull
from .frames import HEADER, frame_header, small_frame
from .inbox import lengths_struct
from .states import Event
from .types import LENGTH_BYTES, Buffer, Channel, Limits, message_cost

_JOIN_BYTES = 16 * 1024  # a message up to here becomes one piece of bytes
_PIECE_BYTES = 4096  # in a larger one, only parts from here on are left where they are
_HEADER_BYTES = HEADER.size
_WHOLE, _START, _CHUNK = int(Event.WHOLE), int(Event.START), int(Event.CHUNK)

Frame = tuple[int, list[Buffer]]  # bytes in all, and the buffers


class _Outgoing:
    """A message: ``pieces`` are its bytes, after its ``table`` of lengths unless that is in them."""

    __slots__ = ("cost", "count", "nbytes", "pieces", "table")

    def __init__(
        self, cost: int, count: int, nbytes: int, pieces: list[Buffer], table: bytes | None
    ) -> None:
        self.cost = cost
        self.count = count
        self.nbytes = nbytes
        self.pieces = pieces
        self.table = table


def _flat(part: Buffer) -> Buffer:
    """Give any contiguous buffer as a view of its bytes."""
    view = memoryview(part)
    return view.cast("B") if view.nbytes else b""  # an empty array of many dimensions has no cast


def _joined(parts: Sequence[Buffer]) -> list[Buffer]:
    """Give the same bytes with the small parts joined to their neighbours."""
    pieces: list[Buffer] = []
    run: list[Buffer] = []
    for part in parts:
        if len(part) < _PIECE_BYTES:
            run.append(part)
            continue
        if run:
            pieces.append(b"".join(run))
            run = []
        pieces.append(part)
    if run:
        pieces.append(b"".join(run))
    return pieces


class Outbox:
    """Numbered messages of one channel, each kept until the peer has acknowledged it."""

    def __init__(self, channel: Channel, limits: Limits) -> None:
        self.channel = channel
        self.ready: deque[Frame] = deque()
        self.base = 0
        self.pending_bytes = 0
        self._limits = limits
        self._frame = limits.max_frame_bytes
        self._parts = limits.max_parts
        self._bound = limits.queue_bytes[channel]
        self._most = limits.largest_bytes(channel)
        self.waiting: deque[_Outgoing] = deque()  # not, or not wholly, in frames in this session
        self._unacked: deque[_Outgoing] = deque()  # numbers base to next - 1
        self._next = 0
        self._reached = 0  # the highest ``_next`` of any session
        self._adopted = 0  # before it, an earlier process sent what the peer may still be handling
        self._limit = 0
        self._used = 0
        self._piece = self._offset = self._left = 0  # where ``waiting[0]`` is, when in chunks

    def fits(self, nbytes: int, parts: int) -> bool:
        """Say whether a message of ``nbytes`` in ``parts`` parts would be taken now."""
        if not self._limits.admit(self.channel, nbytes, parts):
            return False
        pending = self.pending_bytes  # an empty queue takes any message that it can hold
        return not pending or pending + message_cost(nbytes, parts) <= self._bound

    def push(self, parts: Sequence[Buffer]) -> None:
        """Queue a message; the parts must not change until it is acknowledged.

        Raises:
            MessageTooLarge: it can never be sent. Nothing was queued.
            QueueFull: it does not fit now. Nothing was queued.
        """
        flat = [part if type(part) is bytes else _flat(part) for part in parts]
        sizes = [len(part) for part in flat]
        total, count = sum(sizes), len(sizes)
        nbytes = total + LENGTH_BYTES * count
        cost = message_cost(total, count)
        if (
            self.pending_bytes + cost > self._bound
            or nbytes > self._most
            or not 0 < count <= self._parts
        ):
            self._refuse(total, count)
        table = lengths_struct(count).pack(*sizes)
        if nbytes <= _JOIN_BYTES and nbytes <= self._frame:
            message = _Outgoing(cost, count, nbytes, [b"".join((table, *flat))], None)
        elif nbytes <= self._frame:
            message = _Outgoing(cost, count, nbytes, _joined([table, *flat]), None)
        else:
            message = _Outgoing(cost, count, total, _joined(flat), table)
        self.waiting.append(message)
        self.pending_bytes += cost

    def _refuse(self, total: int, count: int) -> None:
        """Raise what ``push`` says, unless the queue is empty: it takes any message it can hold."""
        if not self._limits.admit(self.channel, total, count):
            raise MessageTooLarge(
                f"{self.channel.name}: a message of {count} parts and {total + LENGTH_BYTES * count} bytes;"
                f" 1 to {self._parts} parts and {self._most} bytes are possible"
            )
        if self.pending_bytes:
            raise QueueFull(f"{self.channel.name}: {self.pending_bytes} bytes already wait")

    def next_frame(self) -> Frame | None:
        """Make the next frame and append it to ``ready``; None when there is nothing or no credit."""
        if not self.waiting:
            return None
        message = self.waiting[0]
        if message.table is None:
            return self._whole(message)
        if self._left:
            return self._chunk(message)
        return self._start(message, message.table)

    def _whole(self, message: _Outgoing) -> Frame | None:
        used = self._used + message.cost
        if used > self._limit:
            return None
        self._used = used
        pieces, nbytes, seq = message.pieces, message.nbytes, self._next
        buffers: list[Buffer]
        if len(pieces) == 1 and type(pieces[0]) is bytes:
            buffers = [small_frame(_WHOLE, self.channel, message.count, seq, pieces[0])]
        else:
            header = frame_header(_WHOLE, self.channel, message.count, seq, pieces, nbytes)
            buffers = [header, *pieces]
        self._gone()
        return self._staged(nbytes, buffers)

    def _start(self, message: _Outgoing, table: bytes) -> Frame | None:
        cost = message.cost - message.nbytes
        if self._used + cost > self._limit:
            return None
        self._used += cost
        self._piece = self._offset = 0
        self._left = message.nbytes
        frame = small_frame(_START, self.channel, message.count, self._next, table)
        return self._staged(len(table), [frame])

    def _chunk(self, message: _Outgoing) -> Frame | None:
        length = min(self._left, self._frame)
        if self._used + length > self._limit:
            return None
        self._used += length
        pieces = self._take(message.pieces, length)
        header = frame_header(_CHUNK, self.channel, 0, self._next, pieces, length)
        self._left -= length
        if not self._left:
            self._gone()
        return self._staged(length, [header, *pieces])

    def _take(self, pieces: Sequence[Buffer], nbytes: int) -> list[Buffer]:
        """Give the next ``nbytes`` of ``pieces`` without copying."""
        taken: list[Buffer] = []
        while nbytes:
            view = memoryview(pieces[self._piece])[self._offset : self._offset + nbytes]
            taken.append(view)
            nbytes -= len(view)
            self._offset += len(view)
            if self._offset == len(pieces[self._piece]):
                self._piece += 1
                self._offset = 0
        return taken

    def _gone(self) -> None:
        """The first waiting message is in frames to its end."""
        self._unacked.append(self.waiting.popleft())
        self._next += 1
        if self._next > self._reached:
            self._reached = self._next

    def _staged(self, nbytes: int, buffers: list[Buffer]) -> Frame:
        frame = (_HEADER_BYTES + nbytes, buffers)
        self.ready.append(frame)
        return frame

    def acknowledged(self, handled_next: int, limit: int) -> None:
        """Forget what the peer has handled; ``limit`` is the bytes this session may send in all."""
        handled_next = max(handled_next, self._adopted)
        if not self.base <= handled_next <= self._next or limit < self._limit:
            raise LinkProtocolError(
                f"{self.channel.name}: acknowledges {handled_next} of {self.base} to {self._next},"
                f" allows {limit} bytes after {self._limit}"
            )
        for _ in range(handled_next - self.base):
            self.pending_bytes -= self._unacked.popleft().cost
        self.base = handled_next
        self._limit = limit

    def restart(self, received: int, handled: int, limit: int) -> None:
        """Begin a session with a peer that stands there.

        What it has received is kept until acknowledged, everything later is sent from its start.
        """
        handled = max(handled, min(received, self._adopted))
        if not self.base <= handled <= received <= self._reached:
            raise LinkProtocolError(
                f"{self.channel.name}: the peer has handled {handled} and received {received},"
                f" we keep {self.base} to {self._reached}"
            )
        self.drop_frames()
        self.waiting.extendleft(reversed(self._unacked))
        self._unacked.clear()
        for _ in range(handled - self.base):
            self.pending_bytes -= self.waiting.popleft().cost
        for _ in range(received - handled):
            self._unacked.append(self.waiting.popleft())
        self.base, self._next = handled, received
        self._limit, self._used = limit, 0

    def drop_frames(self) -> None:
        """Forget the frames that were made and not written; the messages stay."""
        self.ready.clear()
        self._left = 0

    def clear(self) -> None:
        """Forget every message."""
        self.drop_frames()
        self.waiting.clear()
        self._unacked.clear()
        self.pending_bytes = 0

    def adopt(self, base: int, limit: int) -> None:
        """Take the numbering from the peer: this end is a new process that has sent nothing."""
        self.base = self._next = self._reached = self._adopted = base
        self._limit, self._used = limit, 0
