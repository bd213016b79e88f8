"""Cuts a byte stream into checked frames.

Strategy: a frame that lies whole in what was fed is handled in place. One that does not is gathered in
a buffer bounded by the frame limit, except that the payload of a CHUNK is appended to the message it
belongs to as it comes, so that the bytes of a large message are copied once. After an error what is
skipped is the header when that was wrong, else the whole frame: nothing that a frame carries is ever
taken for a marker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol
from zlib import crc32

from .errors import LinkProtocolError
from .frames import CHECK, CRC_BYTES, HEADER
from .states import Event

_HEADER_BYTES = HEADER.size
_BLANK = bytes(_HEADER_BYTES)
_CHUNK = int(Event.CHUNK)

# parts, seq, bytes that hold the payload, its start, its end
Handler = Callable[[int, int, bytes, int, int], None]


class ChunkSink(Protocol):
    """Where the payload of CHUNK frames goes."""

    def begin_chunk(self, parts: int, seq: int, length: int) -> bytearray:
        """Give the buffer to append ``length`` bytes to; raise LinkProtocolError to refuse them."""
        ...

    def end_chunk(self) -> None:
        """The bytes of the last ``begin_chunk`` are all there and their checksum is right."""
        ...


class FrameReader:
    """Finds a marker in a stream that starts anywhere, and the frames behind it.

    ``routes`` (tag to handler) and ``sinks`` (tag to sink of chunks) say what is allowed now; any other
    frame is an error. Holds at most one frame.

    Args:
        max_frame_bytes: the largest payload of a frame.
        on_marker: the hunt is over, frames begin behind the marker.
        on_blank: zero bytes where a frame should start; starts a hunt or raises LinkProtocolError.
        on_broken: the peer broke the protocol; starts a hunt or raises.
    """

    def __init__(
        self,
        max_frame_bytes: int,
        on_marker: Callable[[], None],
        on_blank: Callable[[], None],
        on_broken: Callable[[LinkProtocolError], None],
    ) -> None:
        self.routes: Mapping[int, Handler] = {}
        self.sinks: Mapping[int, ChunkSink] = {}
        self._max = max_frame_bytes
        self._on_marker = on_marker
        self._on_blank = on_blank
        self._on_broken = on_broken
        self._marker: bytes | None = None
        self._tail = b""  # may be the beginning of the marker
        self._held = bytearray()  # an incomplete header or frame ...
        self._need = 0  # ... of so many bytes
        self._sink: ChunkSink | None = None
        self._buffer = bytearray()
        self._left = 0
        self._crc = self._expected_crc = 0
        self._resume = 0  # where to go on after an error

    def hunt(self, marker: bytes) -> None:
        """Forget a frame that is half there, and ignore everything up to the next ``marker``."""
        self._marker = marker
        self._tail = b""
        self._held = bytearray()
        self._sink = None
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Handle what is complete now; raises what ``on_broken`` raises."""
        pos, end = 0, len(data)
        while pos < end:
            try:
                if self._marker is not None:
                    pos = self._find(self._marker, data, pos)
                elif self._sink is not None:
                    pos = self._append(self._sink, data, pos)
                elif self._held:
                    pos = self._gather(data, pos)
                else:
                    pos = self._frames(data, pos)
            except LinkProtocolError as error:
                pos = self._resume
                self._on_broken(error)

    def _find(self, marker: bytes, data: bytes, pos: int) -> int:
        tail, keep = self._tail, len(marker) - 1
        index = (tail + data[pos : pos + keep]).find(marker)
        if index >= 0:
            pos += index + len(marker) - len(tail)
        else:
            index = data.find(marker, pos)
            if index < 0:
                self._tail = (tail + data[max(pos, len(data) - keep) :])[-keep:]
                return len(data)
            pos = index + len(marker)
        self._marker = None
        self._on_marker()
        return pos

    def _gather(self, data: bytes, pos: int) -> int:
        """Complete the header or frame that is held, and handle it."""
        held = self._held
        piece = data[pos : pos + self._need - len(held)]
        held += piece
        pos += len(piece)
        if len(held) == self._need:
            self._held = bytearray()
            try:
                self._frames(bytes(held), 0)
            except LinkProtocolError:
                self._resume = pos
                raise
        return pos

    def _frames(self, data: bytes, pos: int) -> int:
        """Handle frames from ``pos`` until something else than frames must be read; give where."""
        view, end, limit = memoryview(data), len(data), self._max
        unpack = HEADER.unpack_from
        try:
            while end - pos >= _HEADER_BYTES:
                crc, length, check, which, parts, seq = unpack(data, pos)
                start = pos + _HEADER_BYTES
                if length ^ check != CHECK or length > limit:
                    begin, pos = pos, start
                    self._refuse(data[begin:start], length if length ^ check == CHECK else 0)
                    return pos
                if which & 255 == _CHUNK:
                    begin, pos = pos, start
                    self._begin(view[begin + CRC_BYTES : start], crc, which, parts, seq, length)
                    return pos
                stop = start + length
                if stop > end:
                    return self._hold(view[pos:], stop - pos, end)
                begin, pos = pos + CRC_BYTES, stop
                if crc32(view[begin:stop]) != crc:
                    raise LinkProtocolError("a frame with a wrong checksum")
                handle = self.routes.get(which)
                if handle is None:
                    raise _unexpected(which)
                handle(parts, seq, data, start, stop)
        except LinkProtocolError:
            self._resume = pos
            raise
        return self._hold(view[pos:], _HEADER_BYTES, end)

    def _hold(self, rest: memoryview, need: int, end: int) -> int:
        self._held += rest
        self._need = need
        return end

    def _refuse(self, header: bytes, length: int) -> None:
        if header == _BLANK:
            self._on_blank()
        elif length:
            raise LinkProtocolError(f"a frame of {length} bytes, at most {self._max} are allowed")
        else:
            raise LinkProtocolError("bytes that start no frame")

    def _begin(
        self, body: memoryview, crc: int, which: int, parts: int, seq: int, length: int
    ) -> None:
        sink = self.sinks.get(which)
        if sink is None:
            raise _unexpected(which)
        self._buffer = sink.begin_chunk(parts, seq, length)
        self._sink = sink
        self._left = length
        self._crc, self._expected_crc = crc32(body), crc

    def _append(self, sink: ChunkSink, data: bytes, pos: int) -> int:
        piece = memoryview(data)[pos : pos + self._left]
        self._buffer += piece
        self._crc = crc32(piece, self._crc)
        self._left -= len(piece)
        pos += len(piece)
        if not self._left:
            self._sink = None
            self._buffer = bytearray()
            self._resume = pos
            if self._crc != self._expected_crc:
                raise LinkProtocolError("a chunk with a wrong checksum")
            sink.end_chunk()
        return pos


def _unexpected(which: int) -> LinkProtocolError:
    return LinkProtocolError(f"a frame of kind {which & 255} on channel {which >> 8} at this time")
