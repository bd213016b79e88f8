"""The HELLO that opens a session: who speaks, and where each channel stands.

Payload (big endian)::

    version u16 | role u8 | fresh u8 | max_frame u32 | nonce 16 bytes
    then for each channel in order: recv_next u64 | send_base u64 | window u64

``recv_next`` is the first message the speaker has not handled, ``send_base`` the first it can still
send, ``window`` the bytes it lets the peer send. A ``fresh`` speaker remembers nothing: its numbers
are taken from the peer's HELLO.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from .errors import LinkProtocolError
from .types import Channel, Role

VERSION = 1
NONCE_BYTES = 16
MAGIC = bytes.fromhex("b7746f72706f72e28c6c696e6bf0318d")
_FIXED = struct.Struct(f">HBBI{NONCE_BYTES}s")
_CHANNEL = struct.Struct(">QQQ")
_SIZE = _FIXED.size + len(Channel) * _CHANNEL.size
_ROLES = {1: Role.HOST, 2: Role.GUEST}
_CODES = {role: code for code, role in _ROLES.items()}


@dataclass(frozen=True, slots=True)
class Standing:
    """Where one channel stands for the speaker (see the module docstring)."""

    recv_next: int
    send_base: int
    window: int


@dataclass(frozen=True, slots=True)
class Hello:
    """A parsed HELLO."""

    role: Role
    fresh: bool
    max_frame_bytes: int
    nonce: bytes
    channels: Mapping[Channel, Standing]

    def pack(self) -> bytes:
        """Give the payload of the frame."""
        fixed = _FIXED.pack(
            VERSION, _CODES[self.role], self.fresh, self.max_frame_bytes, self.nonce
        )
        rows = (self.channels[channel] for channel in Channel)
        return fixed + b"".join(
            _CHANNEL.pack(row.recv_next, row.send_base, row.window) for row in rows
        )


def parse_hello(payload: memoryview, *, expected: Role) -> Hello:
    """Give the HELLO in ``payload``; raise LinkProtocolError if it is not one of ``expected``."""
    if len(payload) != _SIZE:
        raise LinkProtocolError(f"HELLO of {len(payload)} bytes, expected {_SIZE}")
    version, code, fresh, max_frame, nonce = _FIXED.unpack_from(payload)
    if version != VERSION:
        raise LinkProtocolError(f"the peer speaks link version {version}, we speak {VERSION}")
    if _ROLES.get(code) is not expected or fresh > 1:
        raise LinkProtocolError(f"HELLO of role {code} (fresh {fresh}), expected {expected.value}")
    channels = {
        channel: Standing(*_CHANNEL.unpack_from(payload, _FIXED.size + index * _CHANNEL.size))
        for index, channel in enumerate(Channel)
    }
    return Hello(expected, bool(fresh), max_frame, nonce, channels)
