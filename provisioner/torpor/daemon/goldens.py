"""The goldens of this daemon: which may be used, building one, giving one up."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from torpor.backends.base import Lineage
from torpor.daemon.freshness import Freshness
from torpor.daemon.golden_build import GoldenBuild
from torpor.daemon.logs import log
from torpor.daemon.tasks import Tasks
from torpor.errors import SandboxError
from torpor.golden.build import Golden
from torpor.golden.manifest import GoldenUnusable
from torpor.golden.store import GoldenStore

_SICK_IN_A_ROW = 3
"""A golden whose clones fail so often is built again."""
_COLLECT_S = 600.0


class Goldens:
    """Finds, builds and gives up goldens; ``on_discard(key)`` is awaited when one is used no more."""

    def __init__(self, store: GoldenStore, build: GoldenBuild) -> None:
        self.store = store
        self.known: dict[str, Golden] = {}
        """Those that were verified, by key."""
        self.counters: Counter[str] = Counter()
        """``built``, ``build_failed``, ``sick``; the pool and the launches count here, too."""
        self.on_discard: Callable[[str], Awaitable[None]] = _nothing
        self._build = build
        self._freshness = Freshness(store)
        self._tasks = Tasks()
        self._building: dict[str, asyncio.Task[Golden]] = {}
        self._given_up: set[str] = set()
        """Builds that are used no more; one that a restore still holds stays on disk for a while."""
        self._one_build = asyncio.Semaphore(1)

    def start(self) -> None:
        """Begin to keep the store within its budget."""
        self._tasks.start(self._collect(), name="collect goldens")

    async def aclose(self) -> None:
        """Give up what is being built. Twice is fine."""
        building = list(self._building.values())
        for task in building:
            task.cancel()
        if building:
            await asyncio.wait(building)
        await self._tasks.aclose()
        self._freshness.close()

    @property
    def building(self) -> list[str]:
        """The keys that are being built or wait for their turn."""
        return list(self._building)

    async def get(self, lineage: Lineage) -> Golden | None:
        """Give a golden that may be used now, or None: its files are whole and its environment is
        still the one on disk."""
        key = lineage.key
        golden = self.known.get(key) or await asyncio.to_thread(self._verified, key)
        if golden is None:
            return None
        self.known[key] = golden
        why = await self._freshness.stale(golden)
        if why is not None:
            log("golden is stale", key=key[:12], reason=why)
            await self.discard(key)
            return None
        return golden

    async def build(self, lineage: Lineage) -> Golden:
        """Give the golden, building it first if there is none; one build of a key at a time.

        If cancelled the build goes on, for whoever asks next.

        Raises:
            SandboxError, OSError: it could not be built.
        """
        found = await self.get(lineage)
        if found is not None:
            return found
        task = self._building.get(lineage.key)
        if task is None:
            task = self._building[lineage.key] = asyncio.create_task(
                self._built(lineage), name=f"build golden {lineage.key[:12]}"
            )
            task.add_done_callback(lambda done: self._ended(lineage.key, done))
        return await asyncio.shield(task)

    async def list(self) -> Sequence[Golden]:
        """Give the goldens that may be used, the last used first."""
        goldens = await asyncio.to_thread(self.store.list)
        return [each for each in goldens if each.manifest.build not in self._given_up]

    async def discard(self, key: str) -> None:
        """Use this golden no more: its clones end, its files go as soon as nobody reads them."""
        self.known.pop(key, None)
        self._freshness.forget(key)
        for each in await asyncio.to_thread(self.store.list):
            if each.manifest.key == key:
                self._given_up.add(each.manifest.build)
        await asyncio.to_thread(self.store.remove, key)
        await self.on_discard(key)

    async def require_whole(self, golden: Golden) -> None:
        """Look again whether its files are what was published; what was not touched is not read.

        Raises:
            GoldenUnusable: they are not; the caller tells ``sick``, which gives it up.
        """
        damage = await asyncio.to_thread(self.store.verify, golden)
        if damage is not None:
            raise GoldenUnusable(f"the golden is damaged: {damage}")

    async def sick(self, golden: Golden, why: str, *, in_a_row: int) -> None:
        """A clone could not be restored, for the ``in_a_row``-th time."""
        key = golden.manifest.key
        self.counters["sick"] += 1
        log("clone is sick", level=logging.WARNING, key=key[:12], reason=why)
        damage = await asyncio.to_thread(self.store.verify, golden)
        if damage is not None or in_a_row >= _SICK_IN_A_ROW:
            log("golden is given up", level=logging.WARNING, key=key[:12], reason=damage or why)
            await asyncio.to_thread(self.store.failed, key, damage or why, time.time())
            await self.discard(key)

    def _ended(self, key: str, task: asyncio.Task[Golden]) -> None:
        self._building.pop(key, None)
        if not task.cancelled():
            task.exception()  # whoever waited has it; nobody may have

    async def _built(self, lineage: Lineage) -> Golden:
        key = lineage.key
        async with self._one_build:
            try:
                golden = await self._build.build(lineage)
            except (SandboxError, OSError) as exc:
                self.counters["build_failed"] += 1
                log("golden not built", level=logging.WARNING, key=key[:12], error=exc)
                await asyncio.to_thread(self.store.failed, key, str(exc), time.time())
                raise
            await asyncio.to_thread(self.store.succeeded, key)
            self.counters["built"] += 1
            self.known[key] = golden
            return golden

    def _verified(self, key: str) -> Golden | None:
        golden = self.store.find(key)
        if golden is None:
            return None
        if golden.manifest.build in self._given_up:
            self.store.remove(key)
            return None
        damage = self.store.verify(golden)
        if damage is None:
            return golden
        log("golden is damaged", level=logging.WARNING, key=key[:12], reason=damage)
        self.store.remove(key)
        return None

    async def _collect(self) -> None:
        while True:
            try:
                await self._collect_once()
            except (SandboxError, OSError) as exc:
                log("goldens not collected", level=logging.WARNING, reason=exc)
            await asyncio.sleep(_COLLECT_S)

    async def _collect_once(self) -> None:
        listed = await asyncio.to_thread(self.store.list)
        for key in {x.manifest.key for x in listed if x.manifest.build in self._given_up}:
            await asyncio.to_thread(self.store.remove, key)
        for removed in await asyncio.to_thread(self.store.collect):
            log("golden removed", what=str(removed))


async def _nothing(_key: str) -> None:
    return None


def golden_json(golden: Golden) -> dict[str, Any]:
    """Give what ``torpor golden list`` shows; nothing secret."""
    manifest = golden.manifest
    return {
        "key": manifest.key,
        "build": manifest.build,
        "template": manifest.template,
        "kernel_name": manifest.kernel_name,
        "argv": list(manifest.argv),
        "created_at": manifest.created_at,
        "build_seconds": manifest.build_seconds,
        "runsc_build": manifest.runsc_build,
        "size_bytes": golden.size_bytes,
        "last_used": golden.last_used,
        "warm_up": list(manifest.warm_up),
        "warm_up_failed": dict(manifest.warm_up_failed),
    }
