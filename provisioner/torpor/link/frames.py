"""Frames: the unit of bytes on the link.

Layout (little endian)::

    crc u32 | length u32 | check u32 | kind u8 | channel u8 | parts u16 | seq u64 | payload (length bytes)

``crc`` is the CRC-32 of everything behind it. ``check`` is ``length ^ CHECK``: a wrong length is seen at
once instead of making us wait for bytes that never come, and a run of zero bytes never starts a frame
(that is what a host writes to end a frame that a dead writer left half done).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from zlib import crc32

from .states import Event
from .types import Buffer

CHECK = 0x5AC3_96F1
HEADER = struct.Struct("<IIIHHQ")  # kind and channel as one number, see ``tag``
CRC_BYTES = 4
_BODY = struct.Struct("<IIBBHQ")
_CRC = struct.Struct("<I")


def tag(kind: Event, channel: int) -> int:
    """Give ``kind`` and ``channel`` as the one number that selects a handler."""
    return int(kind) | channel << 8


def small_frame(kind: int, channel: int, parts: int, seq: int, payload: bytes) -> bytes:
    """Give a whole frame as one piece of bytes."""
    length = len(payload)
    body = _BODY.pack(length, length ^ CHECK, kind, channel, parts, seq) + payload
    return _CRC.pack(crc32(body)) + body


def frame_header(
    kind: int, channel: int, parts: int, seq: int, pieces: Iterable[Buffer], length: int
) -> bytes:
    """Give what goes before ``pieces``, which are ``length`` bytes together."""
    body = _BODY.pack(length, length ^ CHECK, kind, channel, parts, seq)
    crc = crc32(body)
    for piece in pieces:
        crc = crc32(piece, crc)
    return _CRC.pack(crc) + body
