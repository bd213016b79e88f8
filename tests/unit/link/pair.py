"""Two links and the bytes between them, as plain buffers; and frames of any kind, made by hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

from torpor.link import Channel, Limits, Link, LinkProtocolError, Message, Opened, Role
from torpor.link.frames import HEADER, small_frame
from torpor.link.hello import MAGIC, NONCE_BYTES, Hello, Standing, parse_hello
from torpor.link.states import Event

SMALL = Limits(
    max_frame_bytes=256,
    max_message_bytes=8192,
    max_parts=8,
    window_bytes=dict.fromkeys(Channel, 2048),
    queue_bytes=dict.fromkeys(Channel, 1 << 16),
)


def counting_rng(start: int = 0) -> Callable[[int], bytes]:
    """Give a source of nonces that are all different and the same in each run."""
    numbers = itertools.count(start)
    return lambda size: (b"nonce%d." % next(numbers)).ljust(size, b"#")


_rng = counting_rng()


def new_host(limits: Limits = SMALL, handled: Mapping[Channel, int] | None = None) -> Link:
    return Link(Role.HOST, limits=limits, handled=handled, rng=_rng)


def new_guest(limits: Limits = SMALL) -> Link:
    return Link(Role.GUEST, limits=limits, rng=_rng)


def take(link: Link, max_bytes: int = 1 << 20, exactly: int | None = None) -> bytes:
    """Give what ``link`` wants to write (at most ``exactly`` bytes of it), and count it as written."""
    wire = b"".join(link.data_to_send(max_bytes))[:exactly]
    link.sent(len(wire))
    return wire


def everything(link: Link) -> bytes:
    """Give all that ``link`` can write now."""
    return b"".join(iter(lambda: take(link), b""))


def events(link: Link) -> Iterator[Opened | Message]:
    while (event := link.next_event()) is not None:
        yield event


def messages(link: Link, *, acknowledge: bool = True) -> list[Message]:
    """Give the messages that have come, handled unless said otherwise."""
    found = [event for event in events(link) if isinstance(event, Message)]
    if acknowledge:
        for message in found:
            link.acknowledge(message)
    return found


def body(message: Message) -> tuple[bytes, ...]:
    return tuple(bytes(part) for part in message.parts)


def pump(host: Link, guest: Link) -> None:
    """Move bytes both ways until neither end has anything more to write."""
    while (there := everything(host)) + (back := everything(guest)):
        for link, wire in ((guest, there), (host, back)):
            try:
                link.receive_data(wire)
            except LinkProtocolError:
                if link is host:
                    raise


def open_pair(limits: Limits = SMALL) -> tuple[Link, Link]:
    """Give a host and a guest with an open session and no event left."""
    host, guest = new_host(limits), new_guest(limits)
    host.connect()
    pump(host, guest)
    assert [type(event) for link in (host, guest) for event in events(link)] == [Opened, Opened]
    return host, guest


def frames(wire: bytes) -> list[tuple[Event, int, bytes]]:
    """Give (kind, channel, whole frame) of bytes that hold whole frames only."""
    found, pos = [], 0
    while pos < len(wire):
        _, length, _, which, _, _ = HEADER.unpack_from(wire, pos)
        stop = pos + HEADER.size + length
        found.append((Event(which & 255), which >> 8, wire[pos:stop]))
        pos = stop
    return found


def lengths(*sizes: int) -> bytes:
    return b"".join(size.to_bytes(4, "little") for size in sizes)


def whole(channel: int, seq: int, *parts: bytes) -> bytes:
    payload = lengths(*map(len, parts)) + b"".join(parts)
    return small_frame(Event.WHOLE, channel, len(parts), seq, payload)


def ack(channel: int, handled: int, limit: int) -> bytes:
    return small_frame(Event.ACK, channel, 0, handled, limit.to_bytes(8, "little"))


class Forger:
    """A guest made by hand: it answers the host correctly unless told to lie."""

    def __init__(self, host: Link) -> None:
        self.host = host

    def nonce(self) -> bytes:
        """Take what a connecting host writes; give its nonce."""
        wire = everything(self.host)
        start = wire.index(MAGIC) + len(MAGIC) + HEADER.size
        return parse_hello(wire[start:], expected=Role.HOST, limits=self.host.limits).nonce

    def hello(self, rows: Sequence[Standing] | None = None, *, lived: bool = False) -> bytes:
        """Give the payload of a HELLO that claims ``rows``."""
        rows = rows or [Standing(0, 0, 0, 2048)] * len(Channel)
        return Hello(Role.GUEST, lived, bytes(NONCE_BYTES), list(rows)).pack(self.host.limits)

    def answer(self, payload: bytes | None = None) -> bytes:
        """Give the whole answer to a host that connects."""
        frame = small_frame(Event.HELLO, 0, 0, 0, self.hello() if payload is None else payload)
        return self.nonce() + frame


def forged(limits: Limits = SMALL) -> tuple[Link, Forger]:
    """Give a host with an open session whose guest is whatever the test writes."""
    host = new_host(limits)
    host.connect()
    forger = Forger(host)
    host.receive_data(forger.answer())
    assert isinstance(host.next_event(), Opened)
    return host, forger
