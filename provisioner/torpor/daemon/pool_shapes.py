"""What the pool remembers of each kind of clone: who asked for it, what waits, how it fares."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from torpor.backends.base import Lineage, SandboxSpec
from torpor.daemon.unclaimed import Clone
from torpor.golden.build import Golden
from torpor.lifecycle.pool_demand import ARRIVALS_KEPT, NO_POOL, PoolLimits, Shape
from torpor.template import MIB, Template

_SENTRY_BYTES = 24 * MIB
"""What gVisor itself needs for a clone, besides the pages of the golden."""
_FIRST_RESTORE_S = 0.3
_NEWEST = 0.3
"""Weight of the newest restore in the estimate."""


@dataclass(slots=True, eq=False)
class Kind:
    """One shape: a lineage with a workspace. ``spec`` is the last that asked for it."""

    name: str
    lineage: Lineage
    spec: SandboxSpec
    golden: Golden | None = None
    arrivals: deque[float] = field(default_factory=lambda: deque(maxlen=ARRIVALS_KEPT))
    ready: deque[Clone] = field(default_factory=deque)
    starting: int = 0
    restore_s: float = _FIRST_RESTORE_S
    failures: int = 0
    failed_at: float = 0.0
    last_failure: str = ""

    def restored(self, seconds: float) -> None:
        """Take note of a restore that succeeded."""
        self.restore_s += _NEWEST * (seconds - self.restore_s)
        self.failures, self.last_failure = 0, ""

    def failed(self, why: str, now: float) -> None:
        """Take note of one that did not."""
        self.failures, self.failed_at, self.last_failure = self.failures + 1, now, why

    @property
    def clone_bytes(self) -> int:
        return (self.golden.size_bytes if self.golden else 64 * MIB) + _SENTRY_BYTES

    def shape(self, template: Template | None) -> Shape:
        """Give what ``decide`` wants to know. Without a golden there is nothing to decide.

        ``template`` is what the configuration has under that name now: where it is another one, the
        next kernel will be of another kind, and this one has no pool any more.
        """
        promised = template == self.spec.template
        return Shape(
            name=self.name,
            limits=limits_of(self.spec.template) if promised else NO_POOL,
            ready=len(self.ready),
            starting=self.starting,
            arrivals=tuple(self.arrivals),
            clone_bytes=self.clone_bytes,
            restore_s=self.restore_s,
            failures=self.failures,
            failed_at=self.failed_at,
        )

    def to_json(self, reason: str) -> dict[str, Any]:
        """Give what ``torpor pool`` shows."""
        return {
            "shape": self.name,
            "golden": self.lineage.key,
            "template": self.spec.template.name,
            "kernel_name": self.spec.kernel_name,
            "workspace": self.lineage.workspace,
            "ready": len(self.ready),
            "starting": self.starting,
            "clone_bytes": self.clone_bytes,
            "restore_s": round(self.restore_s, 3),
            "failures": self.failures,
            "last_failure": self.last_failure or None,
            "reason": reason,
        }


def shape_name(lineage: Lineage) -> str:
    """Give the name under which equal clones wait."""
    return json.dumps([lineage.key[:16], lineage.mode, lineage.workspace, lineage.asked])


def limits_of(template: Template) -> PoolLimits:
    """Give what a template says about its clones."""
    return PoolLimits(template.pool_least, template.pool_most, template.pool_keep_s)
