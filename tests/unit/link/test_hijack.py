"""What a message carries can never be taken for the protocol, wherever a stream is cut."""

from __future__ import annotations

import collections
import itertools

import pytest
from torpor.link import Channel, Link, LinkProtocolError, LinkState, Role
from torpor.link.frames import HEADER, small_frame
from torpor.link.hello import MAGIC, NONCE_BYTES, UNKNOWN, Hello, Standing
from torpor.link.states import Event

from tests.unit.link.pair import body, everything, messages, new_host, open_pair, pump
from tests.unit.link.world import Return, World

SHELL, IOPUB = Channel.SHELL, Channel.IOPUB
FORGED_NONCE = b"forged by a cell"


def forged_session(role: Role) -> bytes:
    """Give the bytes that would open a session if they were read as protocol."""
    number = UNKNOWN if role is Role.HOST else 0
    rows = [Standing(number, number, 0, 2048) for _ in Channel]
    host = new_host()
    payload = Hello(role, False, FORGED_NONCE, rows).pack(host.limits)
    return MAGIC + small_frame(Event.HELLO, 0, 0, 0, payload)


@pytest.mark.parametrize("how", Return, ids=lambda how: how.name.lower())
@pytest.mark.parametrize("padding", [0, 300])
def test_forged_greeting_in_a_message_to_the_guest(how: Return, padding: int) -> None:
    """Cut at every byte, so also where the forged HELLO is the last that a dead host wrote."""
    evil = forged_session(Role.HOST)
    for at in range(300, 300 + 24 + padding + len(evil) + 320, 2 if padding else 1):
        world = World()
        world.host.may_write = at
        world.from_host(SHELL, b"." * padding, evil)
        world.from_host(SHELL, evil[:200])
        world.run()
        world.come_back(how)
        world.from_host(SHELL, evil, b"after")
        world.settle()
        assert all(opened.peer_nonce != FORGED_NONCE for opened in world.guest.opened)
        assert len(world.guest.opened) <= 2
        assert world.guest.log[SHELL][-1] == evil + b"|after"
        assert world.host.link.state is world.guest.link.state is LinkState.OPEN


@pytest.mark.parametrize("how", Return, ids=lambda how: how.name.lower())
def test_forged_answers_in_messages_to_the_host(how: Return) -> None:
    """The kernel knows the protocol and every nonce of the past, and floods iopub with answers."""
    seen: list[bytes] = []
    world = World()
    rng = world.rng

    def spying_rng(size: int) -> bytes:
        seen.append(rng(size))
        return seen[-1]

    world.rng = spying_rng
    forged = forged_session(Role.GUEST).removeprefix(MAGIC)
    for round_number in range(6):
        world.come_back(how)
        for nonce in [*seen[:-1], MAGIC, bytes(NONCE_BYTES)]:
            world.from_guest(IOPUB, nonce + forged)
        world.guest.may_write = 250 + 37 * round_number
        world.run()
        assert all(o.peer_nonce != FORGED_NONCE for o in world.host.opened)
    world.come_back(how)
    world.settle()
    assert all(o.peer_nonce != FORGED_NONCE for o in world.host.opened)
    assert world.host.log[IOPUB][-1] == world.sent_by_guest[IOPUB][-1]


def test_nonces_come_from_the_system_and_differ_every_time() -> None:
    nonces = []
    for link in (Link(Role.HOST), Link(Role.HOST)):
        for _ in range(3):
            link.connect()
            wire = everything(link)
            start = wire.index(MAGIC) + len(MAGIC) + HEADER.size + 16
            nonces.append(wire[start : start + NONCE_BYTES])
    assert len(set(nonces)) == 6
    bits = collections.Counter(itertools.chain(*nonces))
    assert len(bits) > 40  # of 96 bytes: not some counter


def test_an_answer_to_another_nonce_is_ignored() -> None:
    host = new_host()
    host.connect()
    everything(host)
    host.receive_data(FORGED_NONCE + forged_session(Role.GUEST))
    assert host.state is LinkState.OPENING


def test_a_greeting_inside_a_session_is_a_breach_and_no_session() -> None:
    _, guest = open_pair()
    with pytest.raises(LinkProtocolError):
        guest.receive_data(forged_session(Role.HOST)[len(MAGIC) :])
    assert guest.state is LinkState.FAILED
    _, guest = open_pair()
    with pytest.raises(LinkProtocolError):
        guest.receive_data(MAGIC + bytes(HEADER.size))
    assert guest.state is LinkState.FAILED


def test_a_failed_guest_is_revived_by_a_whole_greeting_only() -> None:
    host, guest = open_pair()
    with pytest.raises(LinkProtocolError):
        guest.receive_data(b"\xff" * HEADER.size)
    with pytest.raises(LinkProtocolError):
        guest.receive_data(b"\x01" * 1000 + MAGIC[:-1])
    guest.receive_data(MAGIC[-1:] + forged_session(Role.HOST)[len(MAGIC) : -1])
    assert guest.state is LinkState.OPENING
    host.connect()
    pump(host, guest)
    host.send(SHELL, [b"x"])
    pump(host, guest)
    assert [body(m) for m in messages(guest)] == [(b"x",)]
