"""Carries out the idle policy: looks at each kernel when something about it may be due.

Putting one to sleep takes as long as its memory is large, so it is done beside the looks at the others. A kernel
for which there is no turn is not held meanwhile: when there is one it is looked at, and decided about, anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from torpor.backends.base import Handle
from torpor.bridge.client import BridgeRefused
from torpor.daemon.kernel import Kernel
from torpor.daemon.logs import about, log
from torpor.daemon.parts import Parts
from torpor.daemon.supervisor import Supervisor
from torpor.daemon.tasks import Tasks
from torpor.errors import BackendUnavailable, ConfigError, SandboxError
from torpor.lifecycle import Status
from torpor.lifecycle.idle import (
    AGAIN_S,
    BACKGROUND_SHARE,
    Action,
    IdleDecision,
    IdlePolicy,
    KernelSeen,
    Tier,
    again_s,
    next_tier,
)
from torpor.runsc.family import family
from torpor.template import Template

_LEAST_S = 0.5
_PAUSE_S = 1.0
"""A new kernel is noticed after so long, and one that is on its way looked at again."""
_MEASURE_S = 1.0
"""How long the processor time of a kernel is measured that was not looked at before."""
_TROUBLE_S = 5.0
"""What could not be looked at is tried again after so long."""
_AT_ONCE = 2
"""At most so many kernels are frozen at a time, as many hibernated, and as many deleted."""


class Tiers:
    """One loop for all kernels of this daemon."""

    def __init__(
        self,
        parts: Parts,
        supervisor: Supervisor,
        templates: Callable[[str], Awaitable[Template]],
        tasks: Tasks,
    ) -> None:
        """``tasks`` holds what is under way, and ends it."""
        self._parts = parts
        self._supervisor = supervisor
        self._templates = templates
        self._tasks = tasks
        self._acting: dict[str, Action] = {}
        self._waiting: dict[str, Action] = {}
        """What is due and has no turn; those that wait longest come first."""
        self._cpu: dict[str, tuple[float, float, float | None]] = {}
        """When it was measured, the seconds used till then, and the share since the time before."""
        self._worked_at: dict[str, float] = {}
        self._due: dict[str, float] = {}
        self._since: dict[str, float] = {}
        """Since when a kernel was in its tier at the last look: one that has moved is looked at soon."""
        self._nudged = asyncio.Event()

    def nudge(self, kernel_id: str) -> None:
        """Look at a kernel soon: what is wanted of it has changed."""
        self._due.pop(kernel_id, None)
        self._nudged.set()

    async def run(self) -> None:
        """Look at kernels until cancelled."""
        while True:
            self._nudged.clear()
            now = time.monotonic()
            kernels = self._supervisor.kernels
            for known in (self._due, self._waiting, self._cpu, self._worked_at, self._since):
                for kernel_id in set(known) - set(kernels):
                    del known[kernel_id]
            for kernel_id in [
                *self._waiting,
                *(each for each in kernels if each not in self._waiting),
            ]:
                kernel = kernels.get(kernel_id)
                if kernel is None or kernel_id in self._acting or kernel.lock.locked():
                    continue
                moved = self._since.get(kernel_id) != kernel.row.tier_since
                waits_for = self._waiting.get(kernel_id)
                has_turn = waits_for is not None and self._turn(waits_for)
                if moved or has_turn or self._due.get(kernel_id, 0.0) <= now:
                    self._since[kernel_id] = kernel.row.tier_since
                    with about(kernel_id):
                        self._due[kernel_id] = time.monotonic() + await self._cared(kernel)
            ahead = min(self._due.values(), default=now + _TROUBLE_S) - time.monotonic()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(max(ahead, _LEAST_S), _PAUSE_S)):
                    await self._nudged.wait()

    async def _cared(self, kernel: Kernel) -> float:
        """Look at a kernel; whatever goes wrong with one, the others are looked at."""
        try:
            decision, again = await self._look(kernel)
        except Exception as exc:
            decision, again = None, self._failed(kernel, exc, "not looked at")
        if decision is None or decision.action is Action.NONE:
            self._waiting.pop(kernel.row.kernel_id, None)
        elif self._turn(decision.action):
            self._waiting.pop(kernel.row.kernel_id, None)
            self._acting[kernel.row.kernel_id] = decision.action
            work = self._acted(kernel, decision, again)
            self._tasks.start(work, name=f"{decision.action} {kernel.row.kernel_id}")
        else:
            self._waiting[kernel.row.kernel_id] = decision.action
            kernel.outlook += "; others have their turn first"
            again = AGAIN_S
        return again

    def _failed(self, kernel: Kernel, exc: Exception, event: str) -> float:
        kernel.outlook = f"{kernel.tier}: {exc!r:.200}"
        log(event, level=logging.ERROR, error=exc)
        return _TROUBLE_S

    async def _look(self, kernel: Kernel) -> tuple[IdleDecision | None, float]:
        """Give what is due for a kernel, if that can be told now; and after how many seconds to look again."""
        if kernel.state not in ("running", "frozen", "hibernated"):
            kernel.outlook = ""
            return None, _PAUSE_S  # it starts, or is on its way to another tier
        try:
            template = await self._templates(kernel.row.template)
            status = await self._status(kernel)
        except (ConfigError, BackendUnavailable, BridgeRefused) as exc:
            kernel.outlook = f"{kernel.tier}: {exc}"
            return None, _TROUBLE_S
        policy = policy_of(template)
        share = self._background(kernel)
        if share is None and policy.count_background:
            return None, _MEASURE_S
        decision = next_tier(self._seen(kernel, status, share or 0.0), policy, time.time())
        kernel.outlook = decision.reason
        if decision.action is Action.NONE and not status.get("busy_reason"):
            return decision, decision.look_again_s
        return decision, min(decision.look_again_s, again_s(policy))

    def _turn(self, action: Action) -> bool:
        """Whether this may be done to one more kernel now."""
        if action is Action.HIBERNATE and not self._supervisor.sleeper.has_turn:
            return False  # it would stand in a queue, and nobody could wake it meanwhile
        return sum(each is action for each in self._acting.values()) < _AT_ONCE

    async def _acted(self, kernel: Kernel, decision: IdleDecision, again: float) -> None:
        """Do what is due, unless somebody was faster; if it is refused, look ``again`` after so long."""
        kernel_id, after = kernel.row.kernel_id, _LEAST_S
        try:
            same = self._supervisor.kernels.get(kernel_id) is kernel
            if same and not kernel.lock.locked():  # what is due may have changed else
                await self._act(kernel, decision.action)
                kernel.outlook = decision.reason
        except SandboxError as exc:
            kernel.outlook = f"{kernel.tier}: not put to sleep: {exc.message}"
            log("stays", level=logging.INFO, wanted=decision.action, reason=exc.message)
            after = again
        except Exception as exc:
            after = self._failed(kernel, exc, "not put to sleep")
        finally:
            del self._acting[kernel_id]
            if kernel_id in self._due:  # else somebody wants something of it: it is due at once
                self._due[kernel_id] = time.monotonic() + after
            self._nudged.set()  # there is a turn

    async def _act(self, kernel: Kernel, action: Action) -> None:
        if action is Action.FREEZE:
            await self._supervisor.sleeper.freeze(kernel)
        elif action is Action.HIBERNATE:
            await self._supervisor.sleeper.hibernate(kernel)
        elif action is Action.EXPIRE:
            log("expired")
            await self._supervisor.delete(kernel.row.kernel_id)

    async def _status(self, kernel: Kernel) -> Mapping[str, Any]:
        if kernel.row.kernel_id not in self._parts.bridge.held:
            raise BackendUnavailable("its endpoints are just coming back")
        return await self._parts.bridge.call("status", kernel_id=kernel.row.kernel_id)

    def _seen(self, kernel: Kernel, status: Mapping[str, Any], share: float) -> KernelSeen:
        now, row = time.time(), kernel.row
        if share >= BACKGROUND_SHARE:
            self._worked_at[row.kernel_id] = now
        since = status.get("idle_since")
        return KernelSeen(
            tier=kernel.tier,
            changed_at=row.tier_since,
            execution_state=str(status.get("execution_state")),
            busy_reason=str(status.get("busy_reason") or ""),
            last_active=float(since) if isinstance(since, int | float) else 0.0,
            pinned=row.pinned,
            background_cpu=share,
            last_background=self._worked_at.get(row.kernel_id, 0.0),
        )

    def _background(self, kernel: Kernel) -> float | None:
        """Give the share of a processor that the sandbox has used since the last look, unless that was just now.

        None when there was none: what it does is not known yet.
        """
        if kernel.tier is not Tier.AWAKE:
            self._cpu.pop(kernel.row.kernel_id, None)
            return 0.0
        sandbox = self._parts.registry.sandboxes.get(kernel.row.sandbox_id or "")
        if kernel.row.status is not Status.LIVE or sandbox is None or not sandbox.handle:
            return 0.0
        handle = Handle.from_json(sandbox.handle)
        now, before = time.monotonic(), self._cpu.get(kernel.row.kernel_id)
        if before is not None and now - before[0] < _LEAST_S:
            return before[2]
        used, share = sum(each.cpu_s for each in family(handle.pid)), None
        if before is not None and used >= before[1]:  # else another sandbox than the last time
            share = (used - before[1]) / (now - before[0])
        self._cpu[kernel.row.kernel_id] = (now, used, share)
        return share


def policy_of(template: Template) -> IdlePolicy:
    """Give what a template says about idle kernels."""
    return IdlePolicy(
        freeze_after_s=template.freeze_after_s,
        hibernate_after_s=template.hibernate_after_s,
        expire_after_s=template.expire_after_s,
        count_background=template.count_background,
    )
