"""Keeps every kernel as the registry, the world and its owner say it should be."""

from __future__ import annotations

import logging
from dataclasses import replace

from torpor.backends.base import Handle
from torpor.bridge.client import BridgeRefused
from torpor.daemon.kernel import Kernel
from torpor.daemon.launch import CLOSE_S
from torpor.daemon.logs import about, log
from torpor.daemon.parts import Parts
from torpor.daemon.processes import ExitWatches, Process
from torpor.daemon.records import SandboxRow
from torpor.daemon.steps import Steps
from torpor.daemon.tasks import Tasks
from torpor.errors import BackendUnavailable
from torpor.lifecycle import Step, run_to_end


class Settling:
    """Holds the kernels, watches owners and sandboxes, and settles a kernel whenever one changes."""

    def __init__(self, parts: Parts) -> None:
        self.kernels: dict[str, Kernel] = {}
        self.steps = Steps(parts)
        self.tasks = Tasks()
        self.always = 0
        """So many tasks run for as long as the daemon does."""
        self._parts = parts
        self._watches = ExitWatches()

    @property
    def idle(self) -> bool:
        """Whether nothing is held and nothing is going on."""
        held = self.kernels or self._parts.registry.sandboxes
        return not held and not len(self.tasks) > self.always

    @property
    def unsettled(self) -> bool:
        """Whether a kernel is not as it should be, or a sandbox is left over."""
        claimed = {kernel.row.sandbox_id for kernel in self.kernels.values()}
        claimed |= self._parts.unclaimed
        return any(
            self.steps.next(kernel) is not Step.NOTHING for kernel in self.kernels.values()
        ) or any(name not in claimed for name in self._parts.registry.sandboxes)

    def all(self) -> None:
        """Look at every kernel again, in the background (a bridge came back, time for a sweep)."""
        for kernel in list(self.kernels.values()):
            self.soon(kernel)
        self.tasks.start(self.steps.sweep(self.kernels), name="sweep")

    def soon(self, kernel: Kernel) -> None:
        """Bring ``kernel`` to what is wanted of it, in the background."""
        if self.steps.next(kernel) is not Step.NOTHING:
            self.tasks.start(self._settle(kernel), name=f"settle {kernel.row.kernel_id}")

    async def now(self, kernel: Kernel) -> None:
        """Do the same and wait for it, also while being cancelled; failures are only logged."""
        name = f"settle {kernel.row.kernel_id}"
        await run_to_end(self._settle(kernel), within_s=2 * CLOSE_S, name=name)

    async def _settle(self, kernel: Kernel) -> None:
        kernel_id = kernel.row.kernel_id
        with about(kernel_id):
            if self.steps.next(kernel) is Step.CANCEL and kernel.launch is not None:
                kernel.launch.cancel()
            async with kernel.lock:  # a cancelled launch holds it until it has undone itself
                if self.kernels.get(kernel_id) is not kernel:
                    return
                try:
                    removed = await self.steps.execute(kernel)
                except (BridgeRefused, BackendUnavailable, OSError) as exc:
                    log("not settled yet", level=logging.ERROR, error=exc)
                    return
                if removed:
                    kernel.removed = True
                    if not kernel.launching:
                        kernel.forget_owner()
                    del self.kernels[kernel_id]
                kernel.notify()

    def watch_owner(self, kernel: Kernel, owner: Process | None) -> None:
        """Make ``owner`` the one whose death ends the kernel; None: nobody."""
        kernel.forget_owner()
        kernel.owner_alive = True
        if kernel.row.owner != owner:
            kernel.row = replace(kernel.row, owner=owner)
            if kernel.row.kernel_id in self._parts.registry.kernels:
                self._parts.registry.put_kernel(kernel.row)
        if owner is not None:
            kernel.owner_watch = self._watches.watch(owner, lambda: self._owner_died(kernel))

    def _owner_died(self, kernel: Kernel) -> None:
        with about(kernel.row.kernel_id):
            log("owner died", pid=kernel.row.owner.pid if kernel.row.owner else None)
        kernel.owner_alive = False
        self.soon(kernel)

    def watch_sandbox(self, kernel: Kernel, sandbox: SandboxRow, handle: Handle) -> None:
        """Take note that this sandbox is the kernel's and runs, and of its end."""
        kernel.forget_sandbox()
        kernel.sandbox_alive, kernel.sandbox_end = True, None
        kernel.sandbox_watch = self.tasks.start(
            self._sandbox_end(kernel, handle), name=f"exit of {sandbox.sandbox_id}"
        )

    async def _sandbox_end(self, kernel: Kernel, handle: Handle) -> None:
        end = await self._parts.backend.exited(handle)
        with about(kernel.row.kernel_id):
            log("sandbox ended", level=logging.WARNING, reason=end.reason)
        kernel.sandbox_ended(end.reason or "it ended by itself")
        self.soon(kernel)

    async def aclose(self) -> None:
        """Let go of everything that is watched, kernels go on. Twice is fine."""
        for kernel in self.kernels.values():
            kernel.forget_owner()
        await self.tasks.aclose()
