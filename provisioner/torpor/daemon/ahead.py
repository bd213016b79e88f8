"""Sandboxes made ahead of need: a kernel that sleeps wakes quicker when its sandbox stands ready.

A few of the kernels that were put to sleep or looked at last have one. It is all there but for the kernel's memory,
which is still in the snapshot alone; when the daemon ends, it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any

from torpor.backends.base import Image, Ready, SandboxSpec
from torpor.daemon.kernel import Kernel
from torpor.daemon.logs import about, log
from torpor.daemon.machine import available_bytes
from torpor.daemon.parts import Parts
from torpor.daemon.records import KernelRow, SandboxRow
from torpor.daemon.tasks import Tasks
from torpor.daemon.unclaimed import NOBODY, folder_identity
from torpor.errors import LaunchError, SandboxError
from torpor.lifecycle import Status, Target, run_to_end
from torpor.snapshot.build import Snapshot
from torpor.template import Template

WAKE_S = 60.0
_PAUSE_S = 0.3
"""The end of the sandbox before is not made slower by the start of the next."""
_UNDO_S = 30.0

Templates = Callable[[str], Awaitable[Template]]


@dataclass(slots=True, eq=False)
class _Standing:
    """One that stands ready, or is being made; ``generation`` of the kernel that it is for.

    ``made`` gives it, or None when it could not be made. Who has ``taken`` it removes it.
    """

    generation: int
    row: SandboxRow
    made: asyncio.Future[Ready | None]
    image: tuple[int, int] | None = None
    """Which folder it will be restored from; a snapshot may be fetched into another one meanwhile."""
    over: asyncio.Event = field(default_factory=asyncio.Event)
    taken: bool = False


class Ahead:
    """At most ``most`` at a time, each for the newest snapshot of one kernel."""

    def __init__(
        self, parts: Parts, templates: Templates, *, most: int, reserve_bytes: int
    ) -> None:
        self._parts = parts
        self._templates = templates
        self._most = most
        self._reserve_bytes = reserve_bytes
        self._standing: dict[str, _Standing] = {}
        """Those to make room first come first."""
        self._coming: set[str] = set()
        self._tasks = Tasks()

    def wanted(self, kernel: Kernel) -> None:
        """Take note that a kernel fell asleep, or that somebody looked at it. Returns at once."""
        kernel_id = kernel.row.kernel_id
        standing = self._standing.get(kernel_id)
        if standing is not None and standing.generation == kernel.row.generation:
            self._standing[kernel_id] = self._standing.pop(kernel_id)  # others make room first
        elif self._most > 0 and kernel_id not in self._coming and not self._tasks.closing:
            self._coming.add(kernel_id)
            self._tasks.start(self._care(kernel), name=f"sandbox ahead for {kernel_id}")

    async def go(
        self, kernel: Kernel, snapshot: Snapshot, *, when: Awaitable[object] | None = None
    ) -> SandboxRow | None:
        """Have the kernel restored in the sandbox that stands ready for it; give that one's row.

        ``when`` is awaited before: what it raises is raised. Under the kernel's lock. None when there
        is none, or it is of no use: nothing is left of it.
        """
        standing = self._standing.pop(kernel.row.kernel_id, None)
        if standing is None:
            return None
        same_image = standing.image in (None, folder_identity(str(snapshot.image)))
        standing.taken = standing.generation == snapshot.manifest.generation and same_image
        standing.over.set()
        if not standing.taken:
            return None
        try:
            ready = await asyncio.shield(standing.made)
        except asyncio.CancelledError:
            self._tasks.start(self._give_up(standing), name="sandbox ahead given up")
            raise
        if ready is None:
            return None
        try:
            if when is not None:
                await when
        except BaseException:
            await self._remove(standing.row, ready)
            raise
        try:
            return await self._go(kernel, standing, ready)
        except BaseException as exc:
            await self._remove(standing.row, ready)
            if not isinstance(exc, SandboxError):
                raise
            log("sandbox ahead not used", level=logging.WARNING, error=exc)
            return None

    async def aclose(self) -> None:
        """Remove all. Twice is fine."""
        await self._tasks.aclose()

    async def _go(self, kernel: Kernel, standing: _Standing, ready: Ready) -> SandboxRow:
        row = replace(standing.row, kernel_id=kernel.row.kernel_id, handle=ready.handle.to_json())
        self._parts.registry.put_sandbox(row)
        await ready.go()
        self._parts.unclaimed.discard(row.sandbox_id)
        return row

    async def _care(self, kernel: Kernel) -> None:
        """Make one for ``kernel``, and keep it until somebody takes it or it is of no use."""
        generation = kernel.row.generation

        def sleeps() -> bool:
            row = kernel.row
            there = row.status is Status.ASLEEP and row.target is Target.PRESENT
            return there and row.generation == generation and not kernel.removed

        with about(kernel.row.kernel_id):
            try:
                await asyncio.sleep(_PAUSE_S)
            finally:
                self._coming.discard(kernel.row.kernel_id)
            if sleeps() and not kernel.moving and available_bytes() >= self._reserve_bytes:
                await self._keep(kernel, self._place(kernel.row), sleeps)

    async def _keep(self, kernel: Kernel, standing: _Standing, sleeps: Callable[[], bool]) -> None:
        ready: Ready | None = None
        try:
            ready = await self._make(kernel.row, standing)
            standing.made.set_result(ready)
            await _first(
                standing.over.wait(),
                kernel.until(lambda: not sleeps()),
                self._parts.backend.exited(ready.handle),
            )
        except SandboxError as exc:
            log("no sandbox ahead", level=logging.WARNING, error=exc)
        finally:
            if not (standing.taken and ready is not None):
                if self._standing.get(kernel.row.kernel_id) is standing:
                    del self._standing[kernel.row.kernel_id]
                await self._remove(standing.row, ready)
            if not standing.made.done():
                standing.made.set_result(None)

    def _place(self, row: KernelRow) -> _Standing:
        """Note that one is being made for a kernel, in place of the oldest where there are enough."""
        sandbox_id = f"t{secrets.token_hex(8)}"
        sandbox = SandboxRow(sandbox_id, NOBODY, self._parts.paths.kernels / sandbox_id)
        self._parts.unclaimed.add(sandbox_id)
        self._parts.registry.put_sandbox(sandbox)
        made: asyncio.Future[Ready | None] = asyncio.get_running_loop().create_future()
        standing = _Standing(row.generation, sandbox, made)
        while len(self._standing) >= self._most or row.kernel_id in self._standing:
            oldest = (
                row.kernel_id if row.kernel_id in self._standing else next(iter(self._standing))
            )
            self._standing.pop(oldest).over.set()
        self._standing[row.kernel_id] = standing
        return standing

    async def _make(self, row: KernelRow, standing: _Standing) -> Ready:
        parts = self._parts
        template = await self._templates(row.template)
        local = parts.snapshots.store
        snapshot = await asyncio.to_thread(local.get, row.kernel_id, standing.generation)
        if snapshot is None:
            raise LaunchError("its snapshot is not on this disk")
        standing.image = folder_identity(str(snapshot.image))
        spec = restored_spec(row, standing.row, template, snapshot)
        await parts.backend.prepare_saved(spec, ahead=True)
        ready = await parts.backend.stand_ready(spec)
        parts.registry.put_sandbox(replace(standing.row, handle=ready.handle.to_json()))
        log("sandbox ahead", generation=standing.generation, sandbox_id=standing.row.sandbox_id)
        return ready

    async def _give_up(self, standing: _Standing) -> None:
        ready = await standing.made
        if ready is not None:
            await self._remove(standing.row, ready)

    async def _remove(self, row: SandboxRow, ready: Ready | None) -> None:
        """Leave nothing of it; what would not go away is left to the sweep."""

        async def remove() -> None:
            if ready is not None:
                await ready.aclose()
            await self._parts.free_sandbox(row.sandbox_id)

        try:
            with contextlib.suppress(SandboxError, TimeoutError):
                await run_to_end(remove(), within_s=_UNDO_S, name=f"remove {row.sandbox_id}")
        finally:
            self._parts.unclaimed.discard(row.sandbox_id)


def restored_spec(
    kernel: KernelRow, sandbox: SandboxRow, template: Template, snapshot: Snapshot
) -> SandboxSpec:
    """Give what the backend needs to restore; the rest is in the saved sandbox's shape."""
    return SandboxSpec(
        sandbox_id=sandbox.sandbox_id,
        template=template,
        argv=(),
        env={},
        cwd="/",
        workspace=None,
        key=kernel.guest_key,
        directory=sandbox.directory,
        kernel_name=kernel.kernel_name,
        start_timeout_s=WAKE_S,
        image=Image(snapshot.image, restore=True),
    )


async def _first(*waits: Coroutine[Any, Any, Any]) -> None:
    """Return when one of ``waits`` does; the others are cancelled."""
    tasks = [asyncio.ensure_future(each) for each in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
