"""Credit never deadlocks, whatever the sizes, the window, and the order of acknowledgements."""

from __future__ import annotations

import random

import pytest
from torpor.link import Channel, Limits, LinkProtocolError, Message, message_cost
from torpor.link.frames import small_frame
from torpor.link.states import Event

from tests.unit.link.pair import SMALL, body, forged, lengths, messages, open_pair, pump

IOPUB = Channel.IOPUB
MIB = 1 << 20


def limits(window: int) -> Limits:
    windows = dict.fromkeys(Channel, window)
    return Limits(256, 8192, 8, windows, dict.fromkeys(Channel, 20_000))


@pytest.mark.parametrize("nbytes", [0, 1, 100, 250, 252, 253, 700, 5000])
@pytest.mark.parametrize("window", [2048, 2500, 9000])
def test_all_arrives_when_all_is_handled_in_any_order(nbytes: int, window: int) -> None:
    host, guest = open_pair(limits(window))
    dice = random.Random(nbytes + window)
    sent = []
    while guest.can_send(IOPUB, nbytes + 2, 2):
        sent.append((b"%2d" % (len(sent) % 100), b"x" * nbytes))
        guest.send(IOPUB, sent[-1])
    got: list[Message] = []
    held: list[Message] = []
    while len(got) < len(sent):
        pump(host, guest)
        fresh = messages(host, acknowledge=False)
        got += fresh
        held += fresh
        assert sum(message_cost(nbytes + 2, 2) for _ in held) <= window + message_cost(nbytes, 2)
        assert held, "both ends wait for ever"
        dice.shuffle(held)
        for _ in range(dice.randrange(1, len(held) + 1)):
            host.acknowledge(held.pop())
    assert [body(message) for message in got] == sent
    for message in held:
        host.acknowledge(message)
    host.flush()
    pump(host, guest)
    assert guest.pending_bytes(IOPUB) == 0


def test_one_message_is_no_larger_than_our_own_queue_of_the_channel() -> None:
    """Five channels with a message of 1 GiB each would be too much of the host's memory."""
    host, _ = forged(Limits())
    fits = lengths(64 * MIB - 4)
    host.receive_data(small_frame(Event.START, Channel.RPC, 1, 0, fits))
    too_large = lengths(64 * MIB - 3)
    with pytest.raises(LinkProtocolError, match="CONTROL: a message of 67108865 bytes"):
        host.receive_data(small_frame(Event.START, Channel.CONTROL, 1, 0, too_large))
    assert SMALL.queue_bytes[IOPUB] > SMALL.max_message_bytes
