"""A guest that lives, host processes that come and go, and the two FIFOs between them.

The applications on both sides keep a log of what they have handled, and may hold back a few messages
before they handle them. The host's log is on disk as it were: the next host process still has it.
"""

from __future__ import annotations

import contextlib
import enum
import itertools
from collections import deque
from collections.abc import Iterable

from torpor.link import Channel, Limits, Link, LinkProtocolError, Message, Opened, Role
from torpor.link.frames import HEADER

from tests.unit.link.pair import SMALL, body, counting_rng, everything

Log = dict[Channel, list[bytes]]


class Return(enum.Enum):
    """How the host comes back after its connection was cut."""

    SURVIVES = "the host object lives and connects again"
    REMEMBERS = "a new process knows what the old one had handled"
    FORGETS = "a new process knows nothing"


class End:
    """One link, its application, and the bytes it has written that nobody has read."""

    def __init__(self, role: Role, link: Link, lag: int, log: Log) -> None:
        self.is_guest = role is Role.GUEST
        self.link = link
        self.lag = lag
        self.log = log
        self.held: deque[Message] = deque()
        self.written = bytearray()
        self.may_write = 1 << 60
        self.may_read = 1 << 60
        self.opened: list[Opened] = []

    def write(self, nbytes: int = 1 << 60) -> bool:
        """Write what goes into the FIFO; say whether anything did."""
        buffers = self.link.data_to_send(1024)
        chunk = b"".join(buffers)[: min(nbytes, self.may_write)]
        self.link.sent(len(chunk))
        self.may_write -= len(chunk)
        self.written += chunk
        return bool(chunk)

    def read(self, other: End, nbytes: int = 1 << 60) -> bool:
        """Read what ``other`` has written; say whether there was anything."""
        chunk = bytes(other.written[: min(nbytes, self.may_read)])
        del other.written[: len(chunk)]
        self.may_read -= len(chunk)
        if chunk:
            # a guest fails on half a frame, until the HELLO that comes next
            with contextlib.suppress(*[LinkProtocolError] if self.is_guest else []):
                self.link.receive_data(chunk)
            self.take()
        return bool(chunk)

    def take(self) -> None:
        """Handle what has come, but for the last few."""
        while (event := self.link.next_event()) is not None:
            if isinstance(event, Opened):
                self.opened.append(event)
            else:
                self.held.append(event)
        while len(self.held) > self.lag:
            self.handle()
        self.link.flush()

    def handle(self) -> None:
        """Handle the oldest message."""
        message = self.held.popleft()
        self.log[message.channel].append(b"|".join(body(message)))
        self.link.acknowledge(message)


def joined(runs: Iterable[list[bytes]]) -> list[bytes]:
    """Give one log of several."""
    return list(itertools.chain.from_iterable(runs))


def empty_log() -> Log:
    """Give a log with nothing in it."""
    return {channel: [] for channel in Channel}


class World:
    """One guest, the present host, and what was sent and handled since the beginning."""

    def __init__(self, lag: int = 0, limits: Limits = SMALL) -> None:
        self.limits = limits
        self.lag = lag
        self.rng = counting_rng()
        self.sent_by_guest = empty_log()
        self.sent_by_hosts: list[Log] = []
        guest = Link(Role.GUEST, limits=limits, rng=self.rng)
        self.guest = End(Role.GUEST, guest, lag, empty_log())
        self.host_logs: list[Log] = []
        self.new_host(None)

    def new_host(self, handled: dict[Channel, int] | None) -> None:
        """Start a host process, which connects."""
        self.sent_by_hosts.append(empty_log())
        self.host_logs.append(empty_log())
        link = Link(Role.HOST, limits=self.limits, handled=handled, rng=self.rng)
        self.host = End(Role.HOST, link, self.lag, self.host_logs[-1])
        link.connect()

    def from_guest(self, channel: Channel, *parts: bytes) -> None:
        """Let the guest's application send a message."""
        self.guest.link.send(channel, parts)
        self.sent_by_guest[channel].append(b"|".join(parts))

    def from_host(self, channel: Channel, *parts: bytes) -> None:
        """Let the host's application send a message."""
        self.host.link.send(channel, parts)
        self.sent_by_hosts[-1][channel].append(b"|".join(parts))

    def run(self) -> None:
        """Carry bytes until nothing moves."""
        host, guest = self.host, self.guest
        while host.write() | guest.read(host) | guest.write() | host.read(guest):
            pass

    def come_back(self, how: Return, *, lossy: bool = False) -> None:
        """Cut the connection and let the host come back; what was written is kept unless ``lossy``."""
        remembered = {channel: self.host.link.handled_next(channel) for channel in Channel}
        self.guest.may_write = self.guest.may_read = 1 << 60
        unread = self.guest.written
        if lossy:
            unread.clear()
            self.host.written.clear()
        while self.guest.read(self.host):
            pass
        if how is Return.SURVIVES:
            self.host.link.connect()
        else:
            self.new_host(remembered if how is Return.REMEMBERS else None)
        self.host.may_write = self.host.may_read = 1 << 60
        # blank bytes may be just what a frame that was cut still lacked
        self.host.write(self.limits.max_frame_bytes + 2 * HEADER.size)
        self.guest.read(self.host)
        self.acknowledged = self.known_handled()

    def known_handled(self) -> dict[Channel, int]:
        """Give how many messages of each channel the guest knows to be handled."""
        base = {}
        for channel, sent in self.sent_by_guest.items():
            kept = self.guest.link._outboxes[channel]
            base[channel] = kept.base
            assert kept.base <= len(sent)
        return base

    def settle(self) -> None:
        """Let everything arrive and be handled, and every acknowledgement come home."""
        self.run()
        for end in (self.guest, self.host):
            end.lag = 0
            end.take()
            end.link.flush()
        self.run()
        for end in (self.guest, self.host):
            end.link.flush()
        self.run()
        for end in (self.guest, self.host):
            assert [end.link.pending_bytes(channel) for channel in Channel] == [0] * len(Channel)
            assert not end.link.owes_acknowledgement
            assert everything(end.link) == b""
