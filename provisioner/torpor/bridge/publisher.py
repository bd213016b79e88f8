"""The iopub endpoint's receiving side: who listens, and the welcome that tells them they do."""

from __future__ import annotations

import contextlib
import time
import uuid

import zmq

from torpor.bridge.messages import Malformed, welcome_message
from torpor.bridge.outlet import PublishOutlet, Shared
from torpor.bridge.record import Record
from torpor.bridge.signing import Signer
from torpor.bridge.sockets import Socket, readable, receive, send

EVENTS_PER_TURN = 64
MAX_TOPICS = 1_024
MAX_TOPIC_BYTES = 4_096


class Subscriptions:
    """Counts subscribers per topic and welcomes each, if the kernel is one that does (JEP 65).

    ipykernel welcomes only the first subscriber of a topic, because its XPUB does not report the
    second; here every one gets its welcome. A publisher cannot address one subscriber, so the
    others of that topic see it too, which the JEP tells them to ignore.
    """

    def __init__(
        self, shared: Shared, socket: Socket, outlet: PublishOutlet, signer: Signer, record: Record
    ) -> None:
        self._reactor = shared.reactor
        self._owner = shared.owner
        self._counters = shared.counters
        self._socket = socket
        self._outlet = outlet
        self._signer = signer
        self._record = record
        self._session = str(uuid.uuid4())
        self._topics: dict[bytes, int] = {}
        self._total = 0
        self._expected = 0
        self.welcoming = False

    def expect(self, subscribers: int, within_s: float) -> None:
        """Hold output until so many have subscribed again, for at most ``within_s``.

        libzmq subscribes again on behalf of a client only when that looks at its socket, so one that
        is busy elsewhere for longer misses what is published until it looks.
        """
        if subscribers > self._total:
            self._expected = subscribers
            self._outlet.close()
            self._reactor.later(within_s, self._owner, self._stop_waiting)

    def _stop_waiting(self) -> None:
        if self._expected and not self._socket.closed:
            self._expected = 0
            self._record.subscribers = self._total
            self._outlet.open()
            self._look_again()

    def welcome_all(self) -> None:
        """Greet everybody: a kernel (process) that welcomes has just become ready."""
        self.welcoming = True
        for topic in self._topics:
            self._welcome(topic)
        self._look_again()

    def _look_again(self) -> None:
        """Read soon: sending may have swallowed the edge that announced a subscription."""
        self._reactor.soon(self._owner, self.ready)

    def ready(self) -> None:
        """Read what subscribers sent; call after every sign of life of the socket."""
        for _ in range(EVENTS_PER_TURN):
            if self._socket.closed or not readable(self._socket):
                return
            parts = receive(self._socket)
            event = bytes(parts[0][: MAX_TOPIC_BYTES + 1])
            if len(parts) > 1 or event[:1] not in (b"\0", b"\1") or len(event) < len(parts[0]):
                self._counters.dropped["client.not_a_subscription"] += 1
            elif event[0]:
                self._subscribed(event[1:])
            else:
                self._unsubscribed(event[1:])
        self._reactor.soon(self._owner, self.ready)

    def _subscribed(self, topic: bytes) -> None:
        if topic in self._topics or len(self._topics) < MAX_TOPICS:
            self._topics[topic] = self._topics.get(topic, 0) + 1
        self._count(1)
        if self.welcoming:
            self._welcome(topic)
        if self._total >= self._expected:
            self._stop_waiting()

    def _unsubscribed(self, topic: bytes) -> None:
        left = self._topics.get(topic, 0) - 1
        if left > 0:
            self._topics[topic] = left
        else:
            self._topics.pop(topic, None)
        self._count(-1)

    def _count(self, change: int) -> None:
        self._total = max(0, self._total + change)
        if not self._expected:
            self._record.subscribers = self._total

    def _welcome(self, topic: bytes) -> None:
        with contextlib.suppress(Malformed, zmq.ZMQError):
            send(self._socket, welcome_message(topic, self._session, self._signer, time.time()))
