"""A kernel's hibernation, the bridge's part: held, asleep, and awake again (operations: ``protocol``).

::

    awake --hold--> held --sleep--> asleep --wake--> awake (or held)
      ^--release-----'                 '--- a wake that fails: still asleep

Held, the link is up and the kernel stands still: its state may be saved. Asleep there is no link. In
both, clients meet the ``desk``, which answers what only looks; everything else waits, in order, for
``release`` or ``wake``.

Also an interrupt of a kernel that is only held is answered and not passed: it stands still, so there
is nothing to interrupt, and a message to it could get lost in the checkpoint.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torpor.bridge.desk import FrontDesk, Publish
from torpor.bridge.endpoints import Keys
from torpor.bridge.hold import Hold, Subject, reason_to_go_on
from torpor.bridge.presence import parse_seen
from torpor.bridge.probe import Probe
from torpor.bridge.protocol import Fifos, RequestError
from torpor.bridge.reactor import Reactor, Timer
from torpor.bridge.record import Record
from torpor.bridge.relay import Relay
from torpor.link import Opened

Ended = Callable[[RequestError | None, dict[str, Any]], None]


class State(enum.Enum):
    """As ``status`` tells it."""

    AWAKE = "awake"
    HELD = "held"
    ASLEEP = "asleep"


class Body(Subject, Protocol):
    """The kernel whose hibernation this is."""

    kernel_id: str
    record: Record
    relay: Relay

    def connect_again(self, fifos: Fifos) -> None:
        """Open the link where it was left; ``Hibernation.opened`` or ``link_failed`` follows."""

    def disconnect(self) -> None:
        """Give up the link and nothing else."""

    def remember(self) -> dict[str, Any]:
        """Record, and give, what is known about the kernel."""


@dataclass(frozen=True, slots=True)
class _Waking:
    ended: Ended
    timer: Timer
    held: bool


class Hibernation:
    """Of one kernel. An operation that raises has changed nothing."""

    def __init__(self, reactor: Reactor, body: Body, keys: Keys, publish: Publish) -> None:
        self._reactor = reactor
        self._body = body
        self._desk = FrontDesk(body.kernel_id, publish, body.endpoints, keys.client, body.counters)
        self._signer = keys.guest
        self._hold: Hold | None = None
        self._hold_ended: Ended | None = None
        self._waking: _Waking | None = None
        self.state = State.AWAKE

    # -- operations --------------------------------------------------------------------------

    def hold(self, timeout_s: float, ended: Ended) -> None:
        """Have the kernel stand still; ``ended`` is called once it does, or cannot.

        Raises:
            RequestError: ``busy``, ``link``, or ``state``.
        """
        if self.state is State.HELD:
            ended(None, {"memory": self._body.remember()})
            return
        self._require(State.AWAKE)
        line = self._body.line
        if line is None or line.closed or not line.open:
            raise RequestError("link", "there is no open link to the guest")
        reason = reason_to_go_on(self._body)
        if reason is None and len(self._body.endpoints.waiting):
            reason = "messages to the kernel wait for room"
        if reason is not None:
            raise RequestError("busy", reason)
        probe = Probe(self._signer, kernel_info_too=not self._body.guest.kernel_info)
        hold = Hold(self._reactor, self._body, probe, timeout_s, self._end_hold)
        self._hold, self._hold_ended = hold, ended
        self._body.relay.probe = probe
        self._desk.disturbed = lambda kind: hold.give_up(f"{kind} has just come")
        self._desk.forget_telling()
        self._body.endpoints.divert(self._desk)
        hold.start()

    def release(self) -> dict[str, Any]:
        """Undo ``hold``: what waits is passed now, in order. Fine when awake.

        Raises:
            RequestError: ``state``: asleep.
        """
        if self._hold is not None:
            self._end_hold("it was released meanwhile")
        if self.state is State.ASLEEP:
            raise RequestError("state", "the kernel is asleep: wake it")
        if self.state is State.HELD:
            self._awake()
        return {}

    def sleep(self) -> dict[str, Any]:
        """Give up the link. What clients have not taken yet is still sent to them. Twice is fine.

        Raises:
            RequestError: ``state``: not held, or the kernel died meanwhile.
        """
        body = self._body
        if self.state is not State.ASLEEP:
            self._require(State.HELD)
            if body.guest.dead:
                raise RequestError("state", "the kernel has died")
            for message in body.endpoints.let_go():
                body.record.handled(message.channel, message.seq + 1)
            body.disconnect()
            body.guest.fail_calls("link", "the kernel was put to sleep")
            self.state = State.ASLEEP
            body.remember()
        return {"waiting": len(body.endpoints.waiting)}

    def wake(self, fifos: Fifos, timeout_s: float, *, held: bool, ended: Ended) -> None:
        """Go on with the restored guest; ``ended`` is called when the link is open, or will not.

        Raises:
            RequestError: ``fifo``, ``state``.
        """
        self._require(State.ASLEEP)
        self._body.connect_again(fifos)
        reason = f"the guest did not answer in {timeout_s:g} s"
        timer = self._reactor.later(timeout_s, self._body, lambda: self._stay_asleep(reason))
        self._waking = _Waking(ended, timer, held)

    def wake_failed(self, reason: str) -> dict[str, Any]:
        """Answer everything that waits with an error; the kernel stays asleep.

        Raises:
            RequestError: ``state``.
        """
        self._require(State.ASLEEP)
        failed, dropped = self._desk.refuse_waiting(reason)
        self._desk.forget_telling()
        self._body.endpoints.collect()
        return {"failed": failed, "dropped": dropped}

    # -- what happens to the kernel ------------------------------------------------------------

    def begin_asleep(self, remembered: object) -> None:
        """Start out asleep, with what an earlier process had recorded."""
        self._desk.presence.learn(self._body.guest.kernel_info, parse_seen(remembered))
        self.state = State.ASLEEP
        self._body.endpoints.divert(self._desk)

    def remembered(self) -> dict[str, Any] | None:
        """Give what ``begin_asleep`` wants."""
        seen = self._desk.presence.seen
        return seen.to_json() if seen is not None else None

    def opened(self, opened: Opened) -> bool:
        """A link is open; False if it must not be used, as it was given up at once."""
        waking = self._waking
        if waking is None:
            return True
        if not opened.resumed:
            self._stay_asleep("the guest is another one than the one that was put to sleep")
            return False
        waking.timer.cancel()
        self._waking = None
        waiting = len(self._body.endpoints.waiting)
        assert self._body.line is not None
        self._body.endpoints.attach(self._body.line)
        self.state = State.HELD
        if not waking.held:
            self._awake()
        waking.ended(None, {"waiting": waiting})
        return True

    def link_failed(self, reason: str) -> bool:
        """The link broke; True if that ends a ``wake``, which is told, and changes nothing else."""
        if self._hold is not None:
            self._end_hold(reason, code="link")
        if self._waking is None:
            return False
        self._stay_asleep(reason)
        return True

    def reset(self, reason: str) -> None:
        """The sandbox is given up: awake from now on. What waits, waits for the next one."""
        if self._hold is not None:
            self._end_hold(reason, code="link")
        if self._waking is not None:
            self._stay_asleep(reason)
        if self.state is not State.AWAKE:
            self._awake()

    # -- inner -------------------------------------------------------------------------------

    def _require(self, state: State) -> None:
        if self._hold is not None or self._waking is not None:
            doing = "held" if self._hold is not None else "woken"
            raise RequestError("state", f"the kernel is just being {doing}")
        if self.state is not state:
            raise RequestError("state", f"the kernel is {self.state.value}, not {state.value}")

    def _end_hold(self, reason: str | None, code: str = "busy") -> None:
        hold, ended = self._hold, self._hold_ended
        assert hold is not None
        assert ended is not None
        hold.cancel()
        self._hold = self._hold_ended = self._body.relay.probe = self._desk.disturbed = None
        if reason is not None:
            self._body.endpoints.pass_on()
            ended(RequestError(code, reason), {})
            return
        if hold.probe.kernel_info is not None:
            self._body.guest.kernel_info = hold.probe.kernel_info
        self._desk.presence.learn(self._body.guest.kernel_info, hold.probe.seen)
        self.state = State.HELD
        ended(None, {"memory": self._body.remember()})
        self._desk.look_again()
        self._body.endpoints.collect()  # which may have made room

    def _stay_asleep(self, reason: str) -> None:
        waking, self._waking = self._waking, None
        assert waking is not None
        waking.timer.cancel()
        self._body.disconnect()
        waking.ended(RequestError("link", reason), {})

    def _awake(self) -> None:
        self.state = State.AWAKE
        self._desk.forget_telling()
        self._body.endpoints.pass_on()
