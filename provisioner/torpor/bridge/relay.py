"""From a guest to its kernel's clients: shape-checked, observed, signed with their key, handed over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torpor.bridge.activity import Activity
from torpor.bridge.counters import Counters
from torpor.bridge.endpoints import Endpoints
from torpor.bridge.messages import Malformed, message_type, split_message
from torpor.bridge.probe import IDENTITY, MSG_ID, Probe
from torpor.bridge.record import Record
from torpor.bridge.signing import Part, Signer
from torpor.bridge.underway import Underway
from torpor.link import Channel, Message


class Observed(Protocol):
    """The kernel whose messages these are: what there is to learn from them is noted there."""

    activity: Activity
    underway: Underway
    counters: Counters
    endpoints: Endpoints
    record: Record


class Relay:
    """Of one kernel. ``probe`` hears what is meant for the bridge itself, if there is one.

    ``finished``: a message was dropped for good; the endpoints tell of the others.
    """

    def __init__(
        self, kernel: Observed, signer: Signer, finished: Callable[[Message], None]
    ) -> None:
        self._endpoints = kernel.endpoints
        self._signer = signer
        self._activity = kernel.activity
        self._underway = kernel.underway
        self._record = kernel.record
        self._counters = kernel.counters
        self._finished = finished
        self.probe: Probe | None = None
        self.heard: Callable[[str], None] | None = None
        """Is told of which message the kernel says that it is at work on it, or done."""

    def message(self, message: Message) -> None:
        """Pass one message on, or drop and count it; it is finished in its turn either way."""
        try:
            if not self._to_clients(message):
                self._skip(message)
        except Malformed as exc:
            self._counters.dropped[f"guest.{exc.reason}"] += 1
            self._skip(message)

    def _to_clients(self, message: Message) -> bool:
        parts = message.parts
        cut = split_message(parts)
        body = parts[cut + 2 : cut + 6]
        kind = message_type(body)
        channel = message.channel
        if channel == Channel.IOPUB:
            if self._is_ours(parts[:cut], kind, body):
                return False
        elif cut == 0:
            raise Malformed("no_identity")
        elif parts[0] == IDENTITY:
            if self.probe is not None:
                self.probe.replied(kind, body)
            return False
        else:
            self._note_reply(channel, kind, body)
        self._counters.from_guest += 1
        self._counters.from_guest_bytes += sum(map(len, parts))
        signed = [*parts[: cut + 1], self._signer.sign(body), *parts[cut + 2 :]]
        self._endpoints.touched.add(channel)
        self._endpoints.outlets[channel].offer(signed, message)
        return True

    def _is_ours(self, topic: Sequence[Part], kind: str, body: Sequence[Part]) -> bool:
        """Take note of an output message; say whether it is about a question of the bridge."""
        status = self._activity.observe(kind, body)
        self._record.busy = self._activity.state == "busy"
        if status is None:
            if kind == "debug_event":
                self._underway.debugged(kind, body[3])
            return False
        state, msg_id = status
        if self.heard is not None:
            self.heard(msg_id)
        if state == "idle":
            self._underway.handled(msg_id)
            self._endpoints.handled(msg_id)
        if not msg_id.startswith(MSG_ID):
            return False
        if self.probe is not None:
            self.probe.published(topic, state, msg_id)
        return True

    def _note_reply(self, channel: Channel, kind: str, body: Sequence[Part]) -> None:
        if channel is Channel.STDIN:
            self._underway.asked()
            return
        self._underway.replied(body[1])
        self._endpoints.replied(body[1])
        if kind == "debug_reply":
            self._underway.debugged(kind, body[3])

    def _skip(self, message: Message) -> None:
        outlet = self._endpoints.outlets.get(message.channel)
        if outlet is None:
            self._finished(message)
        else:
            outlet.skip(message)
