"""A kernel's hibernation, the bridge's part: held, asleep, and awake again (operations: ``protocol``).

::

    awake --hold--> held --sleep--> asleep --wake--> awake (or held)
      ^--release-----'                 '--- a wake that fails: still asleep

A kernel that was woken and is released with ``prove_s`` gets what waits, and has to show with it that it
works (``unproven``).

Held, the link is up and the kernel stands still: its state may be saved. Asleep there is no link. In
both, clients meet the ``desk``, which answers what only looks; everything else waits, in order, for
``release`` or ``wake``, and is told. So a kernel that is held may also be frozen, and go on later.

A restored guest remembers the link as it was in its snapshot. What passed over the link of a kernel
that was woken and never released (a health check) is not in there: so ``sleep`` takes such a kernel
back to what it was before, and the same snapshot can be restored again.

Also an interrupt of a kernel that is only held is answered and not passed: it stands still, so there
is nothing to interrupt, and a message to it could get lost in the checkpoint.
"""

from __future__ import annotations

import enum
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torpor.bridge.body import Body
from torpor.bridge.desk import FrontDesk, Publish
from torpor.bridge.endpoints import Keys
from torpor.bridge.hold import Hold, is_finishing, reason_to_go_on
from torpor.bridge.presence import Seen, parse_seen
from torpor.bridge.probe import Probe
from torpor.bridge.protocol import Fifos, RequestError
from torpor.bridge.reactor import Reactor, Timer
from torpor.link import Channel, Opened

_NO_LINK = "there is no open link to the guest"
_GIVEN_UP = "the sandbox was given up"

Ended = Callable[[RequestError | None, dict[str, Any]], None]


class State(enum.Enum):
    """As ``status`` tells it."""

    AWAKE = "awake"
    HELD = "held"
    ASLEEP = "asleep"


@dataclass(frozen=True, slots=True)
class _Proving:
    ended: Ended
    timer: Timer


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
        self._proving: _Proving | None = None
        self._announced = ""
        self._hold_id = ""
        self._asleep_as: Mapping[str, Any] | None = None  # until what was restored is released
        self.state = State.AWAKE

    @property
    def restorable(self) -> bool:
        """Whether what is known is of a snapshot: it must not be replaced by anything newer."""
        return self._asleep_as is not None

    def busy_reason(self) -> str | None:
        """Give why the kernel should not be put to sleep now, for a person; None when it may be."""
        if self.state is State.ASLEEP:
            return None
        line = self._body.line
        if line is None or not line.open:
            return _NO_LINK
        reason = reason_to_go_on(self._body)
        if reason is None and len(self._body.endpoints.waiting):
            return "messages wait for the kernel"
        return reason

    # -- operations --------------------------------------------------------------------------

    def hold(self, timeout_s: float, ended: Ended) -> None:
        """Have the kernel stand still; ``ended`` is called once it does, or cannot.

        Raises:
            RequestError: ``busy``, ``link``, or ``state``.
        """
        if self.state is not State.HELD:
            self._require(State.AWAKE)
        reason = self.busy_reason()
        if reason is not None:
            raise RequestError("link" if reason is _NO_LINK else self._busy_code(), reason)
        if self.state is State.HELD:
            if self._asleep_as is not None:  # restored, and now to be saved again
                self._asleep_as, self._hold_id = None, uuid.uuid4().hex
            ended(None, {"memory": self._body.remember()})
            return
        probe = Probe(self._signer, kernel_info_too=not self._body.guest.kernel_info)
        hold = Hold(self._reactor, self._body, probe, timeout_s, self._end_hold)
        self._hold, self._hold_ended = hold, ended
        self._body.relay.probe = probe
        self._desk.disturbed = lambda kind: hold.give_up(f"{kind} has just come")
        self._desk.forget_telling()
        self._body.endpoints.divert(self._desk)
        hold.start()

    def release(self, notice: str = "") -> dict[str, Any]:
        """Undo ``hold``: what waits is passed now, in order. Fine when awake.

        ``notice`` is for whoever runs the next cell of a kernel that was restored; told once.

        Raises:
            RequestError: ``state``: asleep.
        """
        if self._hold is not None:
            self._end_hold("it was released meanwhile")
        if self.state is State.ASLEEP:
            raise RequestError("state", "the kernel is asleep: wake it")
        if self.state is State.HELD:
            if notice and self.restorable:
                self._desk.announce(notice)
            self._awake()
        elif self._proving is None:
            self._proved()  # nobody will decide otherwise any more
        return {}

    def release_and_prove(self, notice: str, prove_s: float, ended: Ended) -> None:
        """Release a kernel that was restored; ``ended`` is called once it has shown that it works.

        If it does not, it is awake all the same, and what it was asked is still kept: ``wake_failed``
        answers that. With nothing to ask on shell, nothing is proved.

        Raises:
            RequestError: ``state``: not woken, or released already.
        """
        if self.state is not State.HELD or not self.restorable or self._hold is not None:
            raise RequestError("state", f"the kernel is {self.state.value}, and was not just woken")
        reason = f"the kernel did not take up what it was asked in {prove_s:g} s"
        timer = self._reactor.later(prove_s, self._body, lambda: self._disproved(reason))
        self._proving, self._announced = _Proving(ended, timer), notice
        self._body.relay.heard = self._heard
        self._body.endpoints.keep_passed()
        self.release(notice)

    def sleep(self, memory: Mapping[str, Any] | None) -> dict[str, Any]:
        """Give up the link. What clients have not taken yet is still sent to them. Twice is fine.

        A kernel that is being woken, or was and is not released, is as asleep as before. ``memory``:
        from any state, as if it had been put to sleep when that was given.

        Raises:
            RequestError: ``state``: not held, or the kernel died meanwhile.
        """
        if self._waking is not None:
            self._stay_asleep("the kernel was put to sleep again")
        if memory is not None:
            self._back_asleep(memory, _GIVEN_UP)
            self._desk.look_again()
        elif self.state is State.HELD and self._asleep_as is not None:
            self.begin_asleep(self._asleep_as)
        elif self.state is not State.ASLEEP:
            self._fall_asleep()
        return {"waiting": len(self._body.endpoints.waiting)}

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

    def wake_failed(self, reason: str, memory: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Answer everything that waits with an error; the kernel stays asleep.

        ``memory``: from any state, and it is what it was when that was given. What was passed to it
        since it was woken, and not taken up, is answered in the same way.

        Raises:
            RequestError: ``state``.
        """
        passed = (0, 0)
        if memory is not None:
            passed = self._back_asleep(memory, reason)
        self._require(State.ASLEEP)
        failed, dropped = self._desk.refuse_waiting(reason)
        self._desk.forget_telling()
        self._body.endpoints.collect()
        return {"failed": failed + passed[0], "dropped": dropped + passed[1]}

    # -- what happens to the kernel ------------------------------------------------------------

    def begin_asleep(self, memory: Mapping[str, Any]) -> None:
        """Be asleep from now on, as ``memory`` says."""
        self._asleep_as = None
        self._body.fall_back(memory)
        hold_id = memory.get("hold_id")
        self._hold_id = hold_id if isinstance(hold_id, str) else ""
        self._asleep_as = memory
        self._learn(parse_seen(memory.get("seen")))
        self.state = State.ASLEEP
        self._body.endpoints.divert(self._desk)

    def remembered(self) -> dict[str, Any]:
        """Give what ``begin_asleep`` wants."""
        seen = self._desk.presence.seen
        return {"seen": seen.to_json() if seen is not None else None, "hold_id": self._hold_id}

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
        asked = self._body.endpoints.waiting.holds(Channel.SHELL)
        assert self._body.line is not None
        self._body.endpoints.attach(self._body.line)
        self.state = State.HELD
        if not waking.held:
            self._awake()
        waking.ended(None, {"waiting": waiting, "asked": asked})
        return True

    def link_failed(self, reason: str) -> bool:
        """The link broke; True if that ends a ``wake``, which is told, and changes nothing else."""
        if self._hold is not None:
            self._end_hold(reason, code="link")
        self._disproved(reason)
        if self._waking is None:
            return False
        self._stay_asleep(reason)
        return True

    def kernel_ended(self) -> None:
        """The kernel process is no more."""
        self._disproved("the kernel has died")

    def reset(self, reason: str) -> None:
        """The sandbox is given up: awake from now on. What waits, waits for the next one."""
        self._break_off(reason)
        self._refuse_passed(reason)
        if self.state is not State.AWAKE:
            self._awake()

    # -- inner -------------------------------------------------------------------------------

    def _fall_asleep(self) -> None:
        self._require(State.HELD)
        body = self._body
        if body.guest.dead:
            raise RequestError("state", "the kernel has died")
        for message in body.endpoints.let_go():
            body.record.handled(message.channel, message.seq + 1)
        body.disconnect()
        body.guest.fail_calls("link", "the kernel was put to sleep")
        self.state = State.ASLEEP
        self._asleep_as = body.remember()

    def _learn(self, seen: Seen | None) -> None:
        body = self._body
        self._desk.presence.learn(body.guest.kernel_info, seen, body.underway.debug_info)

    def _break_off(self, reason: str) -> None:
        if self._hold is not None:
            self._end_hold(reason, code="link")
        if self._waking is not None:
            self._stay_asleep(reason)
        self._disproved(reason)

    def _heard(self, msg_id: str) -> None:
        if self._body.endpoints.proved_by(msg_id):
            self._proved()

    def _proved(self) -> None:
        """What was passed need not be kept any more. Idempotent."""
        self._body.relay.heard, self._announced = None, ""
        self._body.endpoints.proved()
        self._end_proving(None)

    def _disproved(self, reason: str) -> None:
        """Say so; what was passed is kept until somebody decides about it. Idempotent."""
        self._body.relay.heard = None
        self._end_proving(RequestError("link", reason))

    def _end_proving(self, error: RequestError | None) -> None:
        proving, self._proving = self._proving, None
        if proving is not None:
            proving.timer.cancel()
            proving.ended(error, {})

    def _refuse_passed(self, reason: str) -> tuple[int, int]:
        self._body.relay.heard = None
        self._desk.withdraw(self._announced)
        self._announced = ""
        return self._desk.refuse(self._body.endpoints.give_up_passed(), reason)

    def _back_asleep(self, memory: Mapping[str, Any], reason: str) -> tuple[int, int]:
        """Be asleep as ``memory`` says, from any state; ``reason`` is for what was passed in vain."""
        self._body.disconnect()  # so that what waits does not go there
        self._break_off(_GIVEN_UP)
        refused = self._refuse_passed(reason)
        self.begin_asleep(memory)
        self._desk.forget_telling()
        return refused

    def _require(self, state: State) -> None:
        if self._hold is not None or self._waking is not None:
            doing = "held" if self._hold is not None else "woken"
            raise RequestError("state", f"the kernel is just being {doing}")
        if self.state is not state:
            raise RequestError("state", f"the kernel is {self.state.value}, not {state.value}")

    def _busy_code(self) -> str:
        return "finishing" if is_finishing(self._body) else "busy"

    def _end_hold(self, reason: str | None, code: str = "") -> None:
        hold, ended = self._hold, self._hold_ended
        assert hold is not None
        assert ended is not None
        hold.cancel()
        self._hold = self._hold_ended = self._body.relay.probe = self._desk.disturbed = None
        if reason is not None:
            self._body.endpoints.pass_on()
            ended(RequestError(code or self._busy_code(), reason), {})
            return
        if hold.probe.kernel_info is not None:
            self._body.guest.kernel_info = hold.probe.kernel_info
        self._learn(hold.probe.seen)
        self.state, self._hold_id = State.HELD, uuid.uuid4().hex
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
        self.state, self._hold_id, self._asleep_as = State.AWAKE, "", None
        self._desk.forget_telling()
        self._body.endpoints.pass_on()
