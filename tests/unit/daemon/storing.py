"""One daemon's worth of snapshots and a store in a folder, without a daemon."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from torpor.api import CHANNELS, Endpoints
from torpor.daemon.kernel import Kernel
from torpor.daemon.records import KernelRow
from torpor.daemon.stores import Stores
from torpor.daemon.tasks import Tasks
from torpor.daemon.tiering import Tiering
from torpor.lifecycle import Status, Target
from torpor.snapshot.remote.configured import StoreSettings, parse_store
from torpor.snapshot.remote.store import RemoteStore
from torpor.snapshot.store import SnapshotStore

from tests.unit.snapshot.making import KERNEL

MIB = 1 << 20


class World:
    """One daemon's worth of it, without a daemon."""

    def __init__(self, tmp_path: Path, **more: Any) -> None:
        self.url = f"file://{tmp_path}/store"
        self.configured: StoreSettings | None = parse_store({"url": self.url} | more)
        self.local = SnapshotStore(tmp_path / "local", 100 * MIB)
        self.stores = Stores(lambda: self.configured, self.local, tmp_path / "marks.json")
        self.kernels: dict[str, Kernel] = {}
        self.tasks = Tasks()
        self.tiering = Tiering(self.stores, self.kernels, self.tasks)

    @property
    def remote(self) -> RemoteStore:
        return RemoteStore(self.url)

    def kernel(self, status: Status, generation: int, kernel_id: str = KERNEL) -> Kernel:
        kernel = self.kernels[kernel_id] = Kernel(
            KernelRow(
                kernel_id=kernel_id,
                kernel_name="python3",
                template="default",
                status=status,
                target=Target.PRESENT,
                client=Endpoints("tcp", "127.0.0.1", dict.fromkeys(CHANNELS, 0), "k"),
                created_at="2026-01-02T03:04:05+00:00",
                guest_key="g",
                generation=generation,
                tier_since=time.time(),
            )
        )
        return kernel

    def stored(self) -> list[tuple[str, int]]:
        return [(row.kernel_id, row.generation) for row in self.remote.list()]

    def here(self) -> list[tuple[str, int]]:
        return [(each.kernel_id, each.generation) for each in self.local.list()]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.tiering.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})
            await self.tasks.aclose()


async def until(reached: Callable[[], bool], within_s: float = 10.0) -> None:
    """Return once ``reached``."""
    deadline = time.monotonic() + within_s
    while not reached():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
