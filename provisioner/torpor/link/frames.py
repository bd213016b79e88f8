"""Frames: the unit of bytes on the link. Pure; no state but the bytes not yet understood.

Layout (big endian)::

    kind u8 | channel u8 | flags u16 | length u32 | seq u64 | crc32 u32 | payload (length bytes)

``crc32`` covers the 16 bytes before it and the payload. A kind is never zero, so a run of zero bytes
can never start a frame: that is what the host writes to flush a frame that a dead writer left half done.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable
from typing import NamedTuple
from zlib import crc32

from .errors import LinkProtocolError
from .types import Buffer

_HEAD = struct.Struct(">BBHIQ")
_CRC = struct.Struct(">I")
HEADER_BYTES = _HEAD.size + _CRC.size


class Kind(enum.IntEnum):
    """What a frame is."""

    HELLO = 1
    DATA = 2
    ACK = 3
    BYE = 4


FIRST = 1  # flag of DATA: the payload starts with the length table of the message
LAST = 2  # flag of DATA: the message is complete after this frame
_KINDS = frozenset(int(kind) for kind in Kind)


class Frame(NamedTuple):
    """One checked frame. ``payload`` is valid until more bytes are fed."""

    kind: int
    channel: int
    flags: int
    seq: int
    payload: memoryview


def frame_header(
    kind: int, channel: int, flags: int, seq: int, pieces: Iterable[Buffer], length: int
) -> bytes:
    """Give the 20 bytes that go before ``pieces`` (``length`` bytes together)."""
    head = _HEAD.pack(kind, channel, flags, length, seq)
    crc = crc32(head)
    for piece in pieces:
        crc = crc32(piece, crc)
    return head + _CRC.pack(crc)


class FrameReader:
    """Cuts a byte stream into frames, and finds a marker in a stream that starts anywhere.

    Holds at most one frame and what was fed beyond it.
    """

    def __init__(self, max_frame_bytes: int) -> None:
        self._max = max_frame_bytes
        self._bytes: bytes = b""
        self._at = 0
        self._marker: bytes | None = None

    def hunt(self, marker: bytes) -> None:
        """Ignore everything up to and including the next ``marker``."""
        self._marker = marker

    def feed(self, data: bytes) -> None:
        """Add bytes; frames given before become invalid."""
        self._bytes = self._bytes[self._at :] + data if self._at < len(self._bytes) else data
        self._at = 0

    def next_frame(self) -> Frame | None:
        """Give the next whole frame, or None when more bytes are needed.

        Raises LinkProtocolError for anything that is not a frame; the reader must then hunt again.
        """
        if self._marker is not None and not self._found():
            return None
        have = len(self._bytes) - self._at
        if have < HEADER_BYTES:
            if have and self._bytes[self._at] not in _KINDS:
                raise LinkProtocolError(f"no frame starts with byte {self._bytes[self._at]:#04x}")
            return None
        kind, channel, flags, length, seq = _HEAD.unpack_from(self._bytes, self._at)
        if kind not in _KINDS:
            raise LinkProtocolError(f"no frame starts with byte {kind:#04x}")
        if length > self._max:
            raise LinkProtocolError(f"frame of {length} bytes, more than {self._max}")
        end = self._at + HEADER_BYTES + length
        if len(self._bytes) < end:
            return None
        return self._cut(kind, channel, flags, seq, end)

    def _cut(self, kind: int, channel: int, flags: int, seq: int, end: int) -> Frame:
        view = memoryview(self._bytes)
        start = self._at
        self._at = end
        payload = view[start + HEADER_BYTES : end]
        (crc,) = _CRC.unpack_from(view, start + _HEAD.size)
        if crc32(payload, crc32(view[start : start + _HEAD.size])) != crc:
            raise LinkProtocolError("frame with a wrong checksum")
        return Frame(kind, channel, flags, seq, payload)

    def _found(self) -> bool:
        marker = self._marker
        assert marker is not None
        index = self._bytes.find(marker, self._at)
        if index < 0:
            # keep what could be the beginning of the marker
            self._at = max(self._at, len(self._bytes) - len(marker) + 1)
            return False
        self._at = index + len(marker)
        self._marker = None
        return True
