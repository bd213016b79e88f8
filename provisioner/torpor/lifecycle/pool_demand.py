"""How many waiting clones a shape deserves, seen from its recent requests alone. Pure.

Three reasons to want clones, of which the strongest counts: the ``least`` of the template; the
deepest hole that recent requests tore (they are replayed against a refill that brings one clone
after the other), forgotten slowly; and the rate of requests, with headroom for its chance peaks.
Without a new request the answer only ever falls: this is what keeps the pool from oscillating.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, exp

ARRIVALS_KEPT = 64
"""So many of the newest requests of a shape are worth remembering."""
RATE_WINDOW_S = 600.0
"""Requests of this time make the rate (those of ``keep_s``, if that is shorter)."""
MISSED = 0.01
"""At a steady rate, so large a part of the requests may find nothing ready."""
PACE = 2.0
"""A refill takes so many times a restore: it first gives way to the start that took the clone."""
SHORTEST_REFILL_S = 0.05
TINY = 1e-6
"""What rounding may do to a number that should be whole."""


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """What a template says about its clones."""

    least: int
    """Clones kept ready even without demand."""
    most: int
    """Never more clones than this, ready and starting ones together. 0: no pool; what there is
    goes. A shape that the configuration no longer knows is given as ``NO_POOL``."""
    keep_s: float
    """A shape that nobody has asked for in so long goes down to ``least``."""


NO_POOL = PoolLimits(least=0, most=0, keep_s=0.0)


@dataclass(frozen=True, slots=True)
class Shape:
    """One kind of clone (golden and workspace) and how it fares. All times are monotonic."""

    name: str
    limits: PoolLimits
    ready: int
    starting: int
    arrivals: tuple[float, ...]
    """When this shape was asked for, served warm or not: oldest first, newest ``ARRIVALS_KEPT``."""
    clone_bytes: int
    """Memory of one waiting clone."""
    restore_s: float
    """How long one restore takes here (a moving estimate)."""
    failures: int = 0
    """Restores that failed in a row. A new golden starts at 0."""
    failed_at: float = 0.0
    """When the last of them failed."""

    @property
    def alive(self) -> int:
        """Clones that are ready or will be soon."""
        return self.ready + self.starting


def recent_arrivals(shape: Shape, now: float) -> tuple[float, ...]:
    """Give the requests that still count: those of the last ``keep_s``."""
    if shape.limits.keep_s <= 0:
        return ()
    return shape.arrivals[bisect_right(shape.arrivals, now - shape.limits.keep_s) :]


def wanted_clones(shape: Shape, now: float) -> int:
    """Give how many clones of this shape should be alive; from 0 to ``most``.

    One request is worth one clone for ``keep_s``. Never rises while no request comes.
    """
    limits = shape.limits
    recent = recent_arrivals(shape, now)
    if not recent or limits.most <= 0:
        return max(0, min(limits.least, limits.most))
    refill_s = max(SHORTEST_REFILL_S, shape.restore_s * PACE)
    deepest = _deepest_hole(recent, refill_s, limits.keep_s, now)
    steady = _steady(recent, refill_s, min(RATE_WINDOW_S, limits.keep_s), now, limits.most)
    return min(limits.most, max(limits.least, deepest, steady))


def _deepest_hole(recent: Sequence[float], refill_s: float, keep_s: float, now: float) -> int:
    """Give how many clones would have served all of these requests, had one refilled at a time.

    A hole counts in full for half of ``keep_s``, then less and less; to the end it counts as 1.
    """
    deepest, work_s, before = 1, 0.0, recent[0]
    for arrival in recent:
        gap_s, before = arrival - before, arrival
        work_s = refill_s + (work_s - gap_s if work_s > gap_s else 0.0)
        if work_s > deepest * refill_s:
            hole = ceil(work_s / refill_s - TINY)
            faded = hole * min(1.0, 2.0 - 2.0 * (now - arrival) / keep_s)
            deepest = max(deepest, ceil(faded - TINY))
    return deepest


def _steady(
    recent: Sequence[float], refill_s: float, window_s: float, now: float, most: int
) -> int:
    """Give how many clones a Poisson stream of this rate needs, and never more than it had requests.

    The smallest number that, but for ``MISSED`` of the time, exceeds the requests of one refill.
    """
    requests = len(recent) - bisect_right(recent, now - window_s)
    if requests >= ARRIVALS_KEPT:  # older ones were forgotten, not absent
        window_s = max(refill_s, min(window_s, now - recent[-requests]))
    mean = max(0, requests - 1) / window_s * refill_s
    clones, chance = 1, exp(-mean)
    reached = chance
    while 1.0 - reached > MISSED and clones < min(most, requests):
        chance *= mean / clones
        reached += chance
        clones += 1
    return clones


def demand_text(shape: Shape, now: float) -> str:
    """Give the part of a sentence that says what the wanted number comes from."""
    if shape.limits.most <= 0:
        return "it has no pool"
    requests = len(recent_arrivals(shape, now))
    period = f"in the last {_period_text(shape.limits.keep_s)}"
    if requests == 0:
        return f"no request {period}"
    more = " or more" if requests >= ARRIVALS_KEPT else ""
    return f"{requests} {'request' if requests == 1 else 'requests'}{more} {period}"


def _period_text(seconds: float) -> str:
    for unit_s, unit in ((3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit_s and seconds % unit_s == 0:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{seconds:g} s"
