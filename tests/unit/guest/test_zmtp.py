"""The ZMTP codec: whatever the bytes and their splits, messages come out whole or the peer is refused."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torpor_guest.zmtp import Part, Zmtp, ZmtpError, encode

GREETING = b"\xff\0\0\0\0\0\0\0\0\x7f\x03\x01NULL".ljust(64, b"\0")
READY = b"\x04\x18\x05READY\x0bSocket-Type\0\0\0\x02XX"


def feed(codec: Zmtp, raw: bytes, chunk: int = 1 << 20) -> list[list[bytes]]:
    """Put bytes in as a socket would: at most ``chunk``, and at most the room, at a time."""
    out: list[list[Part]] = []
    while raw:
        room = codec.room()
        count = min(len(room), len(raw), chunk)
        room[:count] = raw[:count]
        raw = raw[count:]
        out += codec.received(count)
    return [[bytes(part) for part in message] for message in out]


def connected(limit: int = 1 << 20) -> Zmtp:
    codec = Zmtp(b"DEALER", b"me", limit)
    assert feed(codec, GREETING + READY) == []
    assert codec.up
    codec.answers.clear()
    return codec


def wire(*messages: list[bytes]) -> bytes:
    return b"".join(bytes(part) for message in messages for part in encode(list(message)))


def test_handshake_speaks_in_turn() -> None:
    codec = Zmtp(b"SUB", b"", 1000)
    greeting = codec.answers.pop()
    assert len(greeting) == 64
    assert greeting[:12] == b"\xff\0\0\0\0\0\0\0\0\x7f\x03\0"
    assert feed(codec, GREETING[:63]) == []
    assert codec.answers == []
    feed(codec, GREETING[63:])
    assert codec.answers == [b"\x04\x26\x05READY\x0bSocket-Type\0\0\0\x03SUB\x08Identity\0\0\0\0"]
    assert not codec.up
    feed(codec, READY)
    assert codec.up


@given(
    st.lists(st.lists(st.binary(max_size=400), min_size=1, max_size=8), max_size=5),
    st.integers(1, 700),
)
def test_any_split_gives_the_same_messages(messages: list[list[bytes]], chunk: int) -> None:
    codec = Zmtp(b"DEALER", b"me", 1 << 20)
    assert feed(codec, GREETING + READY + wire(*messages), chunk) == messages


@pytest.mark.parametrize("size", [255, 256, 4095, 4096, 16384, 16385, 65526, 65536, 300_000])
@pytest.mark.parametrize("chunk", [1000, 1 << 20])
def test_frames_of_every_size_class(size: int, chunk: int) -> None:
    message = [b"head", bytes(range(256)) * (size // 256) + b"x" * (size % 256), b"", b"tail"]
    raw = wire([b"before"], message, message, [b"after"])
    assert feed(connected(), raw, chunk) == [[b"before"], message, message, [b"after"]]


def test_large_parts_are_not_copied_on_the_way_out() -> None:
    large = bytes(100_000)
    assert any(buffer is large for buffer in encode([b"a", large, b"b"]))


def test_ping_is_answered_with_its_context() -> None:
    codec = connected()
    feed(codec, b"\x04\x0a\x04PING\0\x10ctx")
    assert codec.answers == [b"\x04\x08\x04PONGctx"]


def test_unknown_commands_are_ignored_once_connected() -> None:
    assert feed(connected(), b"\x04\x04\x03FOO" + wire([b"x"])) == [[b"x"]]


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 400 Bad Request".ljust(64),
        GREETING[:10] + b"\x01" + GREETING[11:],
        GREETING.replace(b"NULL", b"CURV"),
        GREETING + b"\0\x01x",
        GREETING + b"\x04\x06\x05WRONG",
        GREETING + b"\x04\x0b\x05ERROR\x04nope",
        GREETING + b"\x04\0",
        GREETING + READY + b"\x08\0",
        GREETING + READY + b"\x02" + (1 << 62).to_bytes(8, "big"),
        GREETING + READY + b"\x02" + (1001).to_bytes(8, "big"),
        GREETING + READY + wire([b"x" * 600, b"y" * 600]),
        GREETING + READY + b"\x01\0" * 5000,
        GREETING + READY + b"\x04\x07\x05ERROR\0",
    ],
    ids=range(13),
)
def test_a_peer_that_breaks_the_rules_is_refused(raw: bytes) -> None:
    with pytest.raises(ZmtpError):
        feed(Zmtp(b"DEALER", b"me", 1000), raw)


@given(st.binary(max_size=300))
def test_noise_is_refused_or_ignored_but_never_crashes(noise: bytes) -> None:
    codec = connected(10_000)
    with contextlib.suppress(ZmtpError):
        feed(codec, noise)
