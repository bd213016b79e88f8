"""A kernel's five endpoints, put together: sockets, inlets, outlets, heartbeat, subscribers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import zmq

from torpor.bridge.inlet import Desk, Gate, Inlet, Passing, TurnAway
from torpor.bridge.line import Line
from torpor.bridge.outlet import Outlet, PublishOutlet, ReplyOutlet, Shared
from torpor.bridge.protocol import ClientSide
from torpor.bridge.publisher import Subscriptions
from torpor.bridge.reactor import READ
from torpor.bridge.record import Record
from torpor.bridge.signing import Part, Signer
from torpor.bridge.sockets import Socket, close_sockets, open_sockets, readable, receive, send
from torpor.bridge.underway import Underway
from torpor.bridge.unproven import Unproven
from torpor.bridge.waiting import ROUTED, Entry, Waiting
from torpor.link import Channel, Message

LINGER_MS = 1_000  # as ipykernel: the last replies and outputs still get out
RESUME_SUBSCRIBERS_S = 3.0
RESUME_CLIENTS_S = 2.0
BEATS_PER_TURN = 32
MAX_BEAT_BYTES = 4_096


@dataclass(frozen=True, slots=True)
class Keys:
    """Signs for the kernel's clients, and for its guest."""

    client: Signer
    guest: Signer


class Endpoints:
    """Bound from construction to ``close``; a line may come and go."""

    def __init__(
        self,
        shared: Shared,
        context: zmq.Context[Socket],
        client: ClientSide,
        keys: Keys,
        record: Record,
        underway: Underway,
        beating: Callable[[], bool],
    ) -> None:
        """Bind all five, or none. ``beating`` says whether to echo a heartbeat.

        Raises:
            RequestError: ``bind``.
        """
        self._shared = shared
        self._client = client
        self._beating = beating
        self._record = record
        self._sockets, self.ports = open_sockets(context, client)
        self._gate = Gate(keys.client, keys.guest, shared.counters, underway)
        self._inlets = {
            channel: Inlet(shared.reactor, shared.owner, self._socket(channel), channel, self._gate)
            for channel in ROUTED
        }
        self._replies = {channel: ReplyOutlet(shared, self._socket(channel)) for channel in ROUTED}
        iopub = self._sockets["iopub"]
        self._output = PublishOutlet(shared, iopub)
        self.outlets: dict[Channel, Outlet] = {**self._replies, Channel.IOPUB: self._output}
        self.subscriptions = Subscriptions(shared, iopub, self._output, keys.client, record)
        self.touched: set[Channel] = set()  # sent to in this turn
        self._rechecks = {channel: inlet.ready for channel, inlet in self._inlets.items()}
        self._rechecks[Channel.IOPUB] = self.subscriptions.ready
        self._recheck_due = False
        self._watch()

    @property
    def waiting(self) -> Waiting:
        """Clients' messages that were taken from the sockets and not passed on yet."""
        return self._gate.waiting

    @property
    def holding(self) -> bool:
        """Whether something for clients was not handed to libzmq yet."""
        return any(outlet.holding for outlet in self.outlets.values())

    @property
    def crowded(self) -> bool:
        """Whether nothing of our own should be said to clients now."""
        return any(outlet.crowded for outlet in self.outlets.values())

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

    def forget_requests(self) -> None:
        """Drop what waits on control and stdin: it was meant for a kernel that is no more.

        A shutdown_request that was kept for its successor would end that.
        """
        for channel in (Channel.CONTROL, Channel.STDIN):
            self._gate.counters.dropped["client.too_late"] += self._inlets[
                channel
            ].drop() + self._gate.waiting.drop(channel)

    def let_go(self) -> list[Message]:
        """As ``detach``, but go on sending what is held back; give those messages, in order."""
        self._gate.line = None
        return [message for outlet in self.outlets.values() for message in outlet.keep()]

    def divert(self, desk: Desk) -> None:
        """Give clients' messages to ``desk`` from now on, whether there is a line or not."""
        self._gate.desk = desk
        self.collect()

    def collect(self) -> None:
        """Read clients' messages for the desk again: it got room."""
        for inlet in self._inlets.values():
            inlet.collect()

    def keep_passed(self) -> None:
        """Keep what is passed from now on, until ``proved`` or ``give_up_passed``."""
        self._gate.unproven = Unproven()

    def proved_by(self, msg_id: str) -> bool:
        """Say whether something is kept, and a status about that message proves that it was needless."""
        return self._gate.unproven is not None and self._gate.unproven.proved_by(msg_id)

    def proved(self) -> None:
        """Forget what was kept, and pass on what would have been too much to keep. Idempotent."""
        self._gate.unproven = None
        for inlet in self._inlets.values():
            inlet.resume()

    def replied(self, parent: Part) -> None:
        """Note the header of what the kernel has replied to: that needs no other answer."""
        if self._gate.unproven is not None:
            self._gate.unproven.replied(parent)

    def handled(self, msg_id: str) -> None:
        """Note that the kernel is done with a message: some it never answers."""
        if self._gate.unproven is not None:
            self._gate.unproven.handled(msg_id)

    def give_up_passed(self) -> list[tuple[Channel, Entry]]:
        """Keep nothing any more; give what was kept and has no reply, each channel in order."""
        unproven, self._gate.unproven = self._gate.unproven, None
        return unproven.take_all() if unproven is not None else []

    def turn_away_with(self, turn_away: TurnAway) -> None:
        """Have whoever sent what no link can take be told so."""
        self._gate.turn_away = turn_away

    def watch_passing(self, watch: Passing | None) -> None:
        """Have ``watch`` see every shell message just before it goes to the kernel."""
        self._gate.passing = watch

    def pass_on(self) -> None:
        """End ``divert``: what waits goes into the line, if there is one, and then what comes."""
        self._gate.desk = None
        for inlet in self._inlets.values():
            inlet.paused = True
            inlet.resume()

    def say(self, channel: Channel, parts: Sequence[Part]) -> None:
        """Send clients a message of the bridge's own, behind what the guest sent before."""
        self.outlets[channel].say(parts)
        self.touched.add(channel)
        if not self._recheck_due:
            self._recheck_due = True
            self._shared.reactor.soon(self._shared.owner, self._recheck)

    def expect_clients(self, *, welcome: bool) -> None:
        """Wait for an earlier bridge process's clients to come back before they are sent anything."""
        if welcome:
            self.subscriptions.welcome_all()
        self.subscriptions.expect(self._record.subscribers, RESUME_SUBSCRIBERS_S)
        for outlet in self._replies.values():
            outlet.expect_clients(RESUME_CLIENTS_S)

    def turn_over(self) -> None:
        """After a turn of the line: whoever waited for room goes on.

        Sockets that were sent to are asked again, as sending may have swallowed the edge that announced
        a message.
        """
        for inlet in self._inlets.values():
            if inlet.paused:
                inlet.resume()
        self._recheck()

    def _recheck(self) -> None:
        self._recheck_due = False
        touched, self.touched = self.touched, set()
        for channel in touched:
            self._rechecks[channel]()

    def close(self) -> None:
        """Unbind; idempotent."""
        for socket in self._sockets.values():
            with contextlib.suppress(zmq.ZMQError):
                self._shared.reactor.unwatch(int(socket.get(zmq.FD)))
        close_sockets(self._sockets.values(), self._client, self.ports, LINGER_MS)
        self._sockets = {}

    def _socket(self, channel: Channel) -> Socket:
        return self._sockets[channel.name.lower()]

    def _watch(self) -> None:
        for channel, inlet in self._inlets.items():
            outlet = self._replies[channel]
            outlet.recheck = inlet.ready
            self._add(self._socket(channel), _both(inlet.ready, outlet))
        self._output.recheck = self.subscriptions.ready
        self._add(self._sockets["iopub"], self.subscriptions.ready)
        self._add(self._sockets["hb"], self._beat)

    def _add(self, socket: Socket, callback: Callable[[], None]) -> None:
        self._shared.reactor.watch(int(socket.get(zmq.FD)), READ, self._shared.owner, callback)
        self._shared.reactor.soon(self._shared.owner, callback)

    def _beat(self) -> None:
        socket = self._sockets.get("hb")
        for _ in range(BEATS_PER_TURN):
            if socket is None or socket.closed or not readable(socket):
                return
            parts = receive(socket)
            if sum(map(len, parts)) > MAX_BEAT_BYTES:
                self._shared.counters.dropped["client.heartbeat_too_long"] += 1
            elif self._beating():
                with contextlib.suppress(zmq.ZMQError):  # it left, or never reads: no echo then
                    send(socket, parts)
        self._shared.reactor.soon(self._shared.owner, self._beat)


def _both(ready: Callable[[], None], outlet: Outlet) -> Callable[[], None]:
    """A sign of life of a ROUTER may be a client that connected and for whom a reply is held."""

    def run() -> None:
        if outlet.holding:
            outlet.retry()
        ready()

    return run
