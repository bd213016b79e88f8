"""From a kernel to its clients: one outlet per endpoint, which never blocks and never piles up.

What a client does not take, libzmq queues (10,000 messages for each client), and when that is full:

* the outlet waits for the slow client, up to ``PATIENCE_S``; the link's credit then holds the rest
  back in the guest, so a client that was only busy for a moment loses nothing, where a bare kernel
  would drop;
* after that the client counts as stuck: it alone loses what it has no room for, and nobody waits
  for it again until its queue has moved. Others are delayed at most once per emptied queue;
* large messages wait in the same way while ``InFlight`` is full, and are dropped after
  ``LARGE_PATIENCE_S``.

A message is finished (acknowledged on the link) only after libzmq has taken it or it was dropped.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import zmq

from torpor.bridge.counters import Counters
from torpor.bridge.inflight import SMALL_BYTES, InFlight, message_cost
from torpor.bridge.reactor import Owner, Reactor
from torpor.bridge.signing import Part
from torpor.bridge.sockets import Socket, send, send_shared
from torpor.link import Message

PATIENCE_S = 1.0
LARGE_PATIENCE_S = 5.0
RETRY_S = 0.005
CROWDED_MESSAGES = 64


@dataclass(frozen=True, slots=True)
class Shared:
    """What all endpoints of one kernel share. ``finished``: a message was sent, or dropped for good."""

    reactor: Reactor
    owner: Owner
    counters: Counters
    in_flight: InFlight
    finished: Callable[[Message], None]
    marked: Callable[[Message, bool], None]
    """Remember for a bridge that follows a killed one that a message was handed over (or was not)."""


class Outlet:
    """One endpoint's sending side. Subclasses say what a full or unknown receiver means."""

    def __init__(self, shared: Shared, socket: Socket) -> None:
        self._reactor = shared.reactor
        self._owner = shared.owner
        self._counters = shared.counters
        self._in_flight = shared.in_flight
        self._finished = shared.finished
        self._marked = shared.marked
        self._socket = socket
        self._held: deque[tuple[Sequence[Part], Message | None]] = deque()
        self._held_since = 0.0
        self._ticking = False
        self._choked = False
        self.recheck: Callable[[], None] | None = None  # reads the socket's events after late sends

    @property
    def holding(self) -> bool:
        """Whether something waits to be sent."""
        return bool(self._held)

    @property
    def crowded(self) -> bool:
        """Whether nothing more of our own should be said now."""
        return len(self._held) >= CROWDED_MESSAGES

    def offer(self, parts: Sequence[Part], message: Message) -> None:
        """Send ``parts`` now or as soon as it can be; ``finished(message)`` is called then."""
        if not self._held and self._hand_over(parts, message, waited_s=0.0):
            self._finished(message)
            return
        self._hold(parts, message)

    def say(self, parts: Sequence[Part]) -> None:
        """Send a message of the bridge's own, in its turn; ask ``crowded`` before."""
        if self._held or not self._push(parts, waited_s=0.0):
            self._hold(parts, None)

    def skip(self, message: Message) -> None:
        """Finish a message that is not sent at all, in its turn: acknowledgements keep the order."""
        if self._held:
            self._held.append(((), message))
        else:
            self._finished(message)

    def retry(self) -> None:
        """Send what is held, as far as it goes."""
        now = time.monotonic()
        while self._held:
            parts, message = self._held[0]
            if parts and not self._hand_over(parts, message, waited_s=now - self._held_since):
                return
            self._held.popleft()
            self._held_since = now
            if message is not None:
                self._finished(message)

    def abandon(self) -> None:
        """Forget what is held (the link it came from is gone)."""
        self._held.clear()

    def keep(self) -> list[Message]:
        """Go on sending what is held without its link; give those messages, in order."""
        kept = [message for _, message in self._held if message is not None]
        self._held = deque((parts, None) for parts, _ in self._held)
        return kept

    def _hold(self, parts: Sequence[Part], message: Message | None) -> None:
        if not self._held:
            self._held_since = time.monotonic()
        self._held.append((parts, message))
        self._tick_later()

    def _hand_over(self, parts: Sequence[Part], message: Message | None, waited_s: float) -> bool:
        """Push, marked before: a bridge that is killed in between must not send it again."""
        if message is None:  # the bridge's own
            return self._push(parts, waited_s)
        self._marked(message, True)
        if self._push(parts, waited_s):
            return True
        self._marked(message, False)
        return False

    def _push(self, parts: Sequence[Part], waited_s: float) -> bool:
        """Send or drop; False means "not yet", and is never said for ever."""
        cost = message_cost(parts)
        if cost >= SMALL_BYTES and not self._in_flight.admits(cost):
            if not self._choked and waited_s < LARGE_PATIENCE_S:
                return False
            self._choked = True
            self._counters.dropped["to_client.too_much_unsent"] += 1
            return True
        try:
            self._send(parts, cost)
        except zmq.ZMQError as exc:
            return self._refused(exc, parts, cost, waited_s)
        self._accepted(parts)
        return True

    def _send(self, parts: Sequence[Part], cost: int) -> None:
        if cost < SMALL_BYTES:
            send(self._socket, parts)
        else:
            self._choked = False
            send_shared(self._socket, self._in_flight.track(parts, cost))

    def _accepted(self, parts: Sequence[Part]) -> None:
        """Note that the receivers of ``parts`` have room."""

    def _refused(
        self, exc: zmq.ZMQError, parts: Sequence[Part], cost: int, waited_s: float
    ) -> bool:
        raise NotImplementedError

    def _tick_later(self) -> None:
        if not self._ticking:
            self._ticking = True
            self._reactor.later(RETRY_S, self._owner, self._tick)

    def _tick(self) -> None:
        self._ticking = False
        if self._socket.closed:
            return
        self.retry()
        if self._held:
            self._tick_later()
        if self.recheck is not None:
            self.recheck()


class ReplyOutlet(Outlet):
    """Replies and input requests: a ROUTER, every message has one receiver, by identity."""

    def __init__(self, shared: Shared, socket: Socket) -> None:
        super().__init__(shared, socket)
        self._stuck: set[bytes] = set()
        self._expect_until = 0.0

    def expect_clients(self, within_s: float) -> None:
        """For ``within_s`` from now, hold replies for clients that are not connected.

        After a killed bridge came back, its clients do too, within fractions of a second. While one
        is missing, replies for the others wait with it: order on the link is kept.
        """
        self._expect_until = time.monotonic() + within_s

    def _accepted(self, parts: Sequence[Part]) -> None:
        if self._stuck:
            self._stuck.discard(bytes(parts[0]))

    def _refused(
        self, exc: zmq.ZMQError, parts: Sequence[Part], cost: int, waited_s: float
    ) -> bool:
        if exc.errno == errno.EAGAIN:
            identity = bytes(parts[0])
            if identity not in self._stuck:
                if waited_s < PATIENCE_S:
                    return False
                self._stuck.add(identity)
            self._counters.dropped["to_client.stuck"] += 1
            return True
        if exc.errno == errno.EHOSTUNREACH:
            if self._expect_until and time.monotonic() < self._expect_until:
                return False
            self._expect_until = 0.0
            self._stuck.discard(bytes(parts[0]))
            self._counters.dropped["to_client.gone"] += 1
            return True
        self._counters.dropped["to_client.refused"] += 1
        return True


class PublishOutlet(Outlet):
    """Output for everybody: an XPUB that reports a full subscriber (``NODROP``).

    After a message was once sent without that option, libzmq leaves out whoever was full then until
    it has read half of its queue, without a word: so ``to_client.stuck`` counts how often
    somebody was given up, not how many messages that cost him.
    """

    _closed = False

    def close(self) -> None:
        """Hold everything until ``open``."""
        self._closed = True

    def open(self) -> None:
        """Send, also what was held."""
        self._closed = False
        self._held_since = time.monotonic()
        self.retry()

    def _push(self, parts: Sequence[Part], waited_s: float) -> bool:
        return not self._closed and super()._push(parts, waited_s)

    def _refused(
        self, exc: zmq.ZMQError, parts: Sequence[Part], cost: int, waited_s: float
    ) -> bool:
        if exc.errno != errno.EAGAIN:
            self._counters.dropped["to_client.refused"] += 1
            return True
        if waited_s < PATIENCE_S:
            return False
        self._counters.dropped["to_client.stuck"] += 1
        self._socket.set(zmq.XPUB_NODROP, 0)
        with contextlib.suppress(zmq.ZMQError):
            self._send(parts, cost)
        self._socket.set(zmq.XPUB_NODROP, 1)
        return True
