"""Executes what ``next_step`` decides about a kernel, and finds what no kernel claims."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torpor.backends.base import Handle
from torpor.bridge.client import BridgeRefused
from torpor.daemon.guest_state import GuestState
from torpor.daemon.ipc_links import make_links, private_endpoints
from torpor.daemon.kernel import Kernel
from torpor.daemon.logs import log
from torpor.daemon.parts import Parts
from torpor.daemon.plan import fifos
from torpor.errors import BackendUnavailable, SandboxError
from torpor.lifecycle import Seen, Status, Step, next_step


class Steps:
    """The hands of the supervisor. Every step may be repeated; the caller holds the lock."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def next(self, kernel: Kernel) -> Step:
        """Look at the kernel and give what to do about it."""
        bridge = self._parts.bridge
        seen = Seen(
            launching=kernel.launching,
            sandbox=kernel.sandbox_alive,
            # A bridge that is away is looked for again; what it holds is known then.
            endpoints=bridge.seen is None or kernel.row.kernel_id in bridge.held,
            owner=kernel.owner_alive,
        )
        return next_step(kernel.row.status, kernel.row.target, seen)

    async def execute(self, kernel: Kernel) -> bool:
        """Take steps until there is nothing (more) to do; True when the kernel was removed.

        Raises:
            BackendUnavailable, BridgeRefused, OSError: a step failed; it may be taken again.
        """
        while True:
            step = self.next(kernel)
            if step is Step.REMOVE:
                await self._remove(kernel)
                return True
            if step is Step.LOSE:
                await self.lose(kernel)
            elif step is Step.OPEN:
                await self.open(kernel)
            else:
                return False

    async def _remove(self, kernel: Kernel) -> None:
        row, registry = kernel.row, self._parts.registry
        kernel.forget_sandbox()
        for sandbox in registry.sandboxes_of(row.kernel_id):
            await self._free(sandbox.sandbox_id)
        await self._parts.free_endpoints(row)
        await self._parts.stores.release(row.kernel_id)
        await self._parts.snapshots.forget(row.kernel_id)
        if not row.making:  # else nothing of it ever was to be sent
            self._parts.stores.leave(row.kernel_id)
        registry.drop_kernel(row.kernel_id)
        log("removed")

    async def lose(self, kernel: Kernel) -> None:
        """Clear away the sandbox; the endpoints stay bound for a restart."""
        row, parts = kernel.row, self._parts
        kernel.row = replace(
            row,
            status=Status.LOST,
            sandbox_id=None,
            reason=f"its sandbox ended: {kernel.sandbox_end or 'no reason known'}",
        )
        parts.registry.put_kernel(kernel.row)
        kernel.forget_sandbox()
        kernel.guest = GuestState()
        if row.kernel_id in parts.bridge.held:
            with contextlib.suppress(BridgeRefused):
                await parts.bridge.call("unlink", kernel_id=row.kernel_id)
        for sandbox in parts.registry.sandboxes_of(row.kernel_id):
            await self._free(sandbox.sandbox_id)
        log("lost", level=logging.WARNING, reason=kernel.row.reason)

    async def ask(
        self, kernel: Kernel, method: str, params: Mapping[str, Any], *, timeout_s: float
    ) -> dict[str, Any]:
        """Ask the guest of a kernel; once more if the bridge died just now, so twice must be fine.

        Raises:
            BridgeRefused: the guest refused, or did not answer.
            BackendUnavailable: there is no bridge.
        """
        bridge, row = self._parts.bridge, kernel.row
        for attempt in (1, 2):
            await bridge.start()
            if row.kernel_id not in bridge.held and row.sandbox_id is not None:
                await self.open(kernel)
            try:
                return await bridge.rpc(row.kernel_id, method, params, timeout_s=timeout_s)
            except BackendUnavailable:
                if attempt == 2:
                    raise
        raise AssertionError("not reached")

    async def open(self, kernel: Kernel) -> None:
        """Bind the recorded endpoints again and take up the link where a dead bridge left it."""
        row, parts = kernel.row, self._parts
        if row.status is Status.ASLEEP:
            more: dict[str, Any] = {
                "asleep": True,
                "memory": await parts.snapshots.memory(row),
            }
        else:
            sandbox = parts.registry.sandboxes[row.sandbox_id or ""]
            more = fifos(sandbox.directory)
            if kernel.frozen:  # the bridge that would have told of intent is no more
                await parts.backend.thaw(Handle.from_json(sandbox.handle or {}))
                kernel.frozen = False
        await parts.bridge.call(
            "open",
            kernel_id=row.kernel_id,
            client=private_endpoints(
                row.client, row.kernel_id, parts.paths.client_sockets
            ).to_json(),
            guest_key=row.guest_key,
            resume=True,
            **more,
        )
        parts.bridge.held.add(row.kernel_id)
        make_links(row.client, row.kernel_id, parts.paths.client_sockets)
        log("endpoints bound again")

    async def _free(self, sandbox_id: str) -> None:
        try:
            await self._parts.free_sandbox(sandbox_id)
        except SandboxError as exc:
            raise BackendUnavailable(f"sandbox {sandbox_id} would not go away: {exc}") from exc

    async def sweep(self, kernels: Mapping[str, Kernel]) -> None:
        """Free the sandboxes that no kernel claims (any more)."""
        for row in list(self._parts.registry.sandboxes.values()):
            kernel = kernels.get(row.kernel_id)
            if row.sandbox_id in self._parts.unclaimed:
                continue
            if kernel is not None and (
                kernel.lock.locked() or kernel.launching or kernel.row.sandbox_id == row.sandbox_id
            ):
                continue
            try:
                await self._free(row.sandbox_id)
                log("left-over sandbox destroyed", sandbox_id=row.sandbox_id)
            except BackendUnavailable as exc:
                log("left-over sandbox stays", level=logging.ERROR, error=exc)
