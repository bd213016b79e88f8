"""Who goes first, who has to wait, what is kept, and when it is acknowledged."""

from __future__ import annotations

import array

import pytest
from torpor.link import (
    Channel,
    Limits,
    Link,
    LinkState,
    MessageTooLarge,
    Opened,
    QueueFull,
    Role,
    message_cost,
)
from torpor.link.states import Event

from tests.unit.link.pair import (
    SMALL,
    ack,
    body,
    events,
    everything,
    forged,
    frames,
    messages,
    new_guest,
    new_host,
    open_pair,
    pump,
    take,
)

RPC, CONTROL, SHELL, STDIN, IOPUB = Channel
WINDOW = SMALL.window_bytes[SHELL]
ROOMY = Limits(256, 1 << 20, 8, dict.fromkeys(Channel, 1 << 16), dict.fromkeys(Channel, 1 << 20))


def order(wire: bytes) -> list[int]:
    return [channel for kind, channel, _ in frames(wire) if kind is not Event.ACK]


def test_the_most_urgent_channel_goes_first() -> None:
    host, _ = open_pair()
    for channel in reversed(Channel):
        host.send(channel, [b"1"])
        host.send(channel, [b"2"])
    assert order(everything(host)) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


@pytest.mark.parametrize("written", [0, 1, 23, 24, 25, 100, 303, 304, 305, 10_000])
def test_control_passes_a_flood_at_the_next_frame(written: int) -> None:
    _, guest = open_pair(ROOMY)
    for _ in range(100):
        guest.send(IOPUB, [bytes(248)])  # 276 bytes each
    first = take(guest, exactly=written)
    guest.send(CONTROL, [b"stop"])
    later = everything(guest)
    channels = order(first + later)
    assert len(channels) == 101
    assert channels.index(CONTROL) == -(-written // 276)


def test_control_passes_between_the_chunks_of_one_message() -> None:
    host, guest = open_pair(ROOMY)
    guest.send(SHELL, [bytes(5000)])
    first = take(guest, max_bytes=700)
    guest.send(CONTROL, [b"stop"])
    wire = everything(guest)
    assert order(wire)[0] == CONTROL
    host.receive_data(first + wire)
    assert [m.channel for m in messages(host)] == [CONTROL, SHELL]


def test_nothing_is_committed_until_it_is_sent() -> None:
    _, guest = open_pair(ROOMY)
    guest.send(IOPUB, [b"x"])
    seen = b"".join(guest.data_to_send())
    assert seen == b"".join(guest.data_to_send())
    guest.send(RPC, [b"y"])
    assert order(b"".join(guest.data_to_send())) == [RPC, IOPUB]
    guest.sent(0)
    assert order(everything(guest)) == [RPC, IOPUB]
    with pytest.raises(ValueError, match="1 bytes more"):
        guest.sent(1)


def test_the_appetite_of_the_writer_is_respected() -> None:
    _, guest = open_pair(ROOMY)
    for _ in range(60):
        guest.send(IOPUB, [bytes(248)])
    assert [len(guest.data_to_send(size)) for size in (0, 1, 276, 277, 1000)] == [0, 1, 1, 2, 4]
    guest.sent(100)
    rest = guest.data_to_send(1)
    assert [len(piece) for piece in rest] == [176]
    assert len(guest.data_to_send(177)) == 2


def test_never_more_buffers_than_writev_takes() -> None:
    host, guest = open_pair(Limits())
    for _ in range(3000):
        guest.send(IOPUB, [b"x"])
    for _ in range(100):  # the worst frames: small and large parts in turn
        guest.send(SHELL, [b"small", bytes(4096)] * 15)
    most = 0
    while buffers := guest.data_to_send():
        most = max(most, len(buffers))
        wire = b"".join(buffers)
        guest.sent(len(wire) // 2 + 1)
        host.receive_data(wire[: len(wire) // 2 + 1])
    assert len(messages(host)) == 3100
    assert 1000 <= most <= 1024


def test_partial_writes_of_any_size() -> None:
    for size in (1, 7, 24, 255):
        host, guest = open_pair(ROOMY)
        guest.send(IOPUB, [b"a" * 5000, b"b" * 10])
        guest.send(SHELL, [b"c" * 100])
        while wire := take(guest, exactly=size):
            host.receive_data(wire)
        found = {m.channel: body(m) for m in messages(host)}
        assert found == {IOPUB: (b"a" * 5000, b"b" * 10), SHELL: (b"c" * 100,)}


def test_credit_runs_out_and_comes_back() -> None:
    host, guest = open_pair()
    sent = [b"%d" % number for number in range(50)]
    for text in sent:
        guest.send(IOPUB, [text])
    guest.send(SHELL, [b"another channel has its own credit"])
    pump(host, guest)
    waiting = messages(host, acknowledge=False)
    got = [body(m) for m in waiting if m.channel is IOPUB]
    assert 0 < len(got) < 50
    assert [m.channel for m in waiting if m.channel is SHELL] == [SHELL]
    pump(host, guest)
    assert list(events(host)) == []
    while waiting:
        for message in waiting:
            host.acknowledge(message)
        pump(host, guest)
        waiting = messages(host, acknowledge=False)
        got += [body(m) for m in waiting]
    assert got == [(text,) for text in sent]
    host.flush()
    pump(host, guest)
    assert guest.pending_bytes(IOPUB) == 0


def test_a_message_larger_than_the_window_passes() -> None:
    host, guest = open_pair()
    sent = [b"q" * 8000, b"", b"tail"]
    assert len(sent[0]) > 3 * WINDOW
    for _ in range(3):
        guest.send(IOPUB, sent)
    for _ in range(3):
        pump(host, guest)
        assert [list(body(m)) for m in messages(host)] == [sent]
    assert list(events(host)) == []


def test_out_of_order_acknowledgements() -> None:
    host, guest = open_pair(ROOMY)
    for number in range(10):
        guest.send(IOPUB, [b"%d" % number])
    pump(host, guest)
    found = messages(host, acknowledge=False)
    before = guest.pending_bytes(IOPUB)
    for message in (found[3], found[1], found[2], found[9], found[9]):
        host.acknowledge(message)
    host.flush()
    pump(host, guest)
    assert guest.pending_bytes(IOPUB) == before
    assert host.handled_next(IOPUB) == 0
    host.acknowledge(found[0])
    host.acknowledge(found[0])
    host.flush()
    pump(host, guest)
    assert host.handled_next(IOPUB) == 4
    assert guest.pending_bytes(IOPUB) == 6 * message_cost(1, 1)
    for message in found:
        host.acknowledge(message)
    assert host.handled_next(IOPUB) == 10


def test_a_held_message_does_not_stop_the_rest_at_once() -> None:
    """Memory for remembering what was handled out of order is bounded, too: by the window."""
    host, guest = open_pair()
    for number in range(100):
        guest.send(IOPUB, [b"%d" % number])
    pump(host, guest)
    first, *found = messages(host, acknowledge=False)
    count = 1
    while found:
        count += len(found)
        for message in found:
            host.acknowledge(message)
        pump(host, guest)
        found = messages(host, acknowledge=False)
    assert 5 < count <= WINDOW // 256 + 1
    host.acknowledge(first)
    while count < 100:
        pump(host, guest)
        found = messages(host)
        assert found
        count += len(found)


def test_acknowledgements_ride_along_or_wait_for_flush() -> None:
    host, guest = open_pair(ROOMY)
    guest.send(IOPUB, [b"x"])
    pump(host, guest)
    assert not host.owes_acknowledgement
    messages(host)
    assert host.owes_acknowledgement
    assert everything(host) == b""
    host.send(SHELL, [b"y"])
    kinds = [kind for kind, _, _ in frames(b"".join(host.data_to_send()))]
    assert kinds == [Event.ACK, Event.WHOLE]
    assert not host.owes_acknowledgement
    pump(host, guest)
    assert guest.pending_bytes(IOPUB) == 0
    guest.send(IOPUB, [b"x"])
    pump(host, guest)
    messages(host)
    host.flush()
    assert [kind for kind, _, _ in frames(everything(host))] == [Event.ACK]
    host.flush()
    assert everything(host) == b""


def test_many_small_messages_are_acknowledged_now_and_then() -> None:
    host, guest = open_pair(Limits())
    for _ in range(300):
        guest.send(IOPUB, [b"x"])
    pump(host, guest)
    alone = 0
    for message in messages(host, acknowledge=False):
        host.acknowledge(message)
        alone += len(frames(everything(host)))
    assert alone == 2


def test_unwritten_acknowledgements_do_not_pile_up() -> None:
    host, guest = open_pair(ROOMY)
    for _ in range(50):
        guest.send(IOPUB, [b"x"])
        host.receive_data(everything(guest))
        messages(host)
        host.flush()
        assert len(host.data_to_send()) == 1
    guest.receive_data(everything(host))
    assert guest.pending_bytes(IOPUB) == 0
    assert not host.owes_acknowledgement


@pytest.mark.parametrize("nbytes", [100, 1000])
def test_queue_is_bounded_and_says_so(nbytes: int) -> None:
    host = new_host()
    bound = SMALL.queue_bytes[SHELL]
    cost = message_cost(nbytes, 2)
    while host.can_send(SHELL, nbytes, 2):
        host.send(SHELL, [bytes(nbytes - 1), b"."])
    assert bound - cost < host.pending_bytes(SHELL) <= bound
    before = host.pending_bytes(SHELL)
    with pytest.raises(QueueFull, match="already wait") as caught:
        host.send(SHELL, [bytes(nbytes - 1), b"."])
    assert not isinstance(caught.value, MessageTooLarge)
    assert host.pending_bytes(SHELL) == before
    assert host.can_send(STDIN, nbytes)


def test_an_empty_queue_takes_whatever_it_can_ever_hold() -> None:
    limits = Limits(256, 8192, 8, SMALL.window_bytes, dict.fromkeys(Channel, 1000))
    host = new_host(limits)
    assert message_cost(996, 1) > 1000
    assert host.can_send(SHELL, 996)
    assert not host.can_send(SHELL, 997)
    with pytest.raises(MessageTooLarge, match="1001 bytes"):
        host.send(SHELL, [bytes(997)])
    host.send(SHELL, [bytes(996)])
    assert not host.can_send(SHELL, 0)
    with pytest.raises(QueueFull, match="already wait"):
        host.send(SHELL, [b""])


def test_messages_that_no_link_takes() -> None:
    host = new_host()
    most = SMALL.max_message_bytes
    assert host.can_send(SHELL, most - 4)
    assert not host.can_send(SHELL, most - 3)
    assert not host.can_send(SHELL, 0, 0)
    assert host.can_send(SHELL, 0, 8)
    assert not host.can_send(SHELL, 0, 9)
    for parts in ([], [b""] * 9, [bytes(most - 3)]):
        assert not SMALL.admit(SHELL, sum(map(len, parts)), len(parts))
        with pytest.raises(MessageTooLarge):
            host.send(SHELL, parts)
    assert host.pending_bytes(SHELL) == 0
    for parts in ([b""] * 8, [bytes(most - 4)]):
        assert SMALL.admit(SHELL, sum(map(len, parts)), len(parts))
        new_host().send(SHELL, parts)


def test_any_contiguous_buffer_is_sent_and_others_are_refused() -> None:
    host, guest = open_pair(ROOMY)
    numbers = array.array("d", [1.5, 2.5])
    square = memoryview(bytes(9)).cast("B", (3, 3))
    host.send(SHELL, [memoryview(numbers), square, bytearray(b"abc"), memoryview(b"")])
    empty = memoryview(array.array("d"))
    host.send(SHELL, [empty])
    with pytest.raises(TypeError):
        host.send(SHELL, [memoryview(b"abcdef")[::2]])
    pump(host, guest)
    assert [body(m) for m in messages(guest)] == [
        (numbers.tobytes(), bytes(9), b"abc", b""),
        (b"",),
    ]


def test_large_parts_are_not_copied_by_the_sender() -> None:
    _, guest = open_pair(Limits())
    big = bytes(300_000)
    guest.send(IOPUB, [b"small", big])
    buffers = guest.data_to_send()
    assert sum(memoryview(b).obj is big for b in buffers) == 3  # one slice of it in each chunk
    assert sum(len(b) for b in buffers if memoryview(b).obj is big) == len(big)


def test_messages_queued_before_the_session_go_when_it_opens() -> None:
    host, guest = new_host(), new_guest()
    host.send(SHELL, [b"early"])
    guest.send(IOPUB, [b"early too"])
    assert everything(host) == everything(guest) == b""
    host.connect()
    host.send(CONTROL, [b"earlier"])
    pump(host, guest)
    assert [body(m) for m in messages(guest)] == [(b"earlier",), (b"early",)]
    assert [body(m) for m in messages(host)] == [(b"early too",)]


def test_a_guest_falls_silent_when_the_host_begins_again() -> None:
    """The rest of a frame, or of an answer to a dead host, would only fill the FIFO."""
    _, guest = open_pair(ROOMY)
    guest.send(IOPUB, [bytes(1000)])
    take(guest, exactly=100)
    assert guest.data_to_send()
    guest.receive_data(bytes(ROOMY.max_frame_bytes))
    assert guest.data_to_send() == []


def test_a_held_window_is_given_less_credit_in_the_next_session() -> None:
    """Or else each new session would let the peer fill another window."""
    host, guest = open_pair()
    for _ in range(200):
        guest.send(IOPUB, [b"x"])
    held = []
    for _ in range(5):
        pump(host, guest)
        held += messages(host, acknowledge=False)
        host.connect()
    assert len(held) == WINDOW // message_cost(1, 1)
    for message in held:
        host.acknowledge(message)
    pump(host, guest)
    assert len(messages(host)) == len(held)


def test_states_and_misuse() -> None:
    host, guest = new_host(), new_guest()
    assert host.state is guest.state is LinkState.IDLE
    with pytest.raises(RuntimeError, match="a guest cannot connect when idle"):
        guest.connect()
    host.connect()
    assert host.state is not guest.state
    pump(host, guest)
    assert host.state is guest.state
    assert isinstance(host.next_event(), Opened)
    host.close()
    with pytest.raises(RuntimeError, match="a host cannot connect when closed"):
        host.connect()


@pytest.mark.parametrize("role", Role)
def test_closed_for_good(role: Role) -> None:
    host, guest = open_pair()
    one, other = (host, guest) if role is Role.HOST else (guest, host)
    other.send(SHELL, [b"kept"])
    other.send(SHELL, [b"lost"])
    one.send(SHELL, [b"queued"])
    pump(host, guest)
    kept = one.next_event()
    assert kept is not None
    one.send(SHELL, [b"x" * 2000])
    one.close()
    one.close()
    assert one.state is LinkState.CLOSED
    assert one.next_event() is None
    assert one.data_to_send() == []
    assert one.pending_bytes(SHELL) == 0
    assert not one.can_send(SHELL, 1)
    with pytest.raises(QueueFull, match="closed"):
        one.send(SHELL, [b"x"])
    one.receive_data(b"whatever comes")
    assert not one.owes_acknowledgement
    # numbers stay right: somebody may still write them down
    assert not isinstance(kept, Opened)
    one.acknowledge(kept)
    assert one.handled_next(SHELL) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_parts": 0},
        {"max_parts": 1 << 20},
        {"max_frame_bytes": 100},
        {"max_frame_bytes": 1 << 31},
        {"max_message_bytes": 1000},
        {"max_message_bytes": 1 << 32},
        {"window_bytes": dict.fromkeys(Channel, 500_000)},
        {"queue_bytes": dict.fromkeys(Channel, 0)},
    ],
)
def test_limits_that_could_not_work(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="bytes"):
        Limits(**wrong)  # type: ignore[arg-type]


def test_default_limits() -> None:
    link = Link(Role.HOST)
    assert link.limits.max_frame_bytes == 128 * 1024
    assert link.limits.window_bytes[SHELL] == 16 << 20
    assert link.can_send(SHELL, (1 << 30) - 4)
    assert link.limits.queue_bytes is not Limits().queue_bytes


def test_credit_told_by_the_peer_only_grows() -> None:
    host, _ = forged()
    host.receive_data(ack(SHELL, 0, WINDOW) + ack(SHELL, 0, WINDOW + 1000))
    for _ in range(20):
        host.send(SHELL, [bytes(100)])
    assert len(frames(everything(host))) == (WINDOW + 1000) // message_cost(100, 1)
