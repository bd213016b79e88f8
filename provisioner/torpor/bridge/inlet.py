"""From clients to their kernel: verify, re-sign, pass on, and stop reading when that is stuck.

A client that is not read is back-pressured by its own ZMQ socket; nothing piles up here. Control
has its own endpoint and link channel, so it flows while shell waits. While a kernel is held or
asleep, a *desk* gets the messages instead of the line.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torpor.bridge.counters import Counters
from torpor.bridge.line import LIMITS, Line
from torpor.bridge.messages import Malformed, split_message
from torpor.bridge.outlet import RETRY_S
from torpor.bridge.reactor import Owner, Reactor
from torpor.bridge.signing import Part, SeenSignatures, Signer
from torpor.bridge.sockets import Socket, readable, receive
from torpor.bridge.underway import Underway
from torpor.bridge.unproven import Unproven
from torpor.bridge.waiting import Entry, Waiting
from torpor.link import Channel, QueueFull

MESSAGES_PER_TURN = 64
MAX_DROPPED = 10_000
MAX_SIGNATURE_BYTES = 128  # hex of the longest hash


Passing = Callable[[list[Part], int], None]
TurnAway = Callable[[Channel, Entry, str], object]


class Desk(Protocol):
    """Takes clients' messages while their kernel cannot."""

    @property
    def crowded(self) -> bool:
        """Whether it wants nothing for a moment."""

    def take(self, channel: Channel, parts: list[Part], cut: int) -> None:
        """Take a verified message, signed for the guest; ``cut`` is where its delimiter is."""


class Gate:
    """What the three inlets of a kernel share: keys, signatures, counters, and where things go."""

    __slots__ = (
        "client",
        "counters",
        "desk",
        "guest",
        "line",
        "passing",
        "seen",
        "turn_away",
        "underway",
        "unproven",
        "waiting",
    )

    def __init__(
        self, client: Signer, guest: Signer, counters: Counters, underway: Underway
    ) -> None:
        self.client = client
        self.guest = guest
        self.counters = counters
        self.underway = underway
        self.seen = SeenSignatures()
        self.waiting = Waiting()  # admitted, but the link had no room, or the kernel cannot
        self.line: Line | None = None
        self.desk: Desk | None = None
        self.passing: Passing | None = None
        self.unproven: Unproven | None = None
        self.turn_away: TurnAway | None = None

    def admit(self, channel: Channel, parts: list[Part]) -> int:
        """Check a client's message and sign it for the guest, in place; give where it is cut.

        What is admitted fits the link, now or later: a sleeping kernel is not woken by anything else.

        Raises:
            Malformed: it must be dropped, for this reason.
        """
        cut = split_message(parts)
        if cut == 0:
            raise Malformed("no_identity")
        signature, body = bytes(parts[cut + 1][:MAX_SIGNATURE_BYTES]), parts[cut + 2 : cut + 6]
        if self.client.enabled:
            if not self.client.verify(signature, body):
                raise Malformed("bad_signature" if signature else "unsigned")
            if not self.seen.first_time(signature):
                raise Malformed("replayed")
        parts[cut + 1] = self.guest.sign(body)
        nbytes = sum(map(len, parts))
        if not LIMITS.admit(channel, nbytes, len(parts)):
            if self.turn_away is not None:
                self.turn_away(channel, (parts, cut), _too_large(channel, nbytes, len(parts)))
            raise Malformed("too_large")
        return cut


def _too_large(channel: Channel, nbytes: int, parts: int) -> str:
    return (
        f"Your message was not passed on to the kernel: it has {nbytes:,} bytes in {parts:,}"
        f" parts, and {LIMITS.largest_bytes(channel):,} bytes and {LIMITS.max_parts:,} parts are the most."
        " Send it in pieces, or through a file in the workspace."
    )


class Inlet:
    """One ROUTER endpoint's receiving side."""

    def __init__(
        self, reactor: Reactor, owner: Owner, socket: Socket, channel: Channel, gate: Gate
    ) -> None:
        self._reactor = reactor
        self._owner = owner
        self._socket = socket
        self._channel = channel
        self._gate = gate
        self._resting = False
        self.paused = False

    def ready(self) -> None:
        """Take what waits, up to a bound; call after every sign of life of the socket."""
        if self._socket.closed or not readable(self._socket):
            return
        if self._gate.desk is not None:
            self._collect(self._gate.desk)
            return
        line = self._gate.line
        if self.paused or line is None or line.closed:
            self.paused = True
            return
        for _ in range(MESSAGES_PER_TURN):
            if not line.accepts(self._channel):
                self.paused = True
                break
            self._forward(line, receive(self._socket))
            if self.paused or not readable(self._socket):
                break
        else:
            self._reactor.soon(self._owner, self.ready)
        line.flush()

    def drop(self) -> int:
        """Read what waits in the socket and forget it; give how many messages that were."""
        dropped = 0
        while dropped < MAX_DROPPED and not self._socket.closed and readable(self._socket):
            receive(self._socket)
            dropped += 1
        return dropped

    def resume(self) -> None:
        """Go on after the line got room or was replaced; cheap when it was not ``paused``."""
        line = self._gate.line
        if not self.paused or self._gate.desk is not None or line is None or line.closed:
            return
        waiting = self._gate.waiting
        for _ in range(MESSAGES_PER_TURN):
            if not waiting.holds(self._channel):
                self.paused = False
                self.ready()
                break
            if not line.accepts(self._channel):
                break
            entry = waiting.pop(self._channel)
            if not self._send(line, entry):
                waiting.put_back(self._channel, entry)
                break
        else:
            self._reactor.soon(self._owner, self.resume)
        line.flush()

    def collect(self) -> None:
        """Read again, for the desk, which was just set or got room."""
        self.paused = False
        self._reactor.soon(self._owner, self.ready)

    def _collect(self, desk: Desk) -> None:
        for _ in range(MESSAGES_PER_TURN):
            if desk.crowded:
                self._rest()
                return
            if self._gate.waiting.full(self._channel):
                self.paused = True
                return
            parts = receive(self._socket)
            try:
                desk.take(self._channel, parts, self._gate.admit(self._channel, parts))
            except Malformed as exc:
                self._gate.counters.dropped[f"client.{exc.reason}"] += 1
            if not readable(self._socket):
                return
        self._reactor.soon(self._owner, self.ready)

    def _rest(self) -> None:
        """Come back in a moment: clients do not take the answers as fast as they ask."""
        if not self._resting:
            self._resting = True
            self._reactor.later(RETRY_S, self._owner, self._rested)

    def _rested(self) -> None:
        self._resting = False
        self.ready()

    def _forward(self, line: Line, parts: list[Part]) -> None:
        try:
            entry = parts, self._gate.admit(self._channel, parts)
        except Malformed as exc:
            self._gate.counters.dropped[f"client.{exc.reason}"] += 1
            return
        if not self._send(line, entry):
            self._gate.waiting.push(self._channel, *entry)
            self.paused = True

    def _send(self, line: Line, entry: Entry) -> bool:
        """Pass a message on; False if the link has no room now."""
        gate = self._gate
        parts, cut = entry
        if gate.unproven is not None and gate.unproven.full(self._channel):
            return False
        if gate.passing is not None and self._channel is Channel.SHELL:
            gate.passing(parts, cut)
        try:
            line.send(self._channel, parts)
        except QueueFull:
            return False
        if gate.unproven is not None and self._channel is not Channel.STDIN:
            gate.unproven.passed(self._channel, parts, cut)
        gate.counters.to_guest += 1
        gate.counters.to_guest_bytes += sum(map(len, parts))
        if self._channel is Channel.STDIN:
            gate.underway.answered()
        else:
            gate.underway.passed(parts[cut + 2])
        return True
