"""Carries out the idle policy: looks at each kernel when something about it may be due."""

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
from torpor.errors import BackendUnavailable, ConfigError, SandboxError
from torpor.lifecycle import Status
from torpor.lifecycle.idle import (
    BACKGROUND_SHARE,
    Action,
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


class Tiers:
    """One loop for all kernels of this daemon."""

    def __init__(
        self,
        parts: Parts,
        supervisor: Supervisor,
        templates: Callable[[str], Awaitable[Template]],
    ) -> None:
        self._parts = parts
        self._supervisor = supervisor
        self._templates = templates
        self._cpu: dict[str, tuple[float, float]] = {}
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
            for known in (self._due, self._cpu, self._worked_at, self._since):
                for kernel_id in set(known) - set(kernels):
                    del known[kernel_id]
            for kernel_id, kernel in list(kernels.items()):
                moved = self._since.get(kernel_id) != kernel.row.tier_since
                if (moved or self._due.get(kernel_id, 0.0) <= now) and not kernel.lock.locked():
                    self._since[kernel_id] = kernel.row.tier_since
                    with about(kernel_id):
                        self._due[kernel_id] = time.monotonic() + await self._cared(kernel)
            ahead = min(self._due.values(), default=now + _TROUBLE_S) - time.monotonic()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(max(ahead, _LEAST_S), _PAUSE_S)):
                    await self._nudged.wait()

    async def _cared(self, kernel: Kernel) -> float:
        """Do as ``_look``; whatever goes wrong with one kernel, the others are looked at."""
        try:
            return await self._look(kernel)
        except Exception as exc:
            kernel.outlook = f"{kernel.tier}: {exc!r:.200}"
            log("not looked at", level=logging.ERROR, error=exc)
            return _TROUBLE_S

    async def _look(self, kernel: Kernel) -> float:
        """Do what is due for a kernel; give after how many seconds to look again."""
        if kernel.state not in ("running", "frozen", "hibernated"):
            kernel.outlook = ""
            return _PAUSE_S  # it starts, or is on its way to another tier: its policy begins to count then
        try:
            template = await self._templates(kernel.row.template)
            status = await self._status(kernel)
        except (ConfigError, BackendUnavailable, BridgeRefused) as exc:
            kernel.outlook = f"{kernel.tier}: {exc}"
            return _TROUBLE_S
        policy = policy_of(template)
        share = self._background(kernel)
        if share is None and policy.count_background:
            return _MEASURE_S
        decision = next_tier(self._seen(kernel, status, share or 0.0), policy, time.time())
        kernel.outlook = decision.reason
        if decision.action is Action.NONE:
            busy = bool(status.get("busy_reason"))
            return min(decision.look_again_s, again_s(policy)) if busy else decision.look_again_s
        try:
            await self._act(kernel, decision.action)
        except SandboxError as exc:
            kernel.outlook = f"{kernel.tier}: not put to sleep: {exc.message}"
            log("stays", level=logging.INFO, wanted=decision.action, reason=exc.message)
            return again_s(policy)
        kernel.outlook = decision.reason
        return _LEAST_S

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
        """Give the share of a processor that the sandbox has used since the last look.

        None when that was its first, or just now: what it does is not known yet.
        """
        if kernel.tier is not Tier.AWAKE:
            self._cpu.pop(kernel.row.kernel_id, None)
            return 0.0
        sandbox = self._parts.registry.sandboxes.get(kernel.row.sandbox_id or "")
        if kernel.row.status is not Status.LIVE or sandbox is None or not sandbox.handle:
            return 0.0
        handle = Handle.from_json(sandbox.handle)
        now, used = time.monotonic(), sum(each.cpu_s for each in family(handle.pid))
        before = self._cpu.get(kernel.row.kernel_id)
        if before is not None and now - before[0] < _LEAST_S:
            return None
        self._cpu[kernel.row.kernel_id] = (now, used)
        if before is None or used < before[1]:  # another sandbox than the last time
            return None
        return (used - before[1]) / (now - before[0])


def policy_of(template: Template) -> IdlePolicy:
    """Give what a template says about idle kernels."""
    return IdlePolicy(
        freeze_after_s=template.freeze_after_s,
        hibernate_after_s=template.hibernate_after_s,
        expire_after_s=template.expire_after_s,
        count_background=template.count_background,
    )
