"""A connection that is cut anywhere, and what each way of coming back guarantees."""

from __future__ import annotations

import itertools
import random

import pytest
from torpor.link import Channel, Limits, LinkProtocolError, LinkState
from torpor.link.frames import HEADER
from torpor.link.hello import MAGIC

from tests.unit.link.pair import SMALL, everything, messages, open_pair, pump, take
from tests.unit.link.world import End, Log, Return, World, joined

RPC, CONTROL, SHELL, STDIN, IOPUB = Channel
EVERY_RETURN = pytest.mark.parametrize("how", Return, ids=lambda how: how.name.lower())
CUTS = ("host writes", "guest writes", "host reads")


def exchange(world: World) -> World:
    """Let both sides send small messages, one in chunks, and one that looks like blank bytes."""
    world.from_host(SHELL, b"large" * 51, b"", b"x")
    world.from_host(SHELL, bytes(40))
    world.from_host(CONTROL, b"stop")
    world.from_host(SHELL, b"last")
    world.from_guest(IOPUB, b"one")
    world.from_guest(IOPUB, b"LARGE" * 51, b"y")
    world.from_guest(IOPUB, bytes(60))
    world.from_guest(RPC, b"{}")
    world.from_guest(IOPUB, b"four")
    world.run()
    return world


def farewell(world: World) -> None:
    """Let both sides go on after the cut."""
    for channel in (SHELL, IOPUB):
        world.from_host(channel, b"again", b"h")
        world.from_guest(channel, b"again", b"g")
    world.settle()


def assert_guaranteed(world: World, how: Return) -> None:
    """Check what ``Link`` promises about the logs after one return."""
    for channel, sent in world.sent_by_guest.items():
        logs = [log[channel] for log in world.host_logs]
        if how is Return.FORGETS:
            acknowledged = world.acknowledged[channel]
            assert logs[1] == sent[acknowledged:]
            assert logs[0] == sent[: len(logs[0])]
            assert len(logs[0]) >= acknowledged
        else:
            assert joined(logs) == sent
    for channel, log in world.guest.log.items():
        assert_delivered(log, [sent[channel] for sent in world.sent_by_hosts])


def assert_delivered(log: list[bytes], sent: list[list[bytes]]) -> None:
    """A dead process may have taken the end of what it had to say with it, and nothing else."""
    *dead, alive = sent
    assert log[len(log) - len(alive) :] == alive
    before = log[: len(log) - len(alive)]
    assert before == joined(dead)[: len(before)]


def total_bytes(cut: str) -> int:
    """Give how many bytes flow in the exchange in the direction of ``cut``."""
    world = World()
    end = world.host if cut == "host writes" else world.guest
    exchange(world)
    return (1 << 60) - end.may_write


def cut_world(cut: str, at: int, lag: int) -> World:
    world = World(lag)
    match cut:
        case "host writes":
            world.host.may_write = at
        case "guest writes":
            world.guest.may_write = at
        case _:
            world.host.may_read = at
    return exchange(world)


@EVERY_RETURN
@pytest.mark.parametrize("cut", CUTS)
def test_cut_at_every_byte(cut: str, how: Return) -> None:
    blank = SMALL.max_frame_bytes if cut == "host writes" else 0  # one zero byte is like another
    step = 3 if cut == "host reads" else 1  # the guest's half frames are complete in the FIFO then
    for at in (*range(0, blank, 50), *range(blank, total_bytes(cut) + 1, step)):
        world = cut_world(cut, at, lag=at % 3)
        world.come_back(how, lossy=at % 5 == 0)
        farewell(world)
        assert_guaranteed(world, how)


@EVERY_RETURN
def test_frames_that_were_whole_are_not_lost_with_the_process(how: Return) -> None:
    world = exchange(World())
    world.come_back(how)
    farewell(world)
    sent = world.sent_by_hosts
    for channel in Channel:
        assert world.guest.log[channel] == joined(log[channel] for log in sent)


@EVERY_RETURN
@pytest.mark.parametrize("seed", range(25))
def test_many_cuts(how: Return, seed: int) -> None:
    dice, serial = random.Random(seed), itertools.count()
    world = World(lag=dice.randrange(3))
    for _ in range(dice.randrange(2, 9)):
        for _ in range(dice.randrange(6)):
            send = dice.choice([world.from_host, world.from_guest])
            parts = [dice.randbytes(dice.choice([0, 1, 30, 300, 900])) for _ in range(3)]
            send(dice.choice([SHELL, STDIN, IOPUB]), b"%d" % next(serial), *parts)
        walk(world, dice)
        world.come_back(how, lossy=dice.random() < 0.3)
    farewell(world)
    if how is Return.FORGETS:
        assert_nothing_lost(world)
    else:
        for channel, sent in world.sent_by_guest.items():
            assert joined(log[channel] for log in world.host_logs) == sent
    assert_in_order(world.guest.log, world.sent_by_hosts)


def walk(world: World, dice: random.Random) -> None:
    """Carry bytes in pieces of any size, and stop anywhere."""
    host, guest = world.host, world.guest
    for _ in range(dice.randrange(60)):
        nbytes = dice.choice([1, 7, 24, 100, 300, 1000])
        step = dice.randrange(4)
        if step == 0:
            host.write(nbytes)
        elif step == 1:
            guest.write(nbytes)
        elif step == 2:
            guest.read(host, nbytes)
        else:
            host.read(guest, nbytes)


def assert_nothing_lost(world: World) -> None:
    """Each process of a host that forgets sees a run of what was sent, with no hole between two."""
    for channel, sent in world.sent_by_guest.items():
        seen = 0
        for log in world.host_logs:
            if run := log[channel]:
                first = next(i for i in range(seen + 1) if sent[i : i + len(run)] == run)
                seen = max(seen, first + len(run))
        assert seen == len(sent)


def assert_in_order(log: Log, sent: list[Log]) -> None:
    """The guest has handled, of each host process, the beginning of what it sent; of the last all."""
    for channel, handled in log.items():
        rest = handled
        for process in sent[:-1]:
            count = 0
            while count < min(len(rest), len(process[channel])):
                if rest[count] != process[channel][count]:
                    break
                count += 1
            rest = rest[count:]
        assert rest == sent[-1][channel]


@pytest.mark.parametrize("handled", [0, 3, 5])
def test_new_process_that_is_behind_or_level(handled: int) -> None:
    """Marks may be older than what was acknowledged; what the guest forgot cannot come again."""
    world = World()
    for number in range(5):
        world.from_guest(IOPUB, b"%d" % number)
    world.run()
    world.host.link.flush()
    world.run()
    assert world.guest.link.pending_bytes(IOPUB) == 0
    world.new_host({IOPUB: handled})
    farewell(world)
    assert world.host_logs[1][IOPUB] == [b"again|g"]
    assert world.host.link.handled_next(IOPUB) == 6


def test_new_process_whose_marks_are_ahead_opens_no_session() -> None:
    """The guest cannot serve it: the marks are those of another guest."""
    world = World()
    world.new_host({IOPUB: 7})
    world.run()
    with pytest.raises(LinkProtocolError, match="IOPUB: the peer has handled 7"):
        world.guest.link.receive_data(b"")
    assert world.guest.link.state is LinkState.FAILED
    assert world.host.link.state is LinkState.OPENING
    world.new_host({})
    farewell(world)
    assert world.host_logs[-1][IOPUB] == [b"again|g"]


def test_guest_that_was_holding_messages_tells_a_new_process_of_them_later() -> None:
    """Received by the guest, not handled yet: neither repeated nor a breach when acknowledged."""
    world = World()
    world.guest.lag = 4
    for number in range(5):
        world.from_host(SHELL, b"%d" % number)
    world.run()
    world.come_back(Return.FORGETS)
    for how in (None, Return.SURVIVES, Return.FORGETS):
        world.run()
        world.guest.handle()
        world.guest.link.flush()
        world.run()
        assert world.host.link.state is LinkState.OPEN
        if how:
            world.come_back(how)
    farewell(world)
    assert world.guest.log[SHELL] == [b"0", b"1", b"2", b"3", b"4", b"again|h"]


def test_resumed_says_whether_an_end_had_a_session_before() -> None:
    world = World()
    world.run()
    assert [o.resumed for o in world.host.opened + world.guest.opened] == [False, False]
    world.host.link.connect()
    world.run()
    assert [end.opened[-1].resumed for end in (world.host, world.guest)] == [True, True]
    world.new_host(None)
    world.run()
    assert [end.opened[-1].resumed for end in (world.host, world.guest)] == [True, True]


def test_peers_know_each_other_by_nonce() -> None:
    world = World()
    world.run()
    world.host.link.connect()
    world.run()
    nonces = [o.peer_nonce for o in world.host.opened + world.guest.opened]
    assert len(set(nonces)) == 4


def test_connecting_again_and_again_before_any_answer() -> None:
    world = World()
    for _ in range(5):
        world.host.write()
        world.host.link.connect()
    farewell(world)
    assert world.guest.log[SHELL] == [b"again|h"]
    # the guest answered them all, one after the other; the host took the last
    assert len(world.host.opened) == 1


def test_a_lost_acknowledgement_is_made_up_for_by_the_next_session() -> None:
    world = World()
    world.from_guest(IOPUB, b"x")
    world.run()
    assert world.host.log[IOPUB] == [b"x"]
    world.host.link.flush()
    end: End = world.host
    end.write()
    end.written.clear()  # lost
    assert world.guest.link.pending_bytes(IOPUB) or not end.link.owes_acknowledgement
    end.link.connect()
    world.run()
    assert world.guest.link.pending_bytes(IOPUB) == 0


def test_a_greeting_tells_what_was_handled_so_nothing_more_is_owed() -> None:
    host, guest = open_pair()
    guest.send(IOPUB, [b"x"])
    pump(host, guest)
    assert len(messages(host)) == 1
    assert host.owes_acknowledgement
    host.connect()
    pump(host, guest)
    assert guest.pending_bytes(IOPUB) == 0
    assert not host.owes_acknowledgement
    host.flush()
    assert everything(host) == b""


def test_beginning_again_drops_what_was_not_written() -> None:
    """The rest of a frame and an earlier greeting would only keep the guest busy."""
    host, _ = open_pair()
    host.send(SHELL, [b"x" * 200])
    take(host, exactly=50)
    for _ in range(3):
        host.connect()
    wire = everything(host)
    blank = bytes(SMALL.max_frame_bytes + 2 * HEADER.size)
    assert wire.startswith(blank + MAGIC)
    assert wire.count(MAGIC) == 1
    assert b"x" not in wire


def test_never_more_buffers_than_writev_takes_when_many_frames_are_overtaken() -> None:
    _, guest = open_pair(Limits())
    for channel in (IOPUB, SHELL, CONTROL):
        for _ in range(1500):
            guest.send(channel, [b"x"])
        assert 1000 <= len(guest.data_to_send()) <= 1024
