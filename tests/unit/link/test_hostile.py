"""A peer that lies: every lie fails the link, at once, before it costs anything."""

from __future__ import annotations

import random

import pytest
from torpor.link import Channel, Limits, Link, LinkProtocolError, LinkState, Opened, Role
from torpor.link.frames import HEADER, small_frame
from torpor.link.hello import MAGIC, NONCE_BYTES, UNKNOWN, VERSION, Hello, Standing
from torpor.link.states import Event

from tests.unit.link.pair import (
    SMALL,
    Forger,
    ack,
    body,
    events,
    everything,
    forged,
    frames,
    lengths,
    messages,
    new_guest,
    new_host,
    open_pair,
    pump,
    whole,
)

SHELL = Channel.SHELL
WINDOW = SMALL.window_bytes[SHELL]
FRAME = SMALL.max_frame_bytes
MOST = SMALL.max_message_bytes


def start(seq: int, *sizes: int, parts: int | None = None) -> bytes:
    count = len(sizes) if parts is None else parts
    return small_frame(Event.START, SHELL, count, seq, lengths(*sizes))


def chunk(seq: int, nbytes: int, parts: int = 0) -> bytes:
    return small_frame(Event.CHUNK, SHELL, parts, seq, bytes(nbytes))


def raw(kind: int, channel: int = 0, parts: int = 0, seq: int = 0, payload: bytes = b"") -> bytes:
    return small_frame(kind, channel, parts, seq, payload)


LIES: dict[str, bytes] = {
    "a number that was skipped": whole(SHELL, 1, b"x"),
    "a number of long ago": whole(SHELL, 0, b"x") + whole(SHELL, 0, b"x"),
    "no parts": raw(Event.WHOLE, SHELL, 0),
    "too many parts": whole(SHELL, 0, *[b""] * 9),
    "a table longer than the frame": raw(Event.WHOLE, SHELL, 8, 0, lengths(1, 1)),
    "a table that reaches into the next frame": raw(Event.WHOLE, SHELL, 8, 0)
    + whole(SHELL, 0, b"x"),
    "lengths that are more than there is": raw(Event.WHOLE, SHELL, 1, 0, lengths(9) + b"12345678"),
    "lengths that are less than there is": raw(Event.WHOLE, SHELL, 1, 0, lengths(7) + b"12345678"),
    "lengths that overflow": raw(Event.WHOLE, SHELL, 2, 0, lengths(0xFFFF_FFFF, 1) + b"12345678"),
    "a start with no parts": start(0, parts=0),
    "a start with too many parts": start(0, *[100] * 9),
    "a start with too short a table": start(0, 300, parts=2),
    "a start with too long a table": start(0, 300, 300, parts=1),
    "a start of what fits a frame": start(0, FRAME - 4),
    "a start of more than a message may have": start(0, MOST - 3),
    "a start of 16 GiB": start(0, *[0xFFFF_FFFF] * 4),
    "a start that skips a number": start(1, 300),
    "a start in a message": start(0, 300) + start(0, 300),
    "a whole message in a message": start(0, 300) + whole(SHELL, 0, b"x"),
    "the next message in a message": start(0, 300) + whole(SHELL, 1, b"x"),
    "a chunk of no message": chunk(0, FRAME),
    "an empty chunk of no message": chunk(0, 0),
    "an empty chunk": start(0, 300) + chunk(0, 0),
    "a chunk of another message": start(0, 300) + chunk(1, FRAME),
    "a chunk with parts": start(0, 300) + chunk(0, FRAME, parts=1),
    "a short chunk": start(0, 300) + chunk(0, FRAME - 1),
    "a chunk beyond the end": start(0, 300) + chunk(0, FRAME) + chunk(0, 300 - FRAME + 1),
    "a chunk after the end": start(0, 300) + chunk(0, FRAME) + chunk(0, 44) + chunk(0, 44),
    "a frame that is too long": raw(Event.WHOLE, SHELL, 1, 0, lengths(FRAME) + bytes(FRAME)),
    "a chunk that is too long": start(0, 600) + chunk(0, FRAME + 1),
    "a kind of zero": raw(0),
    "a kind that does not exist": raw(6),
    "a kind that is no frame": raw(Event.CONNECT),
    "a channel that does not exist": whole(5, 0, b"x"),
    "a chunk on a channel that does not exist": raw(Event.CHUNK, 255, 0, 0, b"x"),
    "zero bytes": bytes(HEADER.size),
    "the magic": bytes(HEADER.size * 2) + MAGIC,
    "a second HELLO": raw(Event.HELLO, payload=bytes(196)),
    "an acknowledgement of what was not sent": ack(SHELL, 2, WINDOW),
    "an acknowledgement that takes credit back": ack(SHELL, 0, WINDOW - 1),
    "an acknowledgement that is short": raw(Event.ACK, SHELL, 0, 0, b"1234567"),
    "an acknowledgement that is long": raw(Event.ACK, SHELL, 0, 0, b"123456789"),
    "an acknowledgement with parts": raw(Event.ACK, SHELL, 1, 0, bytes(8)),
    "an acknowledgement on a channel that does not exist": ack(7, 0, WINDOW),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies(lie: str) -> None:
    host, forger = forged()
    host.send(SHELL, [b"one"])
    everything(host)
    host.receive_data(whole(Channel.RPC, 0, b"before"))
    with pytest.raises(LinkProtocolError):
        host.receive_data(LIES[lie] + whole(Channel.RPC, 1, b"behind"))
    assert host.state is LinkState.FAILED
    with pytest.raises(LinkProtocolError):
        host.receive_data(whole(Channel.RPC, 1, b"failed stays failed"))
    assert everything(host) == b""
    assert body(messages(host)[0]) == (b"before",)
    assert all(m.channel is SHELL for m in messages(host))
    # the host may begin again, and what it had to say is not lost
    host.connect()
    rows = [Standing(0, 0, 0, WINDOW)] * 5
    rows[Channel.RPC] = Standing(0, 0, 1, WINDOW)
    if lie in ("a number of long ago", "a chunk after the end"):
        rows[SHELL] = Standing(0, 0, 1, WINDOW)
    host.receive_data(forger.answer(forger.hello(rows, lived=True)))
    assert isinstance(host.next_event(), Opened)
    assert [frame for kind, _, frame in frames(everything(host)) if kind is Event.WHOLE] == [
        whole(SHELL, 0, b"one")
    ]


def test_acknowledgements_must_not_go_back() -> None:
    host, _ = forged()
    for text in (b"one", b"two"):
        host.send(SHELL, [text])
    everything(host)
    host.receive_data(ack(SHELL, 2, WINDOW) + ack(SHELL, 2, WINDOW + 5))
    assert host.pending_bytes(SHELL) == 0
    with pytest.raises(LinkProtocolError, match="acknowledges 1 of 2 to 2"):
        host.receive_data(ack(SHELL, 1, WINDOW + 5))


def test_more_than_the_credit_is_refused_before_it_is_kept() -> None:
    host, _ = forged()
    cost = 256 + 64 + 100
    fit = WINDOW // cost
    for seq in range(fit):
        host.receive_data(whole(SHELL, seq, bytes(100)))
    with pytest.raises(LinkProtocolError, match="SHELL: message 4 "):
        host.receive_data(whole(SHELL, fit, bytes(100)))
    assert len(messages(host)) == fit


def test_chunks_beyond_the_credit_are_refused() -> None:
    host, _ = forged()
    host.receive_data(whole(SHELL, 0, bytes(200)) + start(1, 4000))
    fit = (WINDOW - 2 * 256 - 2 * 64 - 200) // FRAME
    host.receive_data(chunk(1, FRAME) * fit)  # it never writes, so it never says that more may come
    with pytest.raises(LinkProtocolError, match="SHELL: 256 bytes without credit"):
        host.receive_data(chunk(1, FRAME))
    host, _ = forged()
    for seq in range(5):
        host.receive_data(whole(SHELL, seq, bytes(60)))
    with pytest.raises(LinkProtocolError, match="SHELL: 320 bytes without credit"):
        host.receive_data(start(5, 4000))


def hello(
    role: Role = Role.GUEST, lived: bool = False, limits: Limits = SMALL, **row: int
) -> bytes:
    """Give the payload of a HELLO with one odd row."""
    usual = {"received": 0, "handled": 0, "base": 0, "limit": WINDOW}
    rows = [Standing(**usual) for _ in Channel]
    rows[SHELL] = Standing(**{**usual, **row})
    return Hello(role, lived, bytes(NONCE_BYTES), rows).pack(limits)


def other_limits(
    max_frame_bytes: int = 256, max_message_bytes: int = 8192, max_parts: int = 8
) -> Limits:
    window_bytes = dict.fromkeys(Channel, 1 << 20)
    return Limits(max_frame_bytes, max_message_bytes, max_parts, window_bytes)


BAD_HELLOS = {
    "empty": b"",
    "short": hello()[:-1],
    "long": hello() + b"x",
    "another version": (VERSION + 1).to_bytes(2, "little") + hello()[2:],
    "a host": hello(Role.HOST),
    "no role": hello()[:2] + b"\3" + hello()[3:],
    "odd lived": hello()[:3] + b"\2" + hello()[4:],
    "other frames": hello(limits=other_limits(max_frame_bytes=512)),
    "other messages": hello(limits=other_limits(max_message_bytes=4096)),
    "other parts": hello(limits=other_limits(max_parts=4)),
    "handled more than received": hello(received=3, handled=4),
    "received unknown": hello(received=UNKNOWN),
    "handled unknown": hello(handled=UNKNOWN),
    "both unknown": hello(received=UNKNOWN, handled=UNKNOWN),
    "received without end": hello(received=1 << 62),
    "base without end": hello(base=1 << 62),
    "limit without end": hello(limit=1 << 62),
}


@pytest.mark.parametrize("bad", BAD_HELLOS)
@pytest.mark.parametrize("lived", [False, True])
def test_hellos_that_a_host_refuses(bad: str, lived: bool) -> None:
    host, forger = forged() if lived else (new_host(), None)
    host.connect()
    forger = Forger(host)
    with pytest.raises(LinkProtocolError):
        host.receive_data(forger.answer(BAD_HELLOS[bad]))
    assert host.state is LinkState.FAILED
    assert list(events(host)) == []
    host.connect()
    host.receive_data(forger.answer())
    assert isinstance(host.next_event(), Opened)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"received": 1}, "handled 0 and received 1"),
        ({"base": 1}, "the peer keeps 1 and later, we have not received 0"),
    ],
)
def test_numbers_that_cannot_be_are_refused_by_a_host_that_remembers(
    row: dict[str, int], reason: str
) -> None:
    host, forger = forged()
    host.connect()
    with pytest.raises(LinkProtocolError, match=reason):
        host.receive_data(forger.answer(hello(Role.GUEST, True, SMALL, **row)))


def test_forgotten_by_the_guest() -> None:
    """A guest that stands before what it has acknowledged is another guest, or a copy of an old one."""
    host, forger = forged()
    host.send(SHELL, [b"x"])
    everything(host)
    host.receive_data(ack(SHELL, 1, WINDOW))
    host.connect()
    with pytest.raises(LinkProtocolError, match="handled 0 and received 0, we keep 1 to 1"):
        host.receive_data(forger.answer(hello(lived=True)))


@pytest.mark.parametrize("what", ["parts", "seq", "channel"])
def test_hello_with_a_number(what: str) -> None:
    host = new_host()
    host.connect()
    nonce = Forger(host).nonce()
    with pytest.raises(LinkProtocolError):
        host.receive_data(nonce + raw(Event.HELLO, **{what: 1}, payload=hello()))


def test_only_hello_opens() -> None:
    for frame in (whole(SHELL, 0, b"x"), start(0, 300), chunk(0, 5), ack(SHELL, 0, WINDOW)):
        host = new_host()
        host.connect()
        with pytest.raises(LinkProtocolError, match="at this time"):
            host.receive_data(Forger(host).nonce() + frame)
        assert list(events(host)) == []


def test_what_a_guest_says_before_the_nonce_is_ignored() -> None:
    host = new_host()
    host.connect()
    forger = Forger(host)
    wire = everything(host)
    assert wire
    host.receive_data(
        MAGIC + raw(Event.HELLO, payload=hello()) + whole(SHELL, 0, b"x") + bytes(500)
    )
    assert host.state is LinkState.OPENING
    host.connect()
    host.receive_data(forger.answer())
    assert isinstance(host.next_event(), Opened)


def test_a_guest_waits_after_a_breach_and_only_a_whole_greeting_revives_it() -> None:
    host, guest = open_pair()
    with pytest.raises(LinkProtocolError, match="start no frame"):
        guest.receive_data(b"?" * HEADER.size)
    for data in (b"", b"!" * 1000, whole(SHELL, 0, b"x"), raw(Event.HELLO, payload=bytes(196))):
        with pytest.raises(LinkProtocolError, match="start no frame"):
            guest.receive_data(data)
        assert guest.state is LinkState.FAILED
    with pytest.raises(LinkProtocolError, match="HELLO of 0 bytes"):
        guest.receive_data(MAGIC + raw(Event.HELLO))
    with pytest.raises(LinkProtocolError, match="at this time"):
        guest.receive_data(MAGIC + whole(SHELL, 0, b"x"))
    host.connect()
    pump(host, guest)
    host.send(SHELL, [b"x"])
    pump(host, guest)
    assert [body(m) for m in messages(guest)] == [(b"x",)]


def test_blank_bytes_after_the_magic_start_the_hunt_again() -> None:
    guest = new_guest()
    guest.receive_data(MAGIC + bytes(100))
    assert guest.state is LinkState.OPENING
    host = new_host()
    host.connect()
    pump(host, guest)
    assert isinstance(guest.next_event(), Opened)


@pytest.mark.parametrize("seed", range(40))
def test_noise_never_gets_through(seed: int) -> None:
    """Random frames with right checksums, and random bytes, at a host and at a guest."""
    dice = random.Random(seed)
    for _ in range(25):
        host, _ = forged()
        _, guest = open_pair()
        for link in (host, guest):
            feed_noise(link, dice)
            assert link.state in (LinkState.FAILED, LinkState.OPEN, LinkState.OPENING)
            assert len(messages(link)) <= WINDOW // 256 * len(Channel)


def feed_noise(link: Link, dice: random.Random) -> None:
    numbers = (0, 1, 2, 255, 256, 300, 0xFFFF_FFFF)
    for _ in range(dice.randrange(1, 12)):
        payload = lengths(*dice.choices(numbers, k=dice.randrange(4)))
        payload += dice.randbytes(dice.choice([0, 1, 8, 60]))
        kind, channel = dice.choice([*range(7), 2, 2]), dice.choice([0, 2, 4, 5])
        frame = raw(kind, channel, dice.choice([0, 1, 2, 9]), dice.choice([0, 1, 2]), payload)
        try:
            link.receive_data(frame if dice.random() < 0.9 else dice.randbytes(50))
        except LinkProtocolError:
            assert link.state is LinkState.FAILED
