"""How a launch gets a sandbox that has a kernel in it already: from the pool, or from a golden."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from torpor.backends.base import Lineage, NotClonable, SandboxSpec
from torpor.config import DaemonSettings
from torpor.daemon.golden_build import GoldenBuild
from torpor.daemon.goldens import Goldens
from torpor.daemon.lineages import Lineages
from torpor.daemon.logs import log
from torpor.daemon.parts import Parts
from torpor.daemon.pool import Pool, Templates
from torpor.daemon.unclaimed import Clone, Unclaimed
from torpor.errors import SandboxError
from torpor.golden.build import Golden
from torpor.golden.store import GoldenStore

OFF = "the pool is switched off"
NO_GOLDEN = "there is no golden yet"


@dataclass(frozen=True, slots=True)
class Choice:
    """What a launch may use: a clone from the pool, else a golden, else ``why`` it starts cold."""

    lineage: Lineage | None = None
    clone: Clone | None = None
    golden: Golden | None = None
    why: str = ""


class Warm:
    """The pool and its goldens, as launches see them."""

    def __init__(self, parts: Parts, goldens: Goldens, pool: Pool, unclaimed: Unclaimed) -> None:
        self.goldens = goldens
        self.pool = pool
        self.unclaimed = unclaimed
        self._lineages = Lineages(parts.backend)
        self._refused: Counter[str] = Counter()
        """Claims that failed in a row, by the key of the golden."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Decide, refill and collect until the context ends; then nothing of the pool is left."""
        self.goldens.on_discard = self.pool.discarded
        self.goldens.start()
        self.pool.start()
        try:
            yield
        finally:
            await self.pool.aclose()
            await self.goldens.aclose()

    async def choose(self, spec: SandboxSpec) -> Choice:
        """Give the best there is for ``spec``; a clone in it is the caller's.

        Raises:
            ConfigError: the request cannot work at all.
        """
        if spec.template.pool_most <= 0:
            return Choice(why="its template has no pool")
        try:
            lineage = await self._lineages.of(spec)
        except NotClonable as exc:
            return Choice(why=exc.message)
        self.pool.asked(lineage, spec)
        try:
            golden = await self.goldens.get(lineage)
        except (SandboxError, OSError) as exc:
            log("golden not used", level=logging.WARNING, key=lineage.key[:12], reason=exc)
            return Choice(why=f"its golden cannot be used: {exc}")
        if golden is None:
            self._lineages.forget()
            return Choice(lineage, why=NO_GOLDEN)
        clone = await self.pool.take(lineage)
        why = "" if clone is not None else "no clone was ready"
        return Choice(lineage, clone, golden, why)

    def count(self, how: str) -> None:
        """Take note of how a kernel was started."""
        self.goldens.counters[how] += 1

    async def give_up(self, clone: Clone, why: SandboxError) -> None:
        """A clone could not be claimed. What it was made of is freed by the launch."""
        log("claim failed", sandbox_id=clone.row.sandbox_id, error=why)
        key = clone.golden.manifest.key
        self._refused[key] += 1
        await self.goldens.sick(clone.golden, str(why), in_a_row=self._refused[key])

    def claimed(self, clone: Clone) -> None:
        """Take note that a claim succeeded."""
        self._refused.pop(clone.golden.manifest.key, None)

    def to_json(self) -> dict[str, Any]:
        """Give what ``torpor pool`` shows."""
        return {**self.pool.to_json(), "building": self.goldens.building}


def make_warm(parts: Parts, settings: DaemonSettings, template: Templates) -> Warm:
    """Give the pool of this daemon; nothing of it runs yet. ``template`` as for ``Pool``.

    Raises:
        GoldenUnusable: the folder of goldens is not ours alone.
    """
    store = GoldenStore(parts.paths.goldens, settings.goldens_max_bytes)
    unclaimed = Unclaimed(parts)
    goldens = Goldens(store, GoldenBuild(parts, store, unclaimed))
    pool = Pool(
        parts,
        goldens,
        unclaimed,
        at_once=max(1, settings.concurrent_starts // 2),
        reserve_bytes=settings.reserve_bytes,
        template=template,
    )
    return Warm(parts, goldens, pool, unclaimed)
