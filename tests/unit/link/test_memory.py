"""Memory stays bounded whatever a peer announces, floods or withholds."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import pytest
from torpor.link import Channel, Limits, LinkProtocolError, LinkState, message_cost
from torpor.link.frames import HEADER, small_frame
from torpor.link.hello import Standing
from torpor.link.states import Event

from tests.unit.link.pair import (
    Forger,
    ack,
    everything,
    forged,
    lengths,
    messages,
    new_guest,
    new_host,
    open_pair,
    whole,
)

MIB = 1 << 20
LIMITS = Limits(
    window_bytes=dict.fromkeys(Channel, 2 * MIB), queue_bytes=dict.fromkeys(Channel, 2048 * MIB)
)
IOPUB = Channel.IOPUB


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def grown_bytes() -> int:
    """Give the highest use of memory since the last call, over what was in use then."""
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    return peak


@pytest.mark.usefixtures("traced")
def test_what_is_only_announced_takes_no_memory() -> None:
    host, _ = forged(LIMITS)
    grown_bytes()
    sizes = lengths((1 << 30) - 100, 1, 2)
    for channel in Channel:
        host.receive_data(small_frame(Event.START, channel, 3, 0, sizes))
    assert grown_bytes() < MIB


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("parts", [[b""], [b"ab"], [b""] * 500, [b"xy"] * 4096], ids=len)
def test_a_flood_of_tiny_messages_stops_at_the_window(parts: list[bytes]) -> None:
    host, _ = forged(LIMITS)
    before = grown_bytes()
    fit = 2 * MIB // message_cost(sum(map(len, parts)), len(parts))
    for seq in range(fit):
        host.receive_data(whole(IOPUB, seq, *parts))
    with pytest.raises(LinkProtocolError, match=f"IOPUB: message {fit} "):
        host.receive_data(whole(IOPUB, fit, *parts))
    assert grown_bytes() - before < 3 * MIB
    assert len(messages(host)) == fit


@pytest.mark.usefixtures("traced")
def test_noise_before_a_session_is_not_kept() -> None:
    host, guest = new_host(), new_guest()
    host.connect()
    everything(host)
    grown_bytes()
    noise = b"noise" * 20_000
    for _ in range(300):
        host.receive_data(noise)
        guest.receive_data(noise)
        guest.receive_data(bytes(100_000))
    assert host.state is LinkState.OPENING
    assert grown_bytes() < MIB


@pytest.mark.usefixtures("traced")
def test_half_a_frame_again_and_again_is_kept_once() -> None:
    host, guest = new_host(Limits()), new_guest(Limits())
    grown_bytes()
    for _ in range(100):
        host.connect()
        wire = everything(host)
        guest.receive_data(wire[:-1])
        assert guest.state is not LinkState.OPEN
    assert grown_bytes() < 2 * MIB


@pytest.mark.usefixtures("traced")
def test_half_a_message_again_and_again_is_kept_once() -> None:
    host, guest = open_pair(Limits())
    guest.send(IOPUB, [bytes(10 * MIB)])
    grown_bytes()
    for _ in range(6):
        for _ in range(3):
            buffers = guest.data_to_send()
            guest.sent(sum(map(len, buffers)))
            for buffer in buffers:
                host.receive_data(buffer)
        host.connect()
        try:
            guest.receive_data(everything(host))
        except LinkProtocolError:
            pytest.fail("the host has stopped at the end of a frame")
    assert grown_bytes() < 30 * MIB


@pytest.mark.usefixtures("traced")
def test_a_peer_that_never_acknowledges_fills_the_queue_and_no_more() -> None:
    limits = Limits(queue_bytes=dict.fromkeys(Channel, 2 * MIB))
    host, _ = forged(limits)
    grown_bytes()
    while host.can_send(Channel.SHELL, 1000):
        host.send(Channel.SHELL, [b"x" * 1000])
        everything(host)
    assert grown_bytes() < 4 * MIB


@pytest.mark.usefixtures("traced")
def test_a_peer_that_acknowledges_without_end_costs_nothing() -> None:
    host, _ = forged(Limits())
    grown_bytes()
    for number in range(5000):
        host.receive_data(ack(IOPUB, 0, (20 << 20) + number))
    assert grown_bytes() < MIB


def test_every_byte_that_could_be_the_last_of_a_header_is_looked_at() -> None:
    """A header is refused as soon as it is there; its payload is not waited for."""
    host, forger = forged(Limits())
    with pytest.raises(LinkProtocolError, match="at most 131072"):
        host.receive_data(small_frame(Event.WHOLE, 2, 1, 0, bytes(131_073))[: HEADER.size])
    host.connect()
    rows = [Standing(0, 0, 0, MIB)] * 5
    host.receive_data(forger.answer(forger.hello(rows)))
    assert isinstance(forger, Forger)
    assert host.state is LinkState.OPEN
