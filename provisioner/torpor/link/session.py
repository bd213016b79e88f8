"""The link: both ends of one resumable connection, without any I/O.

The host begins a session with zero bytes (they end whatever a dead writer left half done), a fixed magic
and HELLO. The guest answers with the host's nonce, which nobody could have written before, and its own
HELLO. From then on messages and acknowledgements flow. Each message is numbered per channel, kept by its
sender until acknowledged, and sent again from its start in the next session unless the receiver has it
whole. So a reconnect loses nothing and repeats nothing as long as both ends live, or as a new host
process was told what the old one had handled; without that, what the old one had not acknowledged comes
again, and nothing else.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from .errors import LinkProtocolError, QueueFull
from .frames import HEADER, small_frame, tag
from .hello import MAGIC, NONCE_BYTES, UNKNOWN, Hello, parse_hello
from .lane import Lane
from .reader import FrameReader, Handler
from .schedule import Schedule
from .states import NEXT, Event
from .types import Buffer, Channel, Limits, LinkState, Message, Opened, Role

_IDLE, _OPENING, _OPEN = LinkState.IDLE, LinkState.OPENING, LinkState.OPEN
_FAILED, _CLOSED = LinkState.FAILED, LinkState.CLOSED
_LISTENS = {
    Role.HOST: frozenset((_OPENING, _OPEN)),
    Role.GUEST: frozenset((_IDLE, _OPENING, _OPEN, _FAILED)),
}


class Link:
    """One end of a link. Feed it what was read, write what it gives; it never blocks and never waits.

    One thread at a time. After an exception nothing has changed, except where ``receive_data`` says.

    Args:
        role: HOST begins sessions with ``connect``; GUEST waits for them.
        limits: every bound; frames, messages and parts must be the same at both ends.
        handled: HOST only: per channel the first message not yet handled, as an earlier process of
            this host last read it from ``handled_next``. None: unknown (or the first process), the
            guest's own memory of our acknowledgements decides.
        rng: gives so many random bytes; the peer must not be able to predict them.
    """

    def __init__(
        self,
        role: Role,
        *,
        limits: Limits | None = None,
        handled: Mapping[Channel, int] | None = None,
        rng: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self.limits = limits = limits or Limits()
        self.state = _IDLE
        self._role = role
        self._rng = rng
        self._nonce = b""
        self._lived = False
        self._failure = ""
        self._listens = role is Role.GUEST
        self._events: deque[Opened | Message] = deque()
        known = handled or {}
        self._lanes = [Lane(c, limits, self._events, known.get(c, UNKNOWN)) for c in Channel]
        self._inboxes = [lane.inbox for lane in self._lanes]
        self._outboxes = [lane.outbox for lane in self._lanes]
        self._schedule = Schedule(self._outboxes)
        self._flush = False
        self._reader = FrameReader(
            limits.max_frame_bytes, self._marker_found, self._blank_found, self._broken
        )
        self._routes = self._all_routes()
        self._sinks = {tag(Event.CHUNK, inbox.channel): inbox for inbox in self._inboxes}
        if role is Role.GUEST:
            self._reader.hunt(MAGIC)

    def connect(self) -> None:
        """Host: begin a session, or begin again, on a byte stream in any condition.

        Raises:
            RuntimeError: this is a guest, or closed.
        """
        if (self.state, Event.CONNECT) not in NEXT[self._role]:
            raise RuntimeError(f"a {self._role.value} cannot connect when {self.state.value}")
        self._happen(Event.CONNECT)
        self._nonce = self._rng(NONCE_BYTES)
        self._reader.hunt(self._nonce)
        # longer than any frame, so that a whole blank header remains of it wherever a dead writer stopped
        self._greet(bytes(self.limits.max_frame_bytes + 2 * HEADER.size) + MAGIC, self._nonce)

    def receive_data(self, data: Buffer) -> None:
        """Take bytes that were read; they may end anywhere.

        Raises:
            LinkProtocolError: the peer broke the protocol. The link stays failed and says so each time:
                a host until ``connect``, which starts afresh; a guest until the host begins a session
                (what comes before that is ignored). What was complete before can still be had.
        """
        if self._listens:
            self._reader.feed(data if type(data) is bytes else bytes(data))
        if self.state is _FAILED:
            raise LinkProtocolError(self._failure)

    def next_event(self) -> Opened | Message | None:
        """Give the next thing that happened, oldest first, or None."""
        return self._events.popleft() if self._events else None

    def send(self, channel: Channel, parts: Sequence[Buffer]) -> None:
        """Queue a message in any state; it goes when session and credit allow.

        Large parts are not copied: they must not change until the peer has acknowledged them.

        Raises:
            MessageTooLarge: (a ``QueueFull``) this link can never take it, or it has no part at all.
            QueueFull: it does not fit now, or the link is closed.
            TypeError: a part is not contiguous bytes.
        """
        if self.state is _CLOSED:
            raise QueueFull("the link is closed")
        self._outboxes[channel].push(parts)

    def can_send(self, channel: Channel, nbytes: int, parts: int = 1) -> bool:
        """Say whether ``send`` of ``nbytes`` in ``parts`` parts would be taken now."""
        return self.state is not _CLOSED and self._outboxes[channel].fits(nbytes, parts)

    def pending_bytes(self, channel: Channel) -> int:
        """Give what is queued or not acknowledged by the peer, as ``message_cost``; 0 means nothing."""
        return self._outboxes[channel].pending_bytes

    def acknowledge(self, message: Message) -> None:
        """The application has handled ``message``: its sender may forget it. Twice is fine.

        Any order within a channel; an unacknowledged message takes its cost from the window.
        """
        self._inboxes[message.channel].handled(message.seq)

    def handled_next(self, channel: Channel) -> int:
        """Give the first message of ``channel`` not handled yet: what a next process must remember."""
        return self._inboxes[channel].handled_next

    @property
    def owes_acknowledgement(self) -> bool:
        """Whether ``flush`` would send something."""
        return self.state is _OPEN and any(inbox.owes for inbox in self._inboxes)

    def flush(self) -> None:
        """Let the next ``data_to_send`` carry every acknowledgement that is owed.

        Else they ride along with data, or go by themselves when the peer may soon run out of credit:
        one each would cost the peer a wake-up for every message.
        """
        self._flush = True

    def data_to_send(self, max_bytes: int = 1 << 20) -> list[Buffer]:
        """Give what to write now, for ``os.writev``; then call ``sent`` before anything else.

        Whole frames, as many as it takes to reach ``max_bytes``, at most 1024 buffers; the most urgent
        channel first. Nothing is committed: what is not ``sent`` may come behind something more urgent.
        """
        if self.state is _OPEN:
            self._acknowledge()
            return self._schedule.peek(max_bytes, channels=True)
        return self._schedule.peek(max_bytes, channels=False) if self.state is _OPENING else []

    def sent(self, nbytes: int) -> None:
        """The first ``nbytes`` of the last ``data_to_send`` were written.

        Raises:
            ValueError: those were fewer.
        """
        self._schedule.sent(nbytes)

    def close(self) -> None:
        """End it for good and forget everything; the peer is not told. Twice is fine."""
        self._happen(Event.CLOSE)
        self._events.clear()
        self._schedule.reset()
        self._reader.hunt(MAGIC)
        for lane in self._lanes:
            lane.close()

    def _marker_found(self) -> None:
        self._happen(Event.MARKER)

    def _blank_found(self) -> None:
        if (self.state, Event.BLANK) not in NEXT[self._role]:
            raise LinkProtocolError("zero bytes that start no frame")
        self._happen(Event.BLANK)
        self._schedule.reset()
        self._reader.hunt(MAGIC)

    def _broken(self, error: LinkProtocolError) -> None:
        self._failure = str(error)
        self._happen(Event.BROKEN)
        self._schedule.reset()
        self._reader.hunt(MAGIC)
        if self._role is Role.HOST:
            raise error

    def _happen(self, event: Event) -> None:
        self.state = NEXT[self._role][self.state, event]
        self._listens = self.state in _LISTENS[self._role]
        self._reader.routes = self._routes[self.state]
        self._reader.sinks = self._sinks if self.state is _OPEN else {}

    def _all_routes(self) -> dict[LinkState, dict[int, Handler]]:
        """Give, per state, the handlers of the frames that the table allows in it."""
        handlers: dict[Event, list[Handler]] = {
            Event.HELLO: [self._receive_hello],
            Event.WHOLE: [inbox.whole for inbox in self._inboxes],
            Event.START: [inbox.start for inbox in self._inboxes],
            Event.ACK: [lane.acked for lane in self._lanes],
        }
        routes: dict[LinkState, dict[int, Handler]] = {state: {} for state in LinkState}
        for state, event in NEXT[self._role]:
            for channel, handler in enumerate(handlers.get(event, ())):
                routes[state][tag(event, channel)] = handler
        return routes

    def _acknowledge(self) -> None:
        """Put the acknowledgements that should go now before everything else."""
        schedule = self._schedule
        if schedule.urgent:
            return  # the last ones are not written yet: the next ones will say more
        ride = self._flush or schedule.busy
        for inbox in self._inboxes:
            if inbox.urgent or (ride and inbox.owes):
                frame = self._lanes[inbox.channel].ack_frame()
                schedule.urgent.append((len(frame), [frame]))
        self._flush = False

    def _greet(self, preamble: bytes, nonce: bytes) -> None:
        """Make ``preamble`` and our HELLO the next bytes to go, and drop whatever else was to go."""
        self._schedule.reset()
        new = self._role is Role.HOST and not self._lived
        rows = [lane.begin(new) for lane in self._lanes]
        payload = Hello(self._role, self._lived, nonce, rows).pack(self.limits)
        frame = small_frame(Event.HELLO, 0, 0, 0, payload)
        self._schedule.urgent.append((len(preamble) + len(frame), [preamble, frame]))

    def _receive_hello(self, parts: int, seq: int, data: bytes, start: int, stop: int) -> None:
        if parts or seq:
            raise LinkProtocolError("HELLO with a number")
        peer = Role.GUEST if self._role is Role.HOST else Role.HOST
        hello = parse_hello(data[start:stop], expected=peer, limits=self.limits)
        for lane, row in zip(self._lanes, hello.rows, strict=True):
            if peer is Role.HOST and not hello.lived:
                lane.lead(row)
            elif peer is Role.GUEST and not self._lived:
                lane.follow(row)
            else:
                lane.resume(row)
        if self._role is Role.GUEST:
            self._greet(hello.nonce, self._rng(NONCE_BYTES))
        self._events.append(Opened(self._lived or hello.lived, hello.nonce))
        self._lived = True
        self._happen(Event.HELLO)
