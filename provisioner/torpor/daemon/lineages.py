"""Lineages that were worked out lately: the next kernel of the same kind comes from the same golden."""

from __future__ import annotations

import asyncio
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable

from torpor.backends.base import Backend, Lineage, SandboxSpec

_KEPT = 64
_KEPT_S = 10.0


class Lineages:
    """Remembers what ``Backend.lineage`` said, for some seconds.

    What could make it wrong sooner makes the golden stale, and then ``forget`` is called; a workspace
    that is gone is noticed here.
    """

    def __init__(self, backend: Backend, clock: Callable[[], float] = time.monotonic) -> None:
        self._backend = backend
        self._clock = clock
        self._known: OrderedDict[Hashable, tuple[float, Lineage]] = OrderedDict()

    async def of(self, spec: SandboxSpec) -> Lineage:
        """Give the lineage of ``spec``. Raises as ``Backend.lineage``."""
        key = _key(spec)
        known = self._known.get(key)
        if known is not None and self._clock() - known[0] < _KEPT_S and _still_there(known[1]):
            self._known.move_to_end(key)
            return known[1]
        lineage = await asyncio.to_thread(self._backend.lineage, spec)
        self._known[key] = (self._clock(), lineage)
        while len(self._known) > _KEPT:
            self._known.popitem(last=False)
        return lineage

    def forget(self) -> None:
        """Work everything out anew: something on this machine has changed."""
        self._known.clear()


def _still_there(lineage: Lineage) -> bool:
    return lineage.workspace is None or os.access(lineage.workspace, os.R_OK | os.X_OK)


def _key(spec: SandboxSpec) -> Hashable:
    return (
        id(spec.template),  # configuration that changed gives other objects
        spec.template.name,
        spec.argv,
        tuple(sorted(spec.env.items())),
        spec.cwd,
        spec.workspace,
        spec.kernel_name,
        spec.start_timeout_s,
    )
