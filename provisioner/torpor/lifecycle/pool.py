"""The one place that says what the pool of waiting clones does now. Pure: no clock, no I/O.

The caller looks at the world, calls ``decide``, starts and drains what it says, and calls again
after ``look_again_s``, or at once when a request came, a restore ended, or a launch ended.

It comes to rest: clones are started up to what will still be wanted a while from now
(``settle_s``), and drained only above what is wanted now; the wanted number never rises by itself.
So what was started is not drained within that while, unless memory runs short.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from torpor.lifecycle.pool_demand import (
    TINY,
    PoolLimits,
    Shape,
    demand_text,
    wanted_clones,
)

SETTLE_S = 60.0
PATIENCE_S = 5.0
"""So long refilling waits for launches. Then a shape with no clone at all gets one: when starts
never pause, it is the lack of clones that makes them slow, and only a clone ends that."""
LONGEST_BACKOFF_S = 300.0
WATCH_S = 5.0
"""How often memory and load are looked at while clones wait or are missing; no event tells them."""
LOOK_S = 60.0
SOONEST_LOOK_S = 0.1


@dataclass(frozen=True, slots=True)
class Machine:
    """What all shapes share."""

    available_bytes: int
    """MemAvailable."""
    reserve_bytes: int
    """Never to be eaten by waiting clones."""
    launching: int
    """Starts that a user waits for right now: refilling gives way to them."""
    launching_since: float
    """Since when there was always one of them (monotonic); of no meaning when there is none."""
    at_once: int
    """Restores of the pool at one time."""
    busy: bool
    """Running kernels use all processors: one restore at a time."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do now."""

    start: tuple[str, ...]
    """Shapes to start one clone each of, most urgent first; a name may be there twice."""
    drain: Mapping[str, int]
    """How many ready clones of a shape to end; shapes with none are left out."""
    look_again_s: float
    """Decide again after so long, though nothing may have happened."""
    reasons: Mapping[str, str]
    """For each shape a sentence for people."""


@dataclass(frozen=True, slots=True)
class _Want:
    """A shape with how many clones to have: drain above ``now``, start up to ``soon``."""

    shape: Shape
    now: int
    soon: int

    def urgency(self, given: int) -> tuple[bool, float, float, str]:
        """Sorts the most urgent first: healthy, lowest part of what it wants, last asked for."""
        shape = self.shape
        return (shape.failures > 0, (shape.alive + given) / self.soon, -_newest(shape), shape.name)


def settle_s(limits: PoolLimits) -> float:
    """Give how long a clone is sure to stay once it was started, memory permitting."""
    return min(SETTLE_S, limits.keep_s / 10)


def backoff_s(failures: int) -> float:
    """Give how long to leave a shape alone after so many failed restores in a row."""
    return 0.0 if failures <= 0 else min(LONGEST_BACKOFF_S, 2.0 ** min(failures - 1, 16))


def decide(shapes: Sequence[Shape], machine: Machine, now: float) -> Decision:
    """Give what the pool does now. Names are unique; the order of the shapes has no meaning."""
    wants = [
        _Want(shape, wanted_clones(shape, now), wanted_clones(shape, now + settle_s(shape.limits)))
        for shape in shapes
    ]
    surplus = {want.shape.name: _surplus(want) for want in wants}
    pressed = _pressed(shapes, surplus, machine)
    start, held = _fill(wants, machine, now)
    given = Counter(start)
    reasons: dict[str, str] = {}
    for want in wants:
        name = want.shape.name
        acts = [
            f"starts {given[name]}" if given[name] else "",
            held.get(name, ""),
            f"ends {surplus[name]}" if surplus[name] else "",
            f"ends {pressed[name]} as memory is short" if pressed[name] else "",
        ]
        reasons[name] = "; ".join([_state_text(want, now), *filter(None, acts)])
    return Decision(
        start=start,
        drain={name: n for name in surplus if (n := surplus[name] + pressed[name])},
        look_again_s=_look_again_s(wants, machine, now),
        reasons=reasons,
    )


def _newest(shape: Shape) -> float:
    return shape.arrivals[-1] if shape.arrivals else float("-inf")


def _surplus(want: _Want) -> int:
    return max(0, min(want.shape.ready, want.shape.alive - want.now))


def _pressed(shapes: Sequence[Shape], surplus: Mapping[str, int], machine: Machine) -> Counter[str]:
    """Give what else has to go to leave the reserve free: idlest first, what is promised last."""
    short_bytes = machine.reserve_bytes - machine.available_bytes
    short_bytes -= sum(surplus[shape.name] * shape.clone_bytes for shape in shapes)
    idlest = sorted(shapes, key=lambda shape: (_newest(shape), shape.name))
    gone: Counter[str] = Counter()
    for promised in (False, True):
        for shape in idlest:
            left = shape.ready - surplus[shape.name] - gone[shape.name]
            spare = left if promised else left - shape.limits.least
            if short_bytes > 0 and spare > 0 and shape.clone_bytes > 0:
                ended = min(spare, ceil(short_bytes / shape.clone_bytes))
                gone[shape.name] += ended
                short_bytes -= ended * shape.clone_bytes
    return gone


def _fill(
    wants: Sequence[_Want], machine: Machine, now: float
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Give what to start, most urgent first, and why shapes that lack clones get no more."""
    running = sum(want.shape.starting for want in wants)
    free_bytes = machine.available_bytes - machine.reserve_bytes
    free_bytes -= sum(want.shape.starting * want.shape.clone_bytes for want in wants)
    given: Counter[str] = Counter()
    start: list[str] = []
    held: dict[str, str] = {}
    while lacking := [
        want
        for want in wants
        if want.shape.name not in held and want.shape.alive + given[want.shape.name] < want.soon
    ]:
        shape = min(lacking, key=lambda want: want.urgency(given[want.shape.name])).shape
        ours = shape.starting + given[shape.name]
        why = (
            _held_by_failures(shape, ours, now)
            or _held_by_launches(machine, shape.ready + ours, now)
            or _held_by_restores(machine, running + len(start))
            or _held_by_memory(shape, free_bytes)
        )
        if why:
            held[shape.name] = why
            continue
        start.append(shape.name)
        given[shape.name] += 1
        free_bytes -= shape.clone_bytes
    return tuple(start), held


def _held_by_failures(shape: Shape, ours: int, now: float) -> str:
    """A shape that failed is tried again later, and with one restore only."""
    if not shape.failures:
        return ""
    wait_s = shape.failed_at + backoff_s(shape.failures) - now
    failed = (
        "its last restore failed" if shape.failures == 1 else f"{shape.failures} restores failed"
    )
    if wait_s > 0:
        return f"{failed}: next try in {ceil(wait_s)} s"
    return f"{failed}: one try at a time" if ours else ""


def _held_by_launches(machine: Machine, alive: int, now: float) -> str:
    if not machine.launching or (not alive and now - machine.launching_since >= PATIENCE_S):
        return ""
    return "waits for launches to finish"


def _held_by_restores(machine: Machine, running: int) -> str:
    """After patience ran out, too, restores beside launches come one at a time."""
    if running and (machine.busy or machine.launching):
        return "one restore at a time on a busy machine"
    return "waits for other restores" if running >= machine.at_once else ""


def _held_by_memory(shape: Shape, free_bytes: int) -> str:
    """Half a clone stays free beside it: small changes of memory do not end it at once."""
    return "waits for memory" if shape.clone_bytes * 3 // 2 > free_bytes else ""


def _look_again_s(wants: Sequence[_Want], machine: Machine, now: float) -> float:
    times = [LOOK_S]
    for want in wants:
        shape = want.shape
        if shape.alive < want.soon:
            times += [WATCH_S, shape.failed_at + backoff_s(shape.failures) - now]
            if machine.launching:
                times.append(machine.launching_since + PATIENCE_S - now)
        if shape.ready:
            times += [WATCH_S, _newest(shape) + shape.limits.keep_s - now]
    return max(SOONEST_LOOK_S, min(wait_s for wait_s in times if wait_s > -TINY))


def _state_text(want: _Want, now: float) -> str:
    shape = want.shape
    starting = f", {shape.starting} starting" if shape.starting else ""
    return f"{want.now} wanted: {demand_text(shape, now)}; {shape.ready} ready{starting}"
