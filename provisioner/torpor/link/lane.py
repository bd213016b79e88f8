"""Both halves of one channel, and how they begin a session."""

from __future__ import annotations

import struct
from collections import deque

from .errors import LinkProtocolError
from .frames import small_frame
from .hello import UNKNOWN, Standing
from .inbox import Inbox
from .outbox import Outbox
from .states import Event
from .types import Channel, Limits, Message, Opened

_LIMIT = struct.Struct("<Q")


class Lane:
    """One channel. ``remembered`` is what an earlier process of this host had handled, or UNKNOWN."""

    def __init__(
        self, channel: Channel, limits: Limits, events: deque[Opened | Message], remembered: int
    ) -> None:
        self.channel = channel
        self.inbox = Inbox(channel, limits, events)
        self.outbox = Outbox(channel, limits)
        self._remembered = remembered
        if remembered != UNKNOWN:  # also for whom we die before there is a session
            self.inbox.adopt(remembered)

    def begin(self, new: bool) -> Standing:
        """Forget what was under way; give where we stand (``new``: a host without numbers)."""
        inbox, base = self.inbox, self.outbox.base
        inbox.restart()
        if new:
            return Standing(self._remembered, self._remembered, base, inbox.limit)
        return Standing(inbox.expected, inbox.handled_next, base, inbox.limit)

    def resume(self, peer: Standing) -> None:
        """Go on where both stand.

        Raises:
            LinkProtocolError: the two do not belong together.
        """
        if peer.base > self.inbox.expected:
            raise LinkProtocolError(
                f"{self.channel.name}: the peer keeps {peer.base} and later,"
                f" we have not received {self.inbox.expected}"
            )
        self.outbox.restart(peer.received, peer.handled, peer.limit)

    def lead(self, peer: Standing) -> None:
        """Go on with a new host process, which takes its numbers from us.

        Raises:
            LinkProtocolError: it remembers what we have never sent.
        """
        base = self.outbox.base
        # what a dead process wrote down may be a little behind what it had acknowledged
        received = base if peer.received == UNKNOWN else max(peer.received, base)
        self.outbox.restart(received, received, peer.limit)

    def follow(self, peer: Standing) -> None:
        """Take our numbers from the guest: we are a new host process."""
        self.inbox.adopt(max(self.inbox.handled_next, peer.base))
        self.outbox.adopt(peer.received, peer.limit)

    def ack_frame(self) -> bytes:
        """Give a frame that tells the peer what was handled and what it may send."""
        handled_next, limit = self.inbox.tell()
        return small_frame(Event.ACK, self.channel, 0, handled_next, _LIMIT.pack(limit))

    def acked(self, parts: int, seq: int, data: bytes, start: int, stop: int) -> None:
        """Take such a frame of the peer."""
        if parts or stop - start != _LIMIT.size:
            raise LinkProtocolError(f"an ACK of {stop - start} bytes for {parts} parts")
        self.outbox.acknowledged(seq, _LIMIT.unpack_from(data, start)[0])

    def close(self) -> None:
        """Let go of every byte; the numbers stay."""
        self.inbox.restart()
        self.outbox.clear()
