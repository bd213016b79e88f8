"""Bytes in any pieces, cut short, flipped, or sent again."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torpor.link import Channel, Limits, Link, LinkProtocolError, LinkState, Message
from torpor.link.frames import CHECK, HEADER, frame_header, small_frame
from torpor.link.hello import MAGIC
from torpor.link.states import Event
from torpor.link.types import Buffer

from tests.unit.link.pair import (
    body,
    events,
    everything,
    frames,
    messages,
    new_guest,
    new_host,
    open_pair,
    pump,
    take,
)

# credit for everything at once: these bytes go one way only
WIDE = Limits(256, 8192, 8, dict.fromkeys(Channel, 1 << 17), dict.fromkeys(Channel, 1 << 17))

deterministic = settings(derandomize=True, max_examples=150, deadline=None)
part = st.one_of(st.binary(max_size=90), st.integers(200, 900).map(lambda size: b"~" * size))
message = st.tuples(st.sampled_from(Channel), st.lists(part, min_size=1, max_size=8))


def wire_of(sent: list[tuple[Channel, list[bytes]]]) -> tuple[Link, bytes]:
    """Give a host that waits for the bytes, which carry ``sent``, and those bytes."""
    host, guest = open_pair(WIDE)
    for channel, parts in sent:
        guest.send(channel, parts)
    return host, everything(guest)


def by_channel(found: list[tuple[Channel, tuple[bytes, ...]]]) -> dict[Channel, list[object]]:
    return {c: [parts for channel, parts in found if channel is c] for c in Channel}


def received(host: Link) -> list[tuple[Channel, tuple[bytes, ...]]]:
    return [(found.channel, body(found)) for found in messages(host)]


@deterministic
@given(st.lists(message, max_size=6), st.lists(st.integers(1, 200), max_size=60), st.booleans())
def test_any_split_gives_the_same_messages(
    sent: list[tuple[Channel, list[bytes]]], cuts: list[int], one_by_one: bool
) -> None:
    host, wire = wire_of(sent)
    pos = 0
    for size in [1] * len(wire) if one_by_one else cuts:
        host.receive_data(wire[pos : pos + size])
        pos += size
    host.receive_data(wire[pos:])
    assert by_channel(received(host)) == by_channel([(c, tuple(parts)) for c, parts in sent])


@deterministic
@given(st.lists(message, min_size=1, max_size=5), st.integers(1, 1 << 30))
def test_truncation_gives_the_messages_before_it_and_waits(
    sent: list[tuple[Channel, list[bytes]]], cut: int
) -> None:
    complete, wire = wire_of(sent)
    host, again = wire_of(sent)
    assert again == wire
    complete.receive_data(wire)
    everything_sent = received(complete)
    cut %= len(wire)
    host.receive_data(wire[:cut])
    found = received(host)
    assert found == everything_sent[: len(found)]
    assert host.state is LinkState.OPEN
    host.receive_data(wire[cut:])
    assert found + received(host) == everything_sent


def test_a_flipped_bit_anywhere_fails_and_delivers_only_what_was_before_it() -> None:
    sent = [(Channel.SHELL, [b"first"]), (Channel.SHELL, [b"x" * 300, b""]), (Channel.RPC, [b"z"])]
    complete, wire = wire_of(sent)
    complete.receive_data(wire)
    truth = received(complete)
    for bit in range(0, len(wire) * 8, 3):  # two or three in each byte
        host, _ = wire_of(sent)
        flipped = bytearray(wire)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(LinkProtocolError):
            host.receive_data(flipped)
        found = received(host)
        assert found == truth[: len(found)]
        assert len(found) < len(truth)
        with pytest.raises(LinkProtocolError):
            host.receive_data(b"")


@pytest.mark.parametrize("seed", range(len(MAGIC) + 10))
def test_every_flipped_bit_of_a_greeting_leaves_the_guest_waiting_for_the_next(seed: int) -> None:
    """All positions of the preamble and HELLO, spread over the parameters."""
    step = len(MAGIC) + 10
    reference = new_host()
    reference.connect()
    wire = everything(reference)
    size = len(wire)
    for position in range(seed, size, step):
        host, guest = new_host(), new_guest()
        host.connect()
        flipped = bytearray(everything(host))
        flipped[position] ^= 0x10
        try:
            guest.receive_data(bytes(flipped))
        except LinkProtocolError:
            assert guest.state is LinkState.FAILED
        if position >= wire.index(MAGIC):  # a zero byte more or less is no difference
            assert guest.state is not LinkState.OPEN
        host.connect()
        pump(host, guest)
        assert guest.state is host.state is LinkState.OPEN


def test_replayed_frames_are_refused() -> None:
    sent = [(Channel.IOPUB, [b"one"]), (Channel.IOPUB, [b"y" * 700])]
    _, wire = wire_of(sent)
    for kind, _channel, frame in frames(wire):
        host, again = wire_of(sent)
        host.receive_data(again)
        with pytest.raises(LinkProtocolError, match=r"message|chunk|lengths"):
            host.receive_data(frame)
        assert kind in (Event.WHOLE, Event.START, Event.CHUNK)
        assert len(messages(host)) == 2


def test_replayed_session_is_ignored() -> None:
    """A host that connects takes nothing of an earlier session for its own."""
    host, guest = new_host(), new_guest()
    host.connect()
    guest.receive_data(everything(host))
    guest.send(Channel.IOPUB, [b"old"])
    old = everything(guest)
    host.connect()
    host.receive_data(old)
    assert host.state is LinkState.OPENING
    assert list(events(host)) == []
    guest.receive_data(everything(host))
    host.receive_data(old + everything(guest))
    assert [body(m) for m in messages(host)] == [(b"old",)]


def test_magic_starts_no_frame_at_any_offset() -> None:
    """What remains of the zero bytes before the magic cannot make a header of it."""
    host = new_host()
    host.connect()
    hello = everything(host)
    start = hello.index(MAGIC)
    for zeros in range(HEADER.size):
        _, length, check, *_ = HEADER.unpack_from(hello, start - zeros)
        assert length ^ check != CHECK


def test_marker_is_found_in_any_pieces() -> None:
    for size in (1, 2, 3, 15, 16, 17, 31):
        host, guest = new_host(), new_guest()
        host.connect()
        wire = MAGIC[:9] + MAGIC[:15] + everything(host)
        for pos in range(0, len(wire), size):
            guest.receive_data(wire[pos : pos + size])
        assert guest.state is LinkState.OPEN


@pytest.mark.parametrize("nbytes", [0, 1, 4095, 4096, 16_000, 16_384, 131_072, 131_073, 400_000])
def test_sizes_around_every_threshold(nbytes: int) -> None:
    limits = Limits()
    host, guest = open_pair(limits)
    sent = [bytes([nbytes % 251]) * nbytes, b"", b"tail" * 1500, b"."]
    host.send(Channel.SHELL, [sent[0], memoryview(sent[1]), bytearray(sent[2]), sent[3]])
    pump(host, guest)
    (found,) = messages(guest)
    assert list(body(found)) == sent
    assert [isinstance(part, bytes) for part in found.parts][1:4:2] == [True, True]
    assert all(memoryview(part).readonly for part in found.parts)


def test_many_parts() -> None:
    host, guest = open_pair(Limits())
    for size in (0, 3, 500):
        parts = [b"%d" % index + b"." * size for index in range(4096)]
        host.send(Channel.SHELL, parts)
        pump(host, guest)
        (found,) = messages(guest)
        assert list(body(found)) == parts


def test_a_frame_of_many_bytes_in_single_bytes_takes_linear_time() -> None:
    host, guest = open_pair(Limits())
    guest.send(Channel.IOPUB, [b"x" * 100_000])
    guest.send(Channel.IOPUB, [b"y" * 200_000])
    wire = everything(guest)
    began = time.perf_counter()
    for byte in range(len(wire)):
        host.receive_data(wire[byte : byte + 1])
    assert len(messages(host)) == 2
    assert time.perf_counter() - began < 10  # quadratic would be minutes


def test_header_forms_agree() -> None:
    pieces: list[Buffer] = [b"abc", memoryview(b"defg")]
    header = frame_header(Event.WHOLE, 3, 7, 9, pieces, 7)
    assert header + b"abcdefg" == small_frame(Event.WHOLE, 3, 7, 9, b"abcdefg")
    assert len(header) == HEADER.size == 24


def test_memoryview_and_bytearray_are_received_too() -> None:
    host, wire = wire_of([(Channel.SHELL, [b"one"]), (Channel.SHELL, [b"two"])])
    host.receive_data(memoryview(wire)[:10])
    host.receive_data(bytearray(wire[10:]))
    assert [found[1] for found in received(host)] == [(b"one",), (b"two",)]


def test_data_before_connect_is_ignored() -> None:
    host = new_host()
    host.receive_data(b"anything" * 100)
    assert host.state is LinkState.IDLE
    assert take(host) == b""


def test_representations_do_not_show_content() -> None:
    host, guest = open_pair()
    host.connect()
    guest.send(Channel.SHELL, [b"secret", b"x"])
    pump(host, guest)
    opened, found = events(host)
    assert isinstance(found, Message)
    assert repr(opened).startswith("Opened(resumed=True")
    assert repr(found) == "Message(SHELL 0, parts of [6, 1] bytes)"
