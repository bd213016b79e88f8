"""What every operation of the daemon works with, and how to free what was allocated."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from torpor.backends.base import Backend
from torpor.bridge.client import BridgeRefused
from torpor.daemon.bridge_keeper import BridgeKeeper
from torpor.daemon.ipc_links import remove_links
from torpor.daemon.logs import log
from torpor.daemon.records import KernelRow
from torpor.daemon.registry import Registry
from torpor.daemon.snapshots import Snapshots
from torpor.daemon.stores import Stores
from torpor.errors import SandboxError
from torpor.paths import Paths


@dataclass(frozen=True, slots=True)
class Parts:
    """The daemon's collaborators. Freeing here is idempotent: what never was is fine."""

    paths: Paths
    registry: Registry
    backend: Backend
    bridge: BridgeKeeper
    snapshots: Snapshots
    stores: Stores
    unclaimed: set[str] = field(default_factory=set)
    """Sandboxes that are no kernel's and are wanted all the same: the pool's."""

    async def free_sandbox(self, sandbox_id: str) -> None:
        """Destroy a sandbox, from whatever half-made state, then forget it.

        If destroying fails the row stays, and the next sweep tries again.
        """
        row = self.registry.sandboxes.get(sandbox_id)
        if row is not None:
            await self.backend.destroy(row.sandbox_id, row.directory)
            self.registry.drop_sandbox(sandbox_id)

    async def free_sandboxes_of(self, kernel_id: str) -> None:
        """Destroy every sandbox of a kernel; what would not go away is left to the sweep."""
        for sandbox in self.registry.sandboxes_of(kernel_id):
            try:
                await self.free_sandbox(sandbox.sandbox_id)
            except SandboxError as exc:
                log("sandbox stays", level=logging.ERROR, error=exc)

    async def free_endpoints(self, row: KernelRow) -> None:
        """Unbind a kernel's endpoints and remove its ipc paths."""
        try:
            await self.bridge.call("close", kernel_id=row.kernel_id)
        except BridgeRefused as exc:
            if exc.reason != "unknown_kernel":
                raise
        self.bridge.held.discard(row.kernel_id)
        remove_links(row.client, row.kernel_id, self.paths.client_sockets)
