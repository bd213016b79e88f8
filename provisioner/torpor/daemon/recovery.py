"""Take over from a former daemon, however it ended."""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import replace
from pathlib import Path

from torpor.backends.base import Handle
from torpor.bridge.client import BridgeRefused
from torpor.daemon.guest_state import after_status
from torpor.daemon.kernel import Kernel
from torpor.daemon.logs import about, log
from torpor.daemon.parts import Parts
from torpor.daemon.records import SandboxRow
from torpor.daemon.settling import Settling
from torpor.daemon.supervisor import Supervisor
from torpor.errors import BackendUnavailable, ConfigError, SandboxError, SandboxGone
from torpor.lifecycle import Status, Target


async def recover(parts: Parts, settling: Settling, supervisor: Supervisor) -> None:
    """Adopt what lives, then settle every kernel in the background.

    Afterwards everything that the registry, the bridge or the folder of sandboxes knows is either
    held by a kernel here or on its way to be destroyed.
    """
    registry = parts.registry
    for row in list(registry.kernels.values()):
        if row.making:
            row = replace(row, target=Target.ABSENT)
            log("fork that was not complete", kernel_id=row.kernel_id)
        kernel = settling.kernels[row.kernel_id] = Kernel(row)
        sandbox = registry.sandboxes.get(row.sandbox_id or "")
        if sandbox is not None and sandbox.handle is not None:
            await _adopt(parts, settling, kernel, sandbox)
    folders = await _children(parts.paths.kernels)
    if settling.kernels or folders or parts.paths.bridge_socket.exists():
        log("recovering", kernels=len(settling.kernels))
        await _meet_bridge(parts, settling, supervisor)
    await parts.snapshots.reconcile(frozenset(settling.kernels))
    for kernel in list(settling.kernels.values()):
        await _look_for_snapshot(parts, kernel)
    for name in folders - set(registry.sandboxes):
        await _destroy_stray(parts, name)
    for kernel in list(settling.kernels.values()):  # last: kernels of the dead are removed at once
        settling.watch_owner(kernel, kernel.row.owner)
    settling.all()


async def _look_for_snapshot(parts: Parts, kernel: Kernel) -> None:
    """Say of a kernel whose snapshot has gone meanwhile that it cannot be woken, before anybody asks."""
    row = kernel.row
    try:
        if row.status is not Status.ASLEEP or await parts.stores.settings() is not None:
            return  # a store may have it
    except ConfigError:
        return
    why = await parts.snapshots.missing(row)
    if why is not None and kernel.row is row:
        with about(row.kernel_id):
            log("no snapshot", level=logging.ERROR, reason=why)
        kernel.row = replace(row, reason=why)


async def _adopt(parts: Parts, settling: Settling, kernel: Kernel, sandbox: SandboxRow) -> None:
    try:
        handle = Handle.from_json(sandbox.handle or {})
    except SandboxGone as exc:
        log("sandbox cannot be adopted", level=logging.ERROR, error=exc)
        return
    if await parts.backend.alive(handle):
        settling.watch_sandbox(kernel, sandbox, handle)
    else:
        kernel.sandbox_end = "it ended while no daemon ran"


async def _meet_bridge(parts: Parts, settling: Settling, supervisor: Supervisor) -> None:
    """Learn what the bridge holds; it gives up what is nobody's (the registry was lost)."""
    bridge, kernels = parts.bridge, settling.kernels
    try:
        await bridge.start()
        for kernel_id in bridge.held - set(kernels):
            await bridge.call("close", kernel_id=kernel_id)
            bridge.held.discard(kernel_id)
        for kernel_id in bridge.held & set(kernels):
            with about(kernel_id):
                await _take_up(parts, kernels[kernel_id], supervisor)
    except (BackendUnavailable, BridgeRefused) as exc:
        log("bridge not adopted", level=logging.ERROR, error=exc)


async def _take_up(parts: Parts, kernel: Kernel, supervisor: Supervisor) -> None:
    try:
        status = await parts.bridge.call("status", kernel_id=kernel.row.kernel_id)
        kernel.guest = after_status(kernel.guest, status)
        await supervisor.resume_sleep(kernel, status)
    except (SandboxError, BridgeRefused) as exc:  # the others are taken up all the same
        log("kernel not taken up", level=logging.ERROR, error=exc)


async def _destroy_stray(parts: Parts, name: str) -> None:
    """Destroy a sandbox of which no row knows: the registry was lost."""
    try:
        await parts.backend.destroy(name, parts.paths.kernels / name)
        log("stray sandbox destroyed", sandbox_id=name)
    except SandboxError as exc:
        log("stray sandbox stays", level=logging.ERROR, error=exc, sandbox_id=name)


async def _children(folder: Path) -> set[str]:
    try:
        return set(await asyncio.to_thread(os.listdir, folder))
    except FileNotFoundError:
        return set()
