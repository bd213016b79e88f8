"""What callers ask of the kernels of this daemon."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from torpor.api import LaunchRequest
from torpor.bridge.client import BridgeRefused
from torpor.daemon.ahead import Ahead, Templates
from torpor.daemon.guest_state import after_event, after_status
from torpor.daemon.kernel import Kernel
from torpor.daemon.launch import Launcher
from torpor.daemon.logs import about, log
from torpor.daemon.parts import Parts
from torpor.daemon.plan import Plan
from torpor.daemon.processes import Process
from torpor.daemon.records import KernelRow
from torpor.daemon.settling import Settling
from torpor.daemon.sleeper import Sleeper
from torpor.daemon.warm import Warm
from torpor.errors import BackendUnavailable, Busy, SandboxError, SandboxGone
from torpor.lifecycle import Status, Target
from torpor.lifecycle.idle import Tier
from torpor.template import Template

_SIGNAL_S = 5.0
_BUSY_WITHIN_S = 10.0
_BUSY_PAUSE_S = 0.05
_BUSY_LOOKS = 3
"""A kernel is busy a moment before its cell runs: an interrupt then has ipykernel drop the reply."""


class Supervisor:
    """Serves the control API. One launch, restart or removal of a kernel happens at a time."""

    def __init__(
        self,
        parts: Parts,
        settling: Settling,
        *,
        at_once: int,
        templates: Templates,
        warm: Warm | None = None,
        ahead: int = 0,
        reserve_bytes: int = 0,
        room: Callable[[str, int | None], None] = lambda _kernel_id, _starting: None,
    ) -> None:
        self.kernels = settling.kernels
        self._parts = parts
        self._settling = settling
        self._ahead = Ahead(parts, templates, most=ahead, reserve_bytes=reserve_bytes)
        self.sleeper = Sleeper(
            parts,
            watch=settling.watch_sandbox,
            templates=templates,
            at_once=at_once,
            ahead=self._ahead,
        )
        self._launcher = Launcher(
            parts,
            at_once=at_once,
            watch=settling.watch_sandbox,
            ask=settling.steps.ask,
            warm=warm,
            room=room,
        )

    def get(self, kernel_id: str) -> Kernel:
        """Give a kernel. Raises SandboxGone when there is none of that name."""
        try:
            return self.kernels[kernel_id]
        except KeyError:
            raise SandboxGone(f"there is no kernel {kernel_id!r}") from None

    async def launch(
        self, request: LaunchRequest, template: Template, owner: Process | None
    ) -> Kernel:
        """Start a kernel, or restart the one of that name; returns once it has answered.

        A first launch is all or nothing, also when cancelled; a failed restart leaves the kernel
        ended.

        Raises:
            LaunchError, LaunchTimeout: it did not start.
            ConfigError: it cannot start like this.
            Busy: this kernel is being started or removed already.
        """
        plan, kernel = Plan(request, template), self.kernels.get(request.kernel_id)
        if kernel is None:
            kernel = self.kernels[request.kernel_id] = Kernel(_new_row(plan, owner))
        elif kernel.launching or kernel.row.target is Target.ABSENT:
            raise Busy(f"kernel {request.kernel_id} is being started or removed right now")
        elif kernel.row.client.holder != request.client.holder:
            raise Busy(
                f"kernel {request.kernel_id} exists and has another connection file",
                hint="shut it down first, or start one with another id",
            )
        kernel.launch = asyncio.current_task()
        with about(request.kernel_id):
            try:
                self._settling.watch_owner(kernel, owner)
                async with kernel.lock:
                    self._claim(kernel, plan, owner)
                    await self._start(kernel, plan)
            finally:
                kernel.launch = None
                kernel.notify()
                self._after_launch(kernel)
        return kernel

    def _claim(self, kernel: Kernel, plan: Plan, owner: Process | None) -> None:
        """Make sure, once it is our turn, that this is (still) the kernel of that name."""
        kernel_id = plan.request.kernel_id
        if self.kernels.setdefault(kernel_id, kernel) is not kernel:
            raise Busy(f"kernel {kernel_id} is being started or removed right now")
        if kernel.removed:  # while we waited: start from nothing
            kernel.removed = False
            kernel.row = _new_row(plan, owner)

    async def _start(self, kernel: Kernel, plan: Plan) -> None:
        before = asyncio.get_running_loop().time()
        kernel.start_reason, kernel.shut_down = "", None
        if kernel.row.status is Status.LAUNCHING:
            what, start = "create", self._launcher.create
        elif await self._awake(kernel):
            what, start = "restart", self._launcher.restart
        else:
            if kernel.row.status is not Status.LOST:
                await self._settling.steps.lose(kernel)
            what, start = "replace", self._launcher.replace
        try:
            kernel.started_as = await start(kernel, plan)
        except BaseException as exc:
            log("launch failed", level=logging.WARNING, error=exc, how=what)
            raise
        seconds = round(asyncio.get_running_loop().time() - before, 4)
        log("launched", how=kernel.started_as, seconds=seconds, why=kernel.start_reason or None)

    async def _awake(self, kernel: Kernel) -> bool:
        """Have the sandbox that a restart is to happen in; False when there is none any more."""
        try:
            await self.sleeper.wake_locked(kernel)
        except SandboxError as exc:
            # Whoever restarts a kernel wants a fresh one; what slept stays on disk.
            kernel.start_reason = f"its snapshot could not be used: {exc.message}"
            return False
        return kernel.row.status is Status.LIVE and kernel.sandbox_alive and kernel.responsive

    def _after_launch(self, kernel: Kernel) -> None:
        """Drop a kernel whose first launch was undone; what undoing could not free is swept."""
        kernel_id = kernel.row.kernel_id
        if kernel.row.status is not Status.LAUNCHING:
            self._settling.soon(kernel)
        elif self._parts.registry.kernels.get(kernel_id) or self._parts.registry.sandboxes_of(
            kernel_id
        ):
            kernel.row = replace(kernel.row, target=Target.ABSENT)
            self._settling.soon(kernel)
        else:
            kernel.forget_owner()
            self.kernels.pop(kernel_id, None)

    async def signal(self, kernel_id: str, signum: int) -> None:
        """Send a signal to the kernel's process group; to one that has ended it means nothing.

        Raises:
            SandboxGone: the sandbox does not exist (any more).
            BackendUnavailable: the guest did not answer.
        """
        try:
            await self._signal(self.get(kernel_id), signum)
        except BridgeRefused as exc:
            raise BackendUnavailable(f"the guest did not take the signal: {exc}") from exc

    async def _signal(self, kernel: Kernel, signum: int) -> None:
        kernel_id = kernel.row.kernel_id
        if kernel.state == "exited":
            return
        if kernel.tier is not Tier.AWAKE or kernel.moving:
            if signum == signal.SIGINT and kernel.moving and await self._is_asked(kernel):
                interrupting = self._interrupt_soon(kernel)
                self._settling.tasks.start(interrupting, name=f"interrupt {kernel_id}")
            if signum in (0, signal.SIGINT):
                return  # it is idle: there is nothing to interrupt (yet)
            async with kernel.lock:
                if kernel.row.status is Status.ASLEEP:
                    kernel.shut_down = -signum
                    kernel.notify()
                    return
                await self.sleeper.wake_locked(kernel)
        if kernel.state == "gone":
            raise SandboxGone(f"kernel {kernel_id} has no sandbox any more: {kernel.reason}")
        try:
            await self._tell_signal(kernel, signum)
        except BridgeRefused as exc:
            if exc.reason != "no_kernel":  # it has ended just now
                raise

    async def kill(self, kernel_id: str) -> None:
        """End the kernel's processes; its sandbox stays, if its guest obeys.

        Raises:
            SandboxGone: there is no such kernel.
            BackendUnavailable: the guest cannot be asked now.
        """
        kernel = self.get(kernel_id)
        if kernel.ended:
            return
        try:
            await self._signal(kernel, 9)
        except BridgeRefused as exc:
            if exc.reason not in ("link", "timeout"):
                raise BackendUnavailable(f"the kernel cannot be killed now: {exc}") from exc
            log("kill falls back to the sandbox", level=logging.WARNING, error=exc)
            kernel.sandbox_ended("its guest did not answer")
            await self._settling.now(kernel)

    async def delete(self, kernel_id: str, *, holder: str | None = None) -> None:
        """Destroy sandbox, endpoints and files of a kernel; one that does not exist is fine.

        With ``holder``, one that has other endpoints (``Endpoints.holder``) is left alone.

        Raises:
            BackendUnavailable: something would not go away; it is tried again later.
        """
        kernel = self.kernels.get(kernel_id)
        if kernel is None or holder not in (None, kernel.row.client.holder):
            return
        kernel.row = replace(kernel.row, target=Target.ABSENT)
        if kernel_id in self._parts.registry.kernels:
            try:
                self._parts.registry.put_kernel(kernel.row)
            except BackendUnavailable as exc:  # the disk is full: this will make room
                log("not written", level=logging.WARNING, error=exc)
        await self._parts.stores.release(kernel_id)  # a wake may wait for a store that hangs
        await self._settling.now(kernel)
        if self.kernels.get(kernel_id) is kernel:
            raise BackendUnavailable(
                f"kernel {kernel_id} could not be removed completely", hint="see `torpor logs`"
            )

    async def adopt(self, kernel_id: str, owner: Process | None) -> Kernel:
        """Make ``owner`` the one whose death ends the kernel, or nobody. Raises SandboxGone."""
        kernel = self.get(kernel_id)
        self._settling.watch_owner(kernel, owner)
        return kernel

    async def wait(self, kernel_id: str, timeout_s: float) -> Kernel:
        """Return when the kernel has ended, or after ``timeout_s``. Raises SandboxGone."""
        kernel = self.get(kernel_id)
        try:
            async with asyncio.timeout(timeout_s):
                await kernel.until(lambda: kernel.ended or kernel_id not in self.kernels)
        except TimeoutError:
            pass
        return kernel

    def heard(self, kernel_id: str, event: Mapping[str, Any]) -> None:
        """Take in an event of the bridge."""
        kernel = self.kernels.get(kernel_id)
        if kernel is None:
            return
        name, body = event.get("event"), event.get("body")
        with about(kernel_id):
            if name == "guest" and isinstance(body, Mapping):
                kernel.guest = after_event(kernel.guest, body)
                if body.get("event") in ("failed", "exited", "dropped"):
                    log(f"kernel {body['event']}", exit_code=kernel.guest.exit_code)
            elif name == "intent" and not self._settling.tasks.closing:
                self._settling.tasks.start(self.rouse(kernel), name=f"rouse {kernel_id}")
            elif name == "looked_at" and kernel.row.status is Status.ASLEEP:
                self._ahead.wanted(kernel)
            elif name == "shutdown_wanted":
                log("shut down while asleep", restart=event.get("restart"))
                if kernel.row.status is Status.ASLEEP and not kernel.moving:
                    kernel.shut_down = 0
                else:
                    ending = self._end(kernel, kernel.guest.generation)
                    self._settling.tasks.start(ending, name=f"end {kernel_id}")
            elif name == "link_failed":
                reason = str(event.get("error") or event.get("message") or "protocol error")
                log("link failed", level=logging.ERROR, reason=reason)
                kernel.guest = replace(kernel.guest, link_error=reason)
                kernel.sandbox_ended(f"its guest broke the link protocol: {reason}")
                self._settling.soon(kernel)
            elif name == "link_open" and not kernel.launching:
                self._settling.tasks.start(self._refresh(kernel), name=f"refresh {kernel_id}")
        kernel.notify()

    async def _end(self, kernel: Kernel, generation: int) -> None:
        """End a kernel that was asked to shut down while it stood still, and was answered for."""
        with about(kernel.row.kernel_id), contextlib.suppress(SandboxError, BridgeRefused):
            async with kernel.lock:
                if kernel.row.status is Status.ASLEEP:
                    kernel.shut_down = 0
                    kernel.notify()
                elif kernel.guest.generation == generation and not kernel.ended:
                    await self.sleeper.wake_locked(kernel)
                    await self._tell_signal(kernel, signal.SIGTERM)

    async def _is_asked(self, kernel: Kernel) -> bool:
        """Tell whether there is anything that an interrupt can mean; not a cell that comes later."""
        with contextlib.suppress(SandboxError, BridgeRefused):
            status = await self._parts.bridge.call("status", kernel_id=kernel.row.kernel_id)
            return bool(status.get("waiting") or status.get("busy_reason"))
        return False

    async def _interrupt_soon(self, kernel: Kernel) -> None:
        """Interrupt the cell for which a kernel wakes, once it runs; without one, nothing."""
        with about(kernel.row.kernel_id), contextlib.suppress(SandboxError, BridgeRefused):
            async with kernel.lock:
                pass  # whatever moved it is over
            until, busy = time.monotonic() + _BUSY_WITHIN_S, 0
            while kernel.tier is Tier.AWAKE and time.monotonic() < until:
                status = await self._parts.bridge.call("status", kernel_id=kernel.row.kernel_id)
                busy += status.get("execution_state") == "busy"
                if busy == _BUSY_LOOKS:
                    await self._tell_signal(kernel, signal.SIGINT)
                    return
                if not status.get("busy_reason"):  # what was meant is over
                    return
                await asyncio.sleep(_BUSY_PAUSE_S)

    async def _tell_signal(self, kernel: Kernel, signum: int) -> None:
        await self._settling.steps.ask(kernel, "signal", {"signum": signum}, timeout_s=_SIGNAL_S)

    async def resume_sleep(self, kernel: Kernel, status: Mapping[str, Any]) -> None:
        """Finish what an earlier daemon had begun, and see to who has waited meanwhile."""
        state = status.get("state")
        expected = "asleep" if kernel.row.status is Status.ASLEEP else "awake"
        if state != expected or kernel.row.paused:
            await self.sleeper.settle(kernel)
        if kernel.row.status is Status.ASLEEP and status.get("waiting"):
            self._settling.tasks.start(self.rouse(kernel), name=f"rouse {kernel.row.kernel_id}")

    async def rouse(self, kernel: Kernel) -> None:
        """Wake a kernel because somebody asks something of it; failures are told to who asked."""
        with about(kernel.row.kernel_id), contextlib.suppress(SandboxError):
            await self.sleeper.wake(kernel)

    async def _refresh(self, kernel: Kernel) -> None:
        status = await self._parts.bridge.call("status", kernel_id=kernel.row.kernel_id)
        kernel.guest = after_status(kernel.guest, status)
        kernel.notify()

    async def aclose(self) -> None:
        """Undo the launches that are on their way; kernels that run go on. Twice is fine."""
        launches = [kernel.launch for kernel in self.kernels.values() if kernel.launch is not None]
        for launch in launches:
            launch.cancel()
        if launches:
            await asyncio.wait(launches)
        await self._ahead.aclose()
        await self.sleeper.aclose()


def _new_row(plan: Plan, owner: Process | None) -> KernelRow:
    return KernelRow(
        kernel_id=plan.request.kernel_id,
        kernel_name=plan.request.kernel_name,
        template=plan.template.name,
        status=Status.LAUNCHING,
        target=Target.PRESENT,
        client=plan.request.client,
        created_at=datetime.now(UTC).isoformat(),
        guest_key=secrets.token_hex(32),
        owner=owner,
        argv=plan.request.argv,
        tier_since=time.time(),
    )
