"""The HELLO that opens a session: who speaks, and where each channel stands.

Payload (little endian)::

    version u16 | role u8 | lived u8 | max_frame u32 | max_message u32 | max_parts u32 | nonce 16 bytes
    then for each channel in order: received u64 | handled u64 | base u64 | limit u64

``lived``: the speaker has had a session before. ``received``: the first message it has not received
whole, ``handled``: the first that its application has not acknowledged, both ``UNKNOWN`` for a new host
process without memory. ``base``: the first message it can still send. ``limit``: the bytes it lets the
peer send before the next ACK.
"""

from __future__ import annotations

import struct

from .errors import LinkProtocolError
from .types import Channel, Limits, Role

VERSION = 1
NONCE_BYTES = 16
MAGIC = bytes.fromhex("b7746f72706f72e28c6c696e6bf0318d")
UNKNOWN = (1 << 64) - 1
_MAX_NUMBER = 1 << 62  # no link lives long enough to get there, so arithmetic never overflows u64
_FIXED = struct.Struct(f"<HBBIII{NONCE_BYTES}s")
_CHANNEL = struct.Struct("<QQQQ")
_SIZE = _FIXED.size + len(Channel) * _CHANNEL.size
_CODES = {Role.HOST: 1, Role.GUEST: 2}


class Standing:
    """Where one channel stands for the speaker (see the module docstring)."""

    __slots__ = ("base", "handled", "limit", "received")

    def __init__(self, received: int, handled: int, base: int, limit: int) -> None:
        self.received = received
        self.handled = handled
        self.base = base
        self.limit = limit


class Hello:
    """A HELLO, ours or parsed: ``rows`` has one ``Standing`` per channel, in order."""

    __slots__ = ("lived", "nonce", "role", "rows")

    def __init__(self, role: Role, lived: bool, nonce: bytes, rows: list[Standing]) -> None:
        self.role = role
        self.lived = lived
        self.nonce = nonce
        self.rows = rows

    def pack(self, limits: Limits) -> bytes:
        """Give the payload of the frame."""
        sizes = (limits.max_frame_bytes, limits.max_message_bytes, limits.max_parts)
        packed = [_FIXED.pack(VERSION, _CODES[self.role], self.lived, *sizes, self.nonce)]
        packed += [_CHANNEL.pack(r.received, r.handled, r.base, r.limit) for r in self.rows]
        return b"".join(packed)


def parse_hello(payload: bytes, *, expected: Role, limits: Limits) -> Hello:
    """Give the HELLO in ``payload``.

    Raises:
        LinkProtocolError: it is not one of ``expected``, of our version, with our limits.
    """
    if len(payload) != _SIZE:
        raise LinkProtocolError(f"HELLO of {len(payload)} bytes, expected {_SIZE}")
    version, code, lived, *sizes, nonce = _FIXED.unpack_from(payload)
    if version != VERSION:
        raise LinkProtocolError(f"the peer speaks link version {version}, we speak {VERSION}")
    if code != _CODES[expected] or lived > 1:
        raise LinkProtocolError(f"HELLO of role {code} ({lived}), expected {expected.value}")
    ours = [limits.max_frame_bytes, limits.max_message_bytes, limits.max_parts]
    if sizes != ours:
        raise LinkProtocolError(f"the peer's frame, message and parts limits are {sizes}: {ours}")
    rows = [Standing(*numbers) for numbers in _CHANNEL.iter_unpack(payload[_FIXED.size :])]
    for row in rows:
        _check(row, may_forget=expected is Role.HOST and not lived)
    return Hello(expected, bool(lived), nonce, rows)


def _check(row: Standing, *, may_forget: bool) -> None:
    known = row.received != UNKNOWN or row.handled != UNKNOWN
    if (known or not may_forget) and not row.handled <= row.received < _MAX_NUMBER:
        raise LinkProtocolError(f"HELLO: handled {row.handled} of {row.received} received")
    if row.base >= _MAX_NUMBER or row.limit >= _MAX_NUMBER:
        raise LinkProtocolError(f"HELLO: base {row.base}, limit {row.limit}")
