"""All kernels of this daemon: what callers ask of them, and how world and registry stay agreed."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from torpor.api import LaunchRequest
from torpor.backends.base import Handle
from torpor.bridge.client import BridgeRefused
from torpor.daemon.guest_state import after_event, after_status
from torpor.daemon.kernel import Kernel
from torpor.daemon.launch import CLOSE_S, Launcher, Plan
from torpor.daemon.logs import about, log
from torpor.daemon.parts import Parts
from torpor.daemon.processes import ExitWatch, Process
from torpor.daemon.records import KernelRow, SandboxRow
from torpor.daemon.steps import Steps
from torpor.daemon.tasks import Tasks
from torpor.errors import BackendUnavailable, Busy, SandboxGone
from torpor.lifecycle import Status, Step, Target, run_to_end
from torpor.template import Template

_SIGNAL_S = 5.0


class Supervisor:
    """Holds every kernel. One launch, restart or removal of a kernel happens at a time."""

    def __init__(self, parts: Parts, *, at_once: int) -> None:
        self.kernels: dict[str, Kernel] = {}
        self._parts = parts
        self._tasks = Tasks()
        self._steps = Steps(parts)
        self._launcher = Launcher(parts, at_once=at_once, watch=self._watch_sandbox)

    @property
    def idle(self) -> bool:
        """Whether nothing is held and nothing is going on."""
        return not self.kernels and not self._parts.registry.sandboxes and not self._tasks

    @property
    def unsettled(self) -> bool:
        """Whether a kernel is not as it should be, or a sandbox is left over."""
        claimed = {kernel.row.sandbox_id for kernel in self.kernels.values()}
        return any(
            self._steps.next(kernel) is not Step.NOTHING for kernel in self.kernels.values()
        ) or any(name not in claimed for name in self._parts.registry.sandboxes)

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
                self._watch_owner(kernel, owner)
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
        if kernel.row.status is Status.LAUNCHING:
            how, start = "created", self._launcher.create
        elif kernel.row.status is Status.LIVE and kernel.sandbox_alive and kernel.responsive:
            how, start = "restarted", self._launcher.restart
        else:
            if kernel.row.status is Status.LIVE:
                await self._steps.lose(kernel)
            how, start = "replaced", self._launcher.replace
        try:
            await start(kernel, plan)
        except BaseException as exc:
            log("launch failed", level=logging.WARNING, error=exc, how=how)
            raise
        log("launched", how=how, seconds=round(asyncio.get_running_loop().time() - before, 3))

    def _after_launch(self, kernel: Kernel) -> None:
        """Drop a kernel whose first launch was undone; what undoing could not free is swept."""
        kernel_id = kernel.row.kernel_id
        if kernel.row.status is not Status.LAUNCHING:
            self.settle_soon(kernel)
        elif self._parts.registry.kernels.get(kernel_id) or self._parts.registry.sandboxes_of(
            kernel_id
        ):
            kernel.row = replace(kernel.row, target=Target.ABSENT)
            self.settle_soon(kernel)
        else:
            kernel.forget_owner()
            self.kernels.pop(kernel_id, None)

    async def signal(self, kernel_id: str, signum: int) -> None:
        """Send a signal to the kernel's process group; to one that has ended it means nothing.

        Raises:
            SandboxGone: the sandbox does not exist (any more).
            BackendUnavailable: the guest did not answer.
        """
        kernel = self.get(kernel_id)
        if kernel.state == "exited":
            return
        if kernel.state == "gone":
            raise SandboxGone(f"kernel {kernel_id} has no sandbox any more: {kernel.reason}")
        try:
            await self._parts.bridge.rpc(
                kernel_id, "signal", {"signum": signum}, timeout_s=_SIGNAL_S
            )
        except BridgeRefused as exc:
            raise BackendUnavailable(f"the guest did not take the signal: {exc}") from exc

    async def kill(self, kernel_id: str) -> None:
        """End the kernel's processes; its sandbox stays, if it obeys. Raises SandboxGone."""
        kernel = self.get(kernel_id)
        if kernel.ended:
            return
        try:
            await self.signal(kernel_id, 9)
        except BackendUnavailable as exc:
            log("kill falls back to the sandbox", level=logging.WARNING, error=exc)
            kernel.sandbox_ended("its guest did not answer")
            await self._settled(kernel)

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
            self._parts.registry.put_kernel(kernel.row)
        await self._settled(kernel)
        if self.kernels.get(kernel_id) is kernel:
            raise BackendUnavailable(
                f"kernel {kernel_id} could not be removed completely", hint="see `torpor logs`"
            )

    async def adopt(self, kernel_id: str, owner: Process | None) -> Kernel:
        """Make ``owner`` the one whose death ends the kernel, or nobody. Raises SandboxGone."""
        kernel = self.get(kernel_id)
        self._watch_owner(kernel, owner)
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
            elif name == "link_failed":
                reason = str(event.get("error") or event.get("message") or "protocol error")
                log("link failed", level=logging.ERROR, reason=reason)
                kernel.guest = replace(kernel.guest, link_error=reason)
                kernel.sandbox_ended(f"its guest broke the link protocol: {reason}")
                self.settle_soon(kernel)
            elif name == "link_open" and not kernel.launching:
                self._tasks.start(self._refresh(kernel), name=f"refresh {kernel_id}")
        kernel.notify()

    async def _refresh(self, kernel: Kernel) -> None:
        status = await self._parts.bridge.call("status", kernel_id=kernel.row.kernel_id)
        kernel.guest = after_status(kernel.guest, status)
        kernel.notify()

    async def recover(self) -> None:
        """Take over from a former daemon: adopt what lives, settle every kernel in the background.

        Afterwards everything that the registry, the bridge or the kernel folder knows is either
        held by a kernel here or on its way to be destroyed.
        """
        registry = self._parts.registry
        for row in registry.kernels.values():
            kernel = self.kernels[row.kernel_id] = Kernel(row)
            sandbox = registry.sandboxes.get(row.sandbox_id or "")
            if sandbox is not None and sandbox.handle is not None:
                await self._readopt(kernel, sandbox)
            self._watch_owner(kernel, row.owner)
        if self.kernels:
            log("recovering", kernels=len(self.kernels))
        await self._steps.find_strays(self.kernels)
        self.settle_all()

    async def _readopt(self, kernel: Kernel, sandbox: SandboxRow) -> None:
        try:
            handle = Handle.from_json(sandbox.handle or {})
        except SandboxGone as exc:
            log("sandbox cannot be adopted", level=logging.ERROR, error=exc)
            return
        if await self._parts.backend.alive(handle):
            self._watch_sandbox(kernel, sandbox, handle)
        else:
            kernel.sandbox_end = "it ended while no daemon ran"

    def settle_all(self) -> None:
        """Look at every kernel again, in the background (a bridge came back, time for a sweep)."""
        for kernel in list(self.kernels.values()):
            self.settle_soon(kernel)
        self._tasks.start(self._steps.sweep(self.kernels), name="sweep")

    def settle_soon(self, kernel: Kernel) -> None:
        """Bring ``kernel`` to what is wanted of it, in the background."""
        if self._steps.next(kernel) is not Step.NOTHING:
            self._tasks.start(self._settle(kernel), name=f"settle {kernel.row.kernel_id}")

    async def _settled(self, kernel: Kernel) -> None:
        name = f"settle {kernel.row.kernel_id}"
        await run_to_end(self._settle(kernel), within_s=2 * CLOSE_S, name=name)

    async def _settle(self, kernel: Kernel) -> None:
        kernel_id = kernel.row.kernel_id
        with about(kernel_id):
            if self._steps.next(kernel) is Step.CANCEL and kernel.launch is not None:
                kernel.launch.cancel()
            async with kernel.lock:  # a cancelled launch holds it until it has undone itself
                if self.kernels.get(kernel_id) is not kernel:
                    return
                try:
                    removed = await self._steps.execute(kernel)
                except (BridgeRefused, BackendUnavailable, OSError) as exc:
                    log("not settled yet", level=logging.ERROR, error=exc)
                    return
                if removed:
                    kernel.removed = True
                    if not kernel.launching:
                        kernel.forget_owner()
                    del self.kernels[kernel_id]
                kernel.notify()

    def _watch_owner(self, kernel: Kernel, owner: Process | None) -> None:
        kernel.forget_owner()
        kernel.owner_alive = True
        if kernel.row.owner != owner:
            kernel.row = replace(kernel.row, owner=owner)
            if kernel.row.kernel_id in self._parts.registry.kernels:
                self._parts.registry.put_kernel(kernel.row)
        if owner is not None:
            kernel.owner_watch = ExitWatch(owner, lambda: self._owner_died(kernel))

    def _owner_died(self, kernel: Kernel) -> None:
        with about(kernel.row.kernel_id):
            log("owner died", pid=kernel.row.owner.pid if kernel.row.owner else None)
        kernel.owner_alive = False
        self.settle_soon(kernel)

    def _watch_sandbox(self, kernel: Kernel, sandbox: SandboxRow, handle: Handle) -> None:
        kernel.forget_sandbox()
        kernel.sandbox_alive, kernel.sandbox_end = True, None
        kernel.sandbox_watch = self._tasks.start(
            self._sandbox_end(kernel, handle), name=f"exit of {sandbox.sandbox_id}"
        )

    async def _sandbox_end(self, kernel: Kernel, handle: Handle) -> None:
        end = await self._parts.backend.exited(handle)
        with about(kernel.row.kernel_id):
            log("sandbox ended", level=logging.WARNING, reason=end.reason)
        kernel.sandbox_ended(end.reason or "it ended by itself")
        self.settle_soon(kernel)

    async def aclose(self) -> None:
        """Undo launches that are on their way, then let go; kernels go on. Twice is fine."""
        launches = [kernel.launch for kernel in self.kernels.values() if kernel.launch is not None]
        for launch in launches:
            launch.cancel()
        if launches:
            await asyncio.wait(launches)
        for kernel in self.kernels.values():
            kernel.forget_owner()
        await self._tasks.aclose()


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
    )
