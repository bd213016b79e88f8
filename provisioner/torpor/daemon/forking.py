"""Makes new kernels from snapshots: of another kernel as it is now, or of any that is kept.

The other one stands still no longer than a checkpoint takes. The new one has endpoints, a sandbox
and randomness of its own; what clients had asked of the other one is not asked of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime

from torpor.api import Endpoints
from torpor.bridge.client import BridgeRefused
from torpor.daemon.ipc_links import choose_ports, make_links, private_endpoints
from torpor.daemon.kernel import Kernel
from torpor.daemon.logs import about, log
from torpor.daemon.parts import Parts
from torpor.daemon.processes import Process
from torpor.daemon.records import KernelRow
from torpor.daemon.settling import Settling
from torpor.daemon.sleeper import Sleeper
from torpor.errors import Busy, ConfigError, LaunchError, SandboxError
from torpor.lifecycle import Status, Target
from torpor.snapshot.build import Snapshot
from torpor.snapshot.manifest import SnapshotManifest

_RENEW_S = 20.0
_IPYKERNEL = "ipykernel_launcher"
RENEW = """
def _torpor_renew():
    from importlib.util import module_from_spec, spec_from_file_location
    spec = spec_from_file_location('_torpor_reseed', '/opt/torpor/torpor_guest/kernel_reseed.py')
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    module.Sources().renew()
try:
    _torpor_renew()
finally:
    del _torpor_renew
"""
"""Gives the process randomness of its own; see ``kernel_reseed``."""


class Forker:
    """Forks kernels of this daemon. ``room`` refuses a kernel for which there is none."""

    def __init__(
        self,
        parts: Parts,
        settling: Settling,
        sleeper: Sleeper,
        *,
        room: Callable[[str, int | None], None],
    ) -> None:
        self._parts = parts
        self._settling = settling
        self._sleeper = sleeper
        self._room = room

    async def fork(
        self, source: Kernel, kernel_id: str, client: Endpoints, owner: Process | None
    ) -> Kernel:
        """Give a kernel of that name with the memory of ``source``. All or nothing.

        Raises:
            Busy: there is one of that name, or snapshots of one, or ``source`` is in the middle of something.
            ConfigError: its language has no way to renew randomness.
            AtCapacity, NoRoom, SnapshotUnusable, LaunchError: it could not be made.
        """
        kernel = await self._made(
            source.row, self._sleeper.snapshot_of(source), kernel_id, client, owner
        )
        kernel.started_as = "forked"
        log("forked", kernel_id=kernel_id, source=source.row.kernel_id)
        return kernel

    async def restore(
        self,
        source_id: str,
        which: int | str | None,
        kernel_id: str,
        client: Endpoints,
        owner: Process | None,
    ) -> Kernel:
        """Give a new kernel from a snapshot of ``source_id``, here or in the store. All or nothing.

        ``which``: a generation, a name, or None for the newest. The snapshot stays as it is.

        Raises as ``fork``, and as ``Stores.at_hand``.
        """
        await self._parts.stores.require_unused(kernel_id, ask=True)
        async with self._parts.stores.at_hand(source_id, which, keep=False) as snapshot:
            row = _row_of(snapshot.manifest, client)
            kernel = await self._made(row, nullcontext(snapshot), kernel_id, client, owner)
        kernel.started_as = "restored"
        log("restored", kernel_id=kernel_id, source=source_id)
        return kernel

    async def _made(
        self,
        like: KernelRow,
        taken: AbstractAsyncContextManager[Snapshot],
        kernel_id: str,
        client: Endpoints,
        owner: Process | None,
    ) -> Kernel:
        """Give a new kernel with the memory of the snapshot that ``taken`` gives."""
        if _IPYKERNEL not in like.argv:
            raise ConfigError(
                "only kernels of ipykernel can be forked or restored as new ones",
                hint="others would share their random numbers with the new one",
            )
        await self._parts.stores.require_unused(kernel_id)
        if kernel_id in self._settling.kernels:
            raise Busy(f"there is a kernel {kernel_id!r} already")
        kernel = Kernel(
            replace(
                like,
                kernel_id=kernel_id,
                status=Status.ASLEEP,
                target=Target.PRESENT,
                client=client,
                created_at=datetime.now(UTC).isoformat(),
                owner=None,
                sandbox_id=None,
                reason=None,
                generation=1,
                highest=1,
                making=True,
                paused=False,
                pinned=False,
                tier_since=time.time(),
            )
        )
        kernel.launch = asyncio.current_task()
        self._settling.kernels[kernel_id] = kernel
        made = False
        try:
            self._room(kernel_id, 0)
            self._settling.watch_owner(kernel, owner)
            async with taken as snapshot:
                with about(kernel_id):
                    async with kernel.lock:
                        await self._make(kernel, snapshot)
            made = True
        except BridgeRefused as exc:
            raise LaunchError(f"the bridge refused: {exc}") from exc
        finally:
            kernel.launch = None
            if not made:
                kernel.row = replace(kernel.row, target=Target.ABSENT)
                await self._settling.now(kernel)
            kernel.notify()
        return kernel

    async def _make(self, kernel: Kernel, snapshot: Snapshot) -> None:
        parts = self._parts
        parts.registry.put_kernel(kernel.row)  # first: what a crash leaves is found by it
        await parts.snapshots.copy(snapshot, kernel.row.kernel_id)
        kernel.row = await self._bound(kernel.row, snapshot)
        parts.registry.put_kernel(kernel.row)
        await self._sleeper.wake_locked(kernel)
        told = await parts.bridge.rpc(
            kernel.row.kernel_id,
            "run",
            {"code": RENEW, "timeout_s": _RENEW_S},
            timeout_s=_RENEW_S + 2,
        )
        if told.get("status") != "ok":
            why = told.get("evalue") or told.get("status")
            raise LaunchError(f"it could not be given randomness of its own: {why}")
        made = replace(kernel.row, making=False)
        parts.registry.put_kernel(made)
        kernel.row = made

    async def _bound(self, row: KernelRow, snapshot: Snapshot) -> KernelRow:
        parts = self._parts
        row = replace(row, guest_key=snapshot.manifest.guest_key)
        parts.registry.put_kernel(row)
        client = choose_ports(row.client) if row.client.transport == "ipc" else row.client
        answer = await parts.bridge.call(
            "open",
            kernel_id=row.kernel_id,
            client=private_endpoints(client, row.kernel_id, parts.paths.client_sockets).to_json(),
            guest_key=row.guest_key,
            resume=True,
            asleep=True,
            memory=dict(snapshot.manifest.memory),
        )
        parts.bridge.held.add(row.kernel_id)
        row = replace(row, client=client.with_ports(answer["ports"]))
        with contextlib.suppress(SandboxError):
            make_links(row.client, row.kernel_id, parts.paths.client_sockets)
        return row


def _row_of(manifest: SnapshotManifest, client: Endpoints) -> KernelRow:
    """Give what of a kernel's row a snapshot knows. Pure."""
    return KernelRow(
        kernel_id=manifest.kernel_id,
        kernel_name=manifest.kernel_name,
        template=manifest.template,
        status=Status.ASLEEP,
        target=Target.PRESENT,
        client=client,
        created_at=manifest.created_at,
        guest_key=manifest.guest_key,
        argv=manifest.argv,
    )
