"""The words of the link: channels, roles, states, limits and what comes out of it.

Standard library only: this package also runs inside the sandbox.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

Buffer = bytes | bytearray | memoryview


class Channel(enum.IntEnum):
    """One independent, ordered, flow-controlled sequence of messages. A lower number is sent first."""

    RPC = 0
    CONTROL = 1
    SHELL = 2
    STDIN = 3
    IOPUB = 4


class Role(enum.Enum):
    """Who we are. Only the host opens sessions; only the guest's marker is unpredictable."""

    HOST = "host"
    GUEST = "guest"


class LinkState(enum.Enum):
    """``IDLE`` never opened; ``FAILED`` until the host opens a new session; ``CLOSED`` for ever."""

    IDLE = "idle"
    OPENING = "opening"
    OPEN = "open"
    FAILED = "failed"
    CLOSED = "closed"


_MIB = 1 << 20
_WIDE = frozenset({Channel.SHELL, Channel.IOPUB})


@dataclass(frozen=True, slots=True)
class Limits:
    """Every bound of a link, in bytes unless said. Both ends must agree on ``max_frame_bytes``."""

    max_frame_bytes: int = 128 * 1024
    max_message_bytes: int = 1 << 30
    max_parts: int = 4096
    window_bytes: Mapping[Channel, int] = field(
        default_factory=lambda: MappingProxyType(
            {channel: 16 * _MIB if channel in _WIDE else 4 * _MIB for channel in Channel}
        )
    )
    queue_bytes: Mapping[Channel, int] = field(
        default_factory=lambda: MappingProxyType(
            {
                Channel.RPC: 64 * _MIB,
                Channel.CONTROL: 64 * _MIB,
                Channel.SHELL: (1 << 30) + 64 * _MIB,
                Channel.STDIN: 64 * _MIB,
                Channel.IOPUB: (1 << 30) + 64 * _MIB,
            }
        )
    )


@dataclass(frozen=True, slots=True)
class Opened:
    """A session is open. ``resumed``: not the first one of this end, or the peer lived before."""

    resumed: bool
    peer_nonce: bytes


@dataclass(frozen=True, slots=True)
class Message:
    """One whole message. Give it back with ``Link.acknowledge`` once it has been handled."""

    channel: Channel
    parts: Sequence[Buffer]
    seq: int
