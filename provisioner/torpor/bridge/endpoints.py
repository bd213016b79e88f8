"""A kernel's five endpoints, put together: sockets, inlets, outlets, heartbeat, subscribers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Protocol

import zmq

from torpor.bridge.counters import Counters
from torpor.bridge.inflight import InFlight
from torpor.bridge.inlet import Gate, Inlet
from torpor.bridge.line import Line
from torpor.bridge.outlet import Outlet, PublishOutlet, ReplyOutlet
from torpor.bridge.protocol import ClientSide
from torpor.bridge.publisher import Subscriptions
from torpor.bridge.reactor import READ, Owner, Reactor
from torpor.bridge.record import Record
from torpor.bridge.signing import Signer
from torpor.bridge.sockets import Socket, close_sockets, open_sockets, readable, receive, send
from torpor.link import Channel, Message

ROUTED = (Channel.CONTROL, Channel.SHELL, Channel.STDIN)
LINGER_MS = 1_000  # as ipykernel: the last replies and outputs still get out
BEATS_PER_TURN = 32
MAX_BEAT_BYTES = 4_096


class Middle(Owner, Protocol):
    """What the endpoints need of their kernel."""

    @property
    def counters(self) -> Counters: ...

    @property
    def signer(self) -> Signer: ...

    def finished(self, message: Message) -> None: ...

    def beating(self) -> bool: ...


class Endpoints:
    """Bound from construction to ``close``; a line may come and go."""

    def __init__(
        self,
        reactor: Reactor,
        owner: Middle,
        context: zmq.Context[Socket],
        client: ClientSide,
        middle: Middle,
        guest_signer: Signer,
        record: Record,
    ) -> None:
        """Bind all five, or none.

        Raises:
            RequestError: ``bind``.
        """
        self._reactor = reactor
        self._owner = owner
        self._middle = middle
        self._client = client
        self._sockets, self.ports = open_sockets(context, client)
        self._gate = Gate(middle.signer, guest_signer, middle.counters)
        in_flight = InFlight()
        self._inlets = {
            channel: Inlet(reactor, owner, self._socket(channel), channel, self._gate)
            for channel in ROUTED
        }
        replies = {
            channel: ReplyOutlet(
                reactor, owner, self._socket(channel), middle.counters, in_flight, middle.finished
            )
            for channel in ROUTED
        }
        iopub = PublishOutlet(
            reactor, owner, self._sockets["iopub"], middle.counters, in_flight, middle.finished
        )
        self._replies, self._iopub = replies, iopub
        self.outlets: dict[Channel, Outlet] = {**replies, Channel.IOPUB: iopub}
        self.subscriptions = Subscriptions(
            reactor,
            owner,
            self._sockets["iopub"],
            iopub,
            middle.signer,
            middle.counters,
            record,
        )
        self.touched: set[Channel] = set()  # sent to in this turn
        self._rechecks = {channel: inlet.ready for channel, inlet in self._inlets.items()}
        self._rechecks[Channel.IOPUB] = self.subscriptions.ready
        self._watch()

    def attach(self, line: Line) -> None:
        """Let clients' messages flow into ``line``."""
        self._gate.line = line
        for inlet in self._inlets.values():
            inlet.resume()

    def detach(self) -> None:
        """Stop reading from clients, and forget what the guest sent and was still held back."""
        self._gate.line = None
        for outlet in self.outlets.values():
            outlet.abandon()

    def expect_clients(self, subscribers: int, iopub_s: float, replies_s: float) -> None:
        """Wait for clients to come back before their messages are sent (after a bridge's death)."""
        self.subscriptions.expect(subscribers, iopub_s)
        for outlet in self._replies.values():
            outlet.expect_clients(replies_s)

    def turn_over(self) -> None:
        """After a turn of the line: whoever waited for room goes on.

        Sockets that were sent to are asked again, as sending may have swallowed the edge that announced
        a message.
        """
        for inlet in self._inlets.values():
            if inlet.paused:
                inlet.resume()
        for channel in self.touched:
            self._rechecks[channel]()
        self.touched.clear()

    def close(self) -> None:
        """Unbind; idempotent."""
        for socket in self._sockets.values():
            with contextlib.suppress(zmq.ZMQError):
                self._reactor.unwatch(int(socket.get(zmq.FD)))
        close_sockets(self._sockets.values(), self._client, self.ports, LINGER_MS)
        self._sockets = {}

    def _socket(self, channel: Channel) -> Socket:
        return self._sockets[channel.name.lower()]

    def _watch(self) -> None:
        for channel, inlet in self._inlets.items():
            outlet = self._replies[channel]
            outlet.recheck = inlet.ready
            self._add(self._socket(channel), _both(inlet.ready, outlet))
        self._iopub.recheck = self.subscriptions.ready
        self._add(self._sockets["iopub"], self.subscriptions.ready)
        self._add(self._sockets["hb"], self._beat)

    def _add(self, socket: Socket, callback: Callable[[], None]) -> None:
        self._reactor.watch(int(socket.get(zmq.FD)), READ, self._owner, callback)
        self._reactor.soon(self._owner, callback)

    def _beat(self) -> None:
        socket = self._sockets.get("hb")
        for _ in range(BEATS_PER_TURN):
            if socket is None or socket.closed or not readable(socket):
                return
            parts = receive(socket)
            if sum(map(len, parts)) > MAX_BEAT_BYTES:
                self._middle.counters.dropped["client.heartbeat_too_long"] += 1
            elif self._middle.beating():
                with contextlib.suppress(zmq.ZMQError):  # it left, or never reads: no echo then
                    send(socket, parts)
        self._reactor.soon(self._owner, self._beat)


def _both(ready: Callable[[], None], outlet: Outlet) -> Callable[[], None]:
    """A sign of life of a ROUTER may be a client that connected and for whom a reply is held."""

    def run() -> None:
        if outlet.holding:
            outlet.retry()
        ready()

    return run
