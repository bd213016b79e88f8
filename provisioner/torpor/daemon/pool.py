"""The pool: clones that wait to be claimed.

``decide`` (``torpor.lifecycle.pool``) says what to do; this executes it. All state is in memory: what
a dead daemon leaves is swept by the next, and demand shows itself again with the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from torpor.backends.base import Lineage, SandboxSpec
from torpor.daemon.goldens import Goldens
from torpor.daemon.logs import log
from torpor.daemon.machine import available_bytes, processors_are_busy
from torpor.daemon.parts import Parts
from torpor.daemon.pool_shapes import Kind, shape_name
from torpor.daemon.tasks import Tasks
from torpor.daemon.unclaimed import Clone, Unclaimed, folder_identity
from torpor.errors import ConfigError, SandboxError
from torpor.golden.build import Golden
from torpor.lifecycle.pool import Machine, decide
from torpor.template import Template

Templates = Callable[[str], Template | None]

_RETRY_S = 10.0
_FIRST_CELL_S = 0.4
"""A restore beside the first cell of a kernel that was just started would slow that down."""
_QUIET_S = 0.3
"""A golden is built when nobody has waited for a start for so long."""


class Pool:
    """Owns all clones until they are taken. One per daemon."""

    def __init__(
        self,
        parts: Parts,
        goldens: Goldens,
        unclaimed: Unclaimed,
        *,
        at_once: int,
        reserve_bytes: int,
        template: Templates,
    ) -> None:
        """``template`` gives what the configuration has now under a name."""
        self.counters = goldens.counters
        self._parts = parts
        self._goldens = goldens
        self._unclaimed = unclaimed
        self._at_once = at_once
        self._reserve_bytes = reserve_bytes
        self._template = template
        self._tasks = Tasks()
        self._kinds: dict[str, Kind] = {}
        self._seeking: set[str] = set()
        self._reasons: Mapping[str, str] = {}
        self._launching = 0
        self._launching_since = 0.0
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._news = asyncio.Event()

    def start(self) -> None:
        """Begin to decide."""
        self._tasks.start(self._run(), name="pool")

    async def aclose(self) -> None:
        """End all clones and everything that is on its way. Twice is fine."""
        await self._tasks.aclose()
        for kind in self._kinds.values():
            while kind.ready:
                await self._end(kind.ready.popleft())

    # -- what launches ask for -----------------------------------------------------------------

    @asynccontextmanager
    async def launching(self) -> AsyncIterator[None]:
        """Inside it, and a moment longer, somebody waits for a start and its first cell: the pool
        gives way."""
        if not self._launching:
            self._launching_since = asyncio.get_running_loop().time()
        self._launching += 1
        self._quiet.clear()
        try:
            yield
        finally:
            asyncio.get_running_loop().call_later(_FIRST_CELL_S, self._launched)

    def _launched(self) -> None:
        self._launching -= 1
        if not self._launching:
            self._quiet.set()
        self._news.set()

    def asked(self, lineage: Lineage, spec: SandboxSpec) -> None:
        """Take note that somebody wanted such a kernel, served from the pool or not."""
        if spec.template.pool_most <= 0:
            return
        name = shape_name(lineage)
        kind = self._kinds.get(name)
        if kind is None:
            kind = self._kinds[name] = Kind(name, lineage, spec)
        kind.lineage, kind.spec = lineage, spec
        kind.arrivals.append(asyncio.get_running_loop().time())
        self._news.set()

    def knows(self, lineage: Lineage) -> bool:
        """Whether such a kernel was asked for lately."""
        return shape_name(lineage) in self._kinds

    async def take(self, lineage: Lineage) -> Clone | None:
        """Give a waiting clone, which is the caller's then; None when there is none."""
        kind = self._kinds.get(shape_name(lineage))
        while kind is not None and kind.ready:
            clone = kind.ready.popleft()
            if clone.watch is not None:
                clone.watch.cancel()
            self._news.set()
            try:
                same_folder = folder_identity(lineage.workspace) == clone.folder
                if same_folder and await self._parts.backend.alive(clone.handle):
                    return clone
            except BaseException:
                await self._end(clone)
                raise
            await self._end(clone)
        return None

    async def clone(self, golden: Golden, lineage: Lineage, spec: SandboxSpec) -> Clone:
        """Restore one for somebody who waits. Raises SandboxError; a sick one is counted."""
        try:
            await self._goldens.require_whole(golden)
            with self._goldens.store.hold(golden):
                return await self._unclaimed.restore(golden, lineage, spec, to_wait=False)
        except ConfigError:
            raise
        except (SandboxError, OSError) as exc:
            await self._goldens.sick(golden, str(exc), in_a_row=1)
            raise

    async def discarded(self, key: str) -> None:
        """A golden is used no more: end its clones."""
        for kind in self._kinds.values():
            if kind.lineage.key == key:
                kind.golden, kind.failures = None, 0
                while kind.ready:
                    await self._end(kind.ready.popleft())
        self._news.set()

    # -- the loop ------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            self._news.clear()
            wait_s = await self._step()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._news.wait()

    async def _step(self) -> float:
        loop = asyncio.get_running_loop()
        for kind in list(self._kinds.values()):
            kind.golden = self._goldens.known.get(kind.lineage.key)
            if kind.golden is None and kind.lineage.key not in self._seeking:
                self._seeking.add(kind.lineage.key)
                self._tasks.start(self._golden_for(kind), name=f"golden for {kind.name}")
        self._forget_idle(loop.time())
        kinds = {name: kind for name, kind in self._kinds.items() if kind.golden is not None}
        if not kinds:
            self._reasons = {}
            return 60.0
        machine = Machine(
            available_bytes=available_bytes(),
            reserve_bytes=self._reserve_bytes,
            launching=self._launching,
            launching_since=self._launching_since,
            at_once=self._at_once,
            busy=processors_are_busy(),
        )
        shapes = [kind.shape(self._template(kind.spec.template.name)) for kind in kinds.values()]
        decision = decide(shapes, machine, loop.time())
        self._reasons = decision.reasons
        for name in decision.start:
            kinds[name].starting += 1
            self._tasks.start(self._fill(kinds[name]), name=f"clone {name[:16]}")
        for name, count in decision.drain.items():
            for _ in range(min(count, len(kinds[name].ready))):
                self.counters["drained"] += 1
                await self._end(kinds[name].ready.popleft())
        return decision.look_again_s

    def _forget_idle(self, now: float) -> None:
        """Forget kinds that nobody has asked for and that keep nothing."""
        for name, kind in list(self._kinds.items()):
            template = kind.spec.template
            promised = self._template(template.name) == template
            idle = not kind.arrivals or now - kind.arrivals[-1] > template.pool_keep_s
            wanted = not idle or template.pool_least
            if not kind.ready and not kind.starting and not (promised and wanted):
                del self._kinds[name]

    async def _golden_for(self, kind: Kind) -> None:
        """Find the golden of a kind, or build it when nobody is waiting for anything."""
        try:
            await self._find_or_build(kind)
        except (SandboxError, OSError) as exc:
            log("golden not used", level=logging.WARNING, key=kind.lineage.key[:12], reason=exc)
            kind.last_failure = str(exc)
            await asyncio.sleep(_RETRY_S)
        finally:
            self._seeking.discard(kind.lineage.key)
            self._news.set()

    async def _find_or_build(self, kind: Kind) -> None:
        if await self._goldens.get(kind.lineage) is not None:
            return
        may, _why = await asyncio.to_thread(
            self._goldens.store.may_build, kind.lineage.key, time.time()
        )
        if not may:
            await asyncio.sleep(_RETRY_S)
            return
        while self._launching:
            await self._quiet.wait()
            await asyncio.sleep(_QUIET_S)
        with contextlib.suppress(SandboxError, OSError):
            await self._goldens.build(kind.lineage)

    async def _fill(self, kind: Kind) -> None:
        loop = asyncio.get_running_loop()
        before, golden = loop.time(), kind.golden
        try:
            if golden is None or await self._goldens.get(kind.lineage) is None:
                return
            await self._goldens.require_whole(golden)
            with self._goldens.store.hold(golden):
                clone = await self._unclaimed.restore(golden, kind.lineage, kind.spec, to_wait=True)
        except ConfigError as exc:  # its workspace is gone: nobody can want such a clone now
            log("clones are not refilled", shape=kind.name, reason=exc.message)
            kind.arrivals.clear()
            return
        except (SandboxError, OSError, TimeoutError) as exc:
            kind.failed(str(exc), loop.time())
            if golden is not None:
                await self._goldens.sick(golden, str(exc), in_a_row=kind.failures)
            return
        finally:
            kind.starting -= 1
            self._news.set()
        kind.restored(loop.time() - before)
        if kind.golden is not golden:
            await self._end(clone)
            return
        clone.watch = self._tasks.start(self._watch(kind, clone), name="watch clone")
        kind.ready.append(clone)
        await asyncio.to_thread(self._goldens.store.used, golden)

    async def _watch(self, kind: Kind, clone: Clone) -> None:
        """A clone that dies while it waits is thrown away and counted."""
        end = await self._parts.backend.exited(clone.handle)
        if clone in kind.ready:
            kind.ready.remove(clone)
            self.counters["sick"] += 1
            log("clone ended", level=logging.WARNING, shape=kind.name, reason=end.reason)
            clone.watch = None
            await self._end(clone)
            self._news.set()

    async def _end(self, clone: Clone) -> None:
        if clone.watch is not None:
            clone.watch.cancel()
        await self._unclaimed.destroy(clone.row.sandbox_id)

    def to_json(self) -> dict[str, Any]:
        """Give what ``torpor pool`` shows."""
        return {
            "shapes": [
                kind.to_json(self._reasons.get(name, "its golden is not there yet"))
                for name, kind in sorted(self._kinds.items())
            ],
            "counters": dict(self.counters),
        }
