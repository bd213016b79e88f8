"""The steps from a snapshot to a kernel that has answered, and back when one of them fails."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torpor.backends.base import Handle
from torpor.bridge.client import BridgeRefused
from torpor.daemon.ahead import WAKE_S, Ahead, restored_spec
from torpor.daemon.guest_state import GuestState, Phase
from torpor.daemon.kernel import Kernel
from torpor.daemon.logs import log
from torpor.daemon.machine import available_bytes
from torpor.daemon.parts import Parts
from torpor.daemon.plan import fifos
from torpor.daemon.records import KernelRow, SandboxRow
from torpor.daemon.tasks import Tasks
from torpor.errors import AtCapacity, BackendUnavailable, LaunchError, SnapshotUnusable
from torpor.lifecycle import Status, run_to_end
from torpor.snapshot import outside
from torpor.snapshot.build import Snapshot
from torpor.template import MIB, Template

_LINK_S = 30.0
_CHECK_S = 10.0
_RELEASED_S = 30.0
_OLDER_S = 0.2
"""The cell that has woken a kernel has the processors for so long before older snapshots are freed."""
_OFFER = (
    "Run this again to try once more, or restart the kernel to start fresh; "
    "what there is of its snapshot is kept."
)
_MOST_LINES = 10
_MOST_CHARS = 300
_SPARE_BYTES = 64 * MIB
"""What a restored sandbox needs besides what is in its snapshot."""

Watch = Callable[[Kernel, SandboxRow, Handle], None]


class NotTakenUp(LaunchError):
    """A restored kernel was passed what waited for it, and did not take that up."""


class Waking:
    """Restores kernels; the caller holds the kernel's lock, and calls ``undo`` if it fails.

    Before anything is passed to a kernel it has answered the guest, or, if a cell waits, that is the
    health check: the kernel has to say that it takes it up. Then its row says that it is awake before
    the cell is passed, so that no daemon passes it twice, and asleep again if the kernel fails.
    """

    def __init__(self, parts: Parts, watch: Watch, ahead: Ahead) -> None:
        self._parts = parts
        self._watch = watch
        self._ahead = ahead
        self._tasks = Tasks()

    async def aclose(self) -> None:
        """Leave snapshots that were to be freed to the next wake. Twice is fine."""
        await self._tasks.aclose()

    async def wake(self, kernel: Kernel, snapshot: Snapshot, template: Template | None) -> None:
        """Bring a sleeping kernel back from its snapshot, which the caller holds.

        It is awake as soon as its row says so; if this raises then, its caller was cancelled.

        Raises:
            SnapshotUnusable: it is damaged, or cannot be restored here as things are now.
            AtCapacity: there is no memory for it.
            LaunchError, BackendUnavailable: it could not be restored, or does not answer.
        """
        row = kernel.row
        checking = asyncio.create_task(self._checked(snapshot, template), name="check snapshot")
        try:
            async with asyncio.timeout(WAKE_S):
                if template is None:
                    await checking
                assert template is not None  # without one it is not usable
                sandbox, asked = await self._restore(kernel, template, snapshot, checking)
        except TimeoutError as exc:
            raise LaunchError(f"restoring it took more than {WAKE_S:g} s") from exc
        except LaunchError as exc:
            if why := outside.why_not_restored(await checking):
                raise SnapshotUnusable(why) from exc
            raise
        finally:
            await _left(checking)
        kernel.row = replace(
            row,
            status=Status.LIVE,
            sandbox_id=sandbox.sandbox_id,
            reason=None,
            slept_s=max(0.0, time.time() - row.tier_since) if row.tier_since else 0.0,
            lost=tuple(each.to_json() for each in await checking),
            tier_since=time.time(),
        )
        try:
            self._parts.registry.put_kernel(kernel.row)
        except BaseException:
            kernel.row = row
            raise
        kernel.shut_down = None
        released = self._released(kernel, row, asked=asked)
        await run_to_end(released, within_s=_RELEASED_S, name="released")
        self._tasks.start(self._free_older(kernel.row), name="free older snapshots")

    async def _checked(self, snapshot: Snapshot, template: Template | None) -> list[outside.Lost]:
        """Give what it cannot keep. Raises as ``wake``: it cannot be restored here, or not now."""
        parts, manifest = self._parts, snapshot.manifest
        await parts.snapshots.require_usable(snapshot, template, await parts.backend.build())
        _require_memory(snapshot)
        return await asyncio.to_thread(outside.lost, manifest.workspace, manifest.outside)

    async def _released(self, kernel: Kernel, asleep: KernelRow, *, asked: bool) -> None:
        if asked:
            await self._taken_up(kernel, asleep)
        else:  # if that fails: the next bridge has it awake
            await self._tell("release", kernel, notice=notice(kernel.row))
        kernel.moving = ""
        kernel.notify()

    async def _free_older(self, row: KernelRow) -> None:
        await asyncio.sleep(_OLDER_S)
        try:
            await asyncio.to_thread(self._parts.registry.sync)  # which snapshot is its newest
        except OSError as exc:
            log("old snapshots stay", level=logging.WARNING, error=exc)
            return
        await self._parts.snapshots.answered(row)

    async def _taken_up(self, kernel: Kernel, asleep: KernelRow) -> None:
        release = self._parts.bridge.call(
            "release",
            within_s=_CHECK_S + 2,
            kernel_id=kernel.row.kernel_id,
            notice=notice(kernel.row),
            prove_s=_CHECK_S,
        )
        try:
            await kernel.while_it_lives(release)
        except BackendUnavailable as exc:  # the next bridge has it awake
            log("bridge not told", level=logging.WARNING, error=exc, op="release")
        except (BridgeRefused, LaunchError) as exc:
            self._parts.registry.put_kernel(asleep)  # if that fails it is awake, such as it is
            kernel.row = asleep
            raise NotTakenUp(f"the restored kernel does not answer: {exc}") from exc

    async def undo(self, kernel: Kernel, reason: str | None, *, released: bool) -> None:
        """Leave nothing of a failed wake but the snapshot, and tell whoever waits.

        ``reason`` None: it did not fail, its caller has left; whoever waits asks again. ``released``:
        what waited was passed to the kernel already.
        """
        parts = self._parts
        kernel.forget_sandbox()
        if reason is None:
            memory = await parts.snapshots.memory(kernel.row)
            await self._tell("sleep", kernel, memory=dict(memory))
        else:
            self._note(kernel, reason)
            kernel.moving = ""  # whoever gets the error and looks is to see that it sleeps
            kernel.notify()
            back: dict[str, Any] = {}
            if released:
                back["memory"] = dict(await parts.snapshots.memory(kernel.row))
            else:
                await self._tell("sleep", kernel)
            await self._tell("wake_failed", kernel, reason=f"{reason}\n{_OFFER}", **back)
        await parts.free_sandboxes_of(kernel.row.kernel_id)

    def _note(self, kernel: Kernel, reason: str) -> None:
        kernel.row = replace(kernel.row, reason=reason)
        try:
            self._parts.registry.put_kernel(kernel.row)
        except BackendUnavailable as exc:  # the row that is there says the same but for the reason
            log("not written", level=logging.WARNING, error=exc)

    async def _tell(self, op: str, kernel: Kernel, **more: Any) -> None:
        try:
            await self._parts.bridge.call(op, kernel_id=kernel.row.kernel_id, **more)
        except (BridgeRefused, BackendUnavailable) as exc:
            log("bridge not told", level=logging.WARNING, error=exc, op=op)

    async def _restore(
        self,
        kernel: Kernel,
        template: Template,
        snapshot: Snapshot,
        checking: asyncio.Task[list[outside.Lost]],
    ) -> tuple[SandboxRow, bool]:
        """``checking`` goes on while the sandbox is made; nothing is restored before it has ended."""
        sandbox = await self._ahead.go(kernel, snapshot, when=checking)
        if sandbox is not None:
            try:
                return await self._answered(kernel, snapshot, sandbox)
            except LaunchError as exc:  # it has stood there for long: a new one may do better
                log("sandbox ahead has failed", level=logging.WARNING, error=exc)
                kernel.forget_sandbox()
                await self._tell("sleep", kernel)
                await self._parts.free_sandboxes_of(kernel.row.kernel_id)
        sandbox = await self._start(kernel, template, snapshot, checking)
        return await self._answered(kernel, snapshot, sandbox)

    async def _answered(
        self, kernel: Kernel, snapshot: Snapshot, sandbox: SandboxRow
    ) -> tuple[SandboxRow, bool]:
        """Give the sandbox, and whether a cell waits: then it has not answered anything yet."""
        kernel.guest = GuestState(phase=Phase.READY, generation=snapshot.manifest.kernel_generation)
        self._watch(kernel, sandbox, Handle.from_json(sandbox.handle or {}))
        return sandbox, await self._answering(kernel, sandbox)

    async def _start(
        self,
        kernel: Kernel,
        template: Template,
        snapshot: Snapshot,
        checking: asyncio.Task[list[outside.Lost]],
    ) -> SandboxRow:
        parts, sandbox_id = self._parts, f"t{secrets.token_hex(8)}"
        sandbox = SandboxRow(sandbox_id, kernel.row.kernel_id, parts.paths.kernels / sandbox_id)
        parts.registry.put_sandbox(sandbox)
        spec = restored_spec(kernel.row, sandbox, template, snapshot)
        await parts.backend.prepare_saved(spec)
        handle = await parts.backend.start(spec, when=checking)
        sandbox = replace(sandbox, handle=handle.to_json())
        parts.registry.put_sandbox(sandbox)
        return sandbox

    async def _answering(self, kernel: Kernel, sandbox: SandboxRow) -> bool:
        """Give whether something waits that the restored kernel can be checked with.

        Else it has answered another question. Fails as soon as its sandbox ends.
        """
        bridge, kernel_id = self._parts.bridge, kernel.row.kernel_id

        async def ask() -> bool:
            if kernel_id not in bridge.held:
                raise BackendUnavailable("the bridge is just coming back: try again")
            woken = await bridge.call(
                "wake",
                within_s=_LINK_S + 2,
                kernel_id=kernel_id,
                timeout_s=_LINK_S,
                held=True,
                **fifos(sandbox.directory),
            )
            asked = woken.get("asked") is True
            if not asked:
                await bridge.rpc(kernel_id, "check", {}, timeout_s=_CHECK_S)
            return asked

        try:
            return await kernel.while_it_lives(ask())
        except BridgeRefused as exc:
            raise LaunchError(f"the restored kernel does not answer: {exc}") from exc


async def _left(task: asyncio.Task[Any]) -> None:
    """End a task whose outcome nobody asks for any more; one that has ended is fine."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()


def notice(row: KernelRow) -> str:
    """Give what the clients of a kernel are told after its last wake; "" when nothing was lost."""
    if not row.lost:
        return ""
    lines = outside.words(row.lost)
    more = [f"and {len(lines) - _MOST_LINES} more"] if len(lines) > _MOST_LINES else []
    head = f"This kernel was hibernated for {length(row.slept_s)}. Not all is as it was:"
    return "\n  ".join([head, *(line[:_MOST_CHARS] for line in lines[:_MOST_LINES]), *more]) + "\n"


def _require_memory(snapshot: Snapshot) -> None:
    needed, there = snapshot.manifest.size_bytes + _SPARE_BYTES, available_bytes()
    if needed > there:
        raise AtCapacity(
            f"its memory of {needed // MIB} MiB does not fit: this machine has {there // MIB} left",
            hint="close or hibernate other kernels, then ask again; the snapshot is kept",
        )


def length(seconds: float) -> str:
    """Say how long something took, roughly."""
    for unit, each in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * each:
            return f"{seconds / each:.0f} {unit}"
    return f"{seconds:.0f} seconds"
