"""The words of the link: channels, roles, states, limits and what comes out of it.

Plain classes instead of dataclasses: the guest imports this file while it starts, and ``dataclasses``
alone would cost it more than everything else here together.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

Buffer = bytes | bytearray | memoryview

MESSAGE_BYTES = 256  # what a message costs in memory besides its parts
PART_BYTES = 64  # what a part costs in memory besides its bytes
LENGTH_BYTES = 4  # one entry of the table of lengths
_HELLO_BYTES = 256  # what the frame that opens a session needs, and some more


class Channel(enum.IntEnum):
    """One independent, ordered, flow-controlled sequence of messages. A lower number goes first."""

    RPC = 0
    CONTROL = 1
    SHELL = 2
    STDIN = 3
    IOPUB = 4


class Role(enum.Enum):
    """Which end we are. Only the host opens sessions, and it trusts nothing the guest says."""

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
_WINDOW_BYTES = {channel: 4 * _MIB for channel in Channel}
_WINDOW_BYTES |= {Channel.SHELL: 16 * _MIB, Channel.IOPUB: 16 * _MIB}
_QUEUE_BYTES = {channel: 64 * _MIB for channel in Channel}
_QUEUE_BYTES |= {Channel.SHELL: (1 << 30) + 64 * _MIB, Channel.IOPUB: (1 << 30) + 64 * _MIB}


class Limits:
    """Every bound of a link, in bytes unless said.

    ``max_frame_bytes`` (payload of one frame), ``max_message_bytes`` (a message with its table of
    lengths) and ``max_parts`` must be the same at both ends. ``window_bytes``: what a channel lets the
    peer send before the application has acknowledged; a message larger than that passes alone.
    ``queue_bytes``: what a channel keeps, unsent or unacknowledged. Both count ``message_cost``. It also
    bounds one message, in both directions: it must not be less than what the peer may send in one.

    Raises:
        ValueError: no session could work with these.
    """

    __slots__ = ("max_frame_bytes", "max_message_bytes", "max_parts", "queue_bytes", "window_bytes")

    def __init__(
        self,
        max_frame_bytes: int = 128 * 1024,
        max_message_bytes: int = 1 << 30,
        max_parts: int = 4096,
        window_bytes: Mapping[Channel, int] | None = None,
        queue_bytes: Mapping[Channel, int] | None = None,
    ) -> None:
        self.max_frame_bytes = max_frame_bytes
        self.max_message_bytes = max_message_bytes
        self.max_parts = max_parts
        self.window_bytes = dict(_WINDOW_BYTES if window_bytes is None else window_bytes)
        self.queue_bytes = dict(_QUEUE_BYTES if queue_bytes is None else queue_bytes)
        least_frame = max(_HELLO_BYTES, LENGTH_BYTES * max_parts)
        if not least_frame <= max_frame_bytes <= max_message_bytes < 1 << 32 or max_parts <= 0:
            raise ValueError(
                f"frames must hold {least_frame} bytes, messages a frame, and neither 4 GiB"
            )
        # half a window is when credit is renewed: it must let any single frame pass
        least = 2 * message_cost(max_frame_bytes, max_parts)
        for channel in Channel:
            if self.window_bytes[channel] < least or self.queue_bytes[channel] <= 0:
                raise ValueError(
                    f"{channel.name}: a window of less than {least} bytes, or no queue"
                )

    def largest_bytes(self, channel: Channel) -> int:
        """Give the most that a message of ``channel`` may have, its table of lengths included."""
        return min(self.max_message_bytes, self.queue_bytes[channel])

    def admit(self, channel: Channel, nbytes: int, parts: int) -> bool:
        """Say whether a link with these can ever take a message of ``nbytes`` in ``parts`` parts."""
        whole = nbytes + LENGTH_BYTES * parts
        return 0 < parts <= self.max_parts and whole <= self.largest_bytes(channel)


def message_cost(nbytes: int, parts: int) -> int:
    """Give what a message of ``nbytes`` in ``parts`` parts takes of windows and queues, in bytes.

    More than its bytes, or else a flood of empty messages would cost memory but no credit.
    """
    return MESSAGE_BYTES + PART_BYTES * parts + nbytes


class Opened:
    """A session is open. ``resumed``: one of the two ends has had a session before."""

    __slots__ = ("peer_nonce", "resumed")

    def __init__(self, resumed: bool, peer_nonce: bytes) -> None:
        self.resumed = resumed
        self.peer_nonce = peer_nonce

    def __repr__(self) -> str:
        return f"Opened(resumed={self.resumed}, peer_nonce={self.peer_nonce.hex()})"


class Message:
    """One whole message. Give it back with ``Link.acknowledge`` once it has been handled.

    The parts belong to the receiver of the message: small ones are bytes, large ones read-only views.
    """

    __slots__ = ("channel", "parts", "seq")

    def __init__(self, channel: Channel, parts: list[bytes | memoryview], seq: int) -> None:
        self.channel = channel
        self.parts = parts
        self.seq = seq

    def __repr__(self) -> str:
        sizes = [len(part) for part in self.parts]
        return f"Message({self.channel.name} {self.seq}, parts of {sizes} bytes)"
