"""From clients to their kernel: verify, re-sign, pass on, and stop reading when that is stuck.

A client that is not read is back-pressured by its own ZMQ socket; nothing piles up here. Control
has its own endpoint and link channel, so it flows while shell waits.
"""

from __future__ import annotations

from collections.abc import Sequence

from torpor.bridge.counters import Counters
from torpor.bridge.line import Line
from torpor.bridge.messages import Malformed, split_message
from torpor.bridge.reactor import Owner, Reactor
from torpor.bridge.signing import Part, SeenSignatures, Signer
from torpor.bridge.sockets import Socket, readable, receive
from torpor.link import Channel, MessageTooLarge, QueueFull

MESSAGES_PER_TURN = 64
MAX_SIGNATURE_BYTES = 128  # hex of the longest hash


class Gate:
    """What the three inlets of a kernel share: keys, seen signatures, counters, the line."""

    __slots__ = ("client", "counters", "guest", "line", "seen")

    def __init__(self, client: Signer, guest: Signer, counters: Counters) -> None:
        self.client = client
        self.guest = guest
        self.counters = counters
        self.seen = SeenSignatures()
        self.line: Line | None = None

    def admit(self, parts: list[Part]) -> int:
        """Check a client's message and sign it for the guest, in place; give its size in bytes.

        Raises:
            Malformed: it must be dropped, for this reason.
        """
        nbytes = sum(map(len, parts))
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
        return nbytes


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
        self._waiting: Sequence[Part] | None = None  # admitted, but the link had no room
        self.paused = False

    def ready(self) -> None:
        """Take what waits, up to a bound; call after every sign of life of the socket."""
        if self._socket.closed or not readable(self._socket):
            return
        line = self._gate.line
        if line is None or line.closed:
            self.paused = True
            return
        for _ in range(MESSAGES_PER_TURN):
            if self._waiting is not None or not line.accepts(self._channel):
                self.paused = True
                break
            self._forward(line, receive(self._socket))
            if not readable(self._socket):
                break
        else:
            self._reactor.soon(self._owner, self.ready)
        line.flush()

    def resume(self) -> None:
        """Go on after the line got room or was replaced; cheap when it was not ``paused``."""
        line = self._gate.line
        if not self.paused or line is None or line.closed:
            return
        if self._waiting is not None:
            parts, self._waiting = self._waiting, None
            self._send(line, parts)
        if self._waiting is None:
            self.paused = False
            self.ready()
        line.flush()

    def _forward(self, line: Line, parts: list[Part]) -> None:
        counters = self._gate.counters
        try:
            nbytes = self._gate.admit(parts)
        except Malformed as exc:
            counters.dropped[f"client.{exc.reason}"] += 1
            return
        counters.to_guest += 1
        counters.to_guest_bytes += nbytes
        self._send(line, parts)

    def _send(self, line: Line, parts: Sequence[Part]) -> None:
        try:
            line.send(self._channel, parts)
        except MessageTooLarge:
            self._gate.counters.dropped["client.too_large"] += 1
        except QueueFull:
            self._waiting = parts
