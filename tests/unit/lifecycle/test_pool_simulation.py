"""Days of a pool in a second: requests come, restores take their time, and ``decide`` says what.

A discrete-event world around the pure decision. It charges the pool for everything: clones count
from the moment their restore begins, kernels eat memory, launches hold refilling back.
"""

import heapq
from collections import deque
from dataclasses import dataclass, field
from itertools import count, pairwise
from random import Random

import pytest
from torpor.lifecycle.pool import (
    LONGEST_BACKOFF_S,
    SOONEST_LOOK_S,
    Machine,
    PoolLimits,
    Shape,
    decide,
    settle_s,
)
from torpor.lifecycle.pool_demand import ARRIVALS_KEPT

MIB = 2**20
MINUTE_S, HOUR_S, DAY_S = 60.0, 3600.0, 86_400.0
WARM_S, COLD_S = 0.2, 2.5
"""How long a user waits for a start with a ready clone, and without."""


@dataclass(slots=True)
class Pool:
    """One shape in the simulated world, and what it cost."""

    name: str
    limits: PoolLimits
    restore_s: float = 0.5
    clone_bytes: int = 100 * MIB
    broken: bool = False
    ready: int = 0
    starting: int = 0
    failures: int = 0
    failed_at: float = 0.0
    arrivals: deque[float] = field(default_factory=lambda: deque(maxlen=ARRIVALS_KEPT))
    served: list[tuple[float, bool]] = field(default_factory=list)
    restores: int = 0
    wasted: int = 0
    clone_s: float = 0.0
    most_alive: int = 0
    last_start: float = 0.0

    def shape(self):
        return Shape(
            self.name,
            self.limits,
            self.ready,
            self.starting,
            tuple(self.arrivals),
            self.clone_bytes,
            self.restore_s,
            self.failures,
            self.failed_at,
        )

    def hit_rate(self, since=0.0):
        warm = [hit for at, hit in self.served if at >= since]
        return sum(warm) / len(warm)


class World:
    """Runs the pools on requests ``(time, name)``; looks at every bound after every decision."""

    def __init__(self, pools, *, memory_mib=64_000, kernel_mib=150, kernel_life_s=600.0, at_once=2):
        self.pools = {pool.name: pool for pool in pools}
        self.free_bytes, self.reserve_bytes = memory_mib * MIB, 1000 * MIB
        self.kernel_bytes, self.kernel_life_s = kernel_mib * MIB, kernel_life_s
        self.at_once = at_once
        self.launching, self.launching_since = 0, 0.0
        self.now, self.look_at = 0.0, 0.0
        self.decisions, self.shortages = 0, 0
        self.events, self.order = [], count()
        self.watched = []  # (time, clones alive) at the times that were asked for

    def at(self, time, act, *subject):
        heapq.heappush(self.events, (time, next(self.order), act, subject))

    def run(self, requests, until, watch=()):
        for time, name in requests:
            self.at(time, self.request, self.pools[name])
        for time in watch:
            self.at(time, self.watch)
        while True:
            time = min(self.look_at, self.events[0][0] if self.events else until)
            if time >= until:
                return self
            for pool in self.pools.values():
                pool.clone_s += (pool.ready + pool.starting) * (time - self.now)
            self.now = time
            told = time >= self.look_at
            while self.events and self.events[0][0] <= time:
                _, _, act, subject = heapq.heappop(self.events)
                act(*subject)
                told = told or act != self.ended  # the pool sees memory only when it looks
            if told:
                self.decide()

    def watch(self):
        self.watched.append(sum(pool.ready + pool.starting for pool in self.pools.values()))

    def request(self, pool):
        hit = pool.ready > 0
        pool.arrivals.append(self.now)
        pool.served.append((self.now, hit))
        if hit:
            pool.ready -= 1
            self.free_bytes += pool.clone_bytes
        self.free_bytes -= self.kernel_bytes
        if not self.launching:
            self.launching_since = self.now
        self.launching += 1
        self.at(self.now + (WARM_S if hit else COLD_S), self.launched)
        self.at(self.now + self.kernel_life_s, self.ended)

    def launched(self):
        self.launching -= 1

    def ended(self):
        self.free_bytes += self.kernel_bytes

    def restored(self, pool):
        pool.starting -= 1
        if pool.broken:
            pool.failures, pool.failed_at = pool.failures + 1, self.now
        else:
            pool.ready, pool.failures = pool.ready + 1, 0
            self.free_bytes -= pool.clone_bytes

    def decide(self):
        machine = Machine(
            self.free_bytes,
            self.reserve_bytes,
            self.launching,
            self.launching_since,
            self.at_once,
            busy=False,
        )
        shapes = [pool.shape() for pool in self.pools.values()]
        decision = decide(shapes, machine, self.now)
        self.decisions += 1
        short = self.free_bytes < self.reserve_bytes
        self.shortages += short
        for name, ended in decision.drain.items():
            pool = self.pools[name]
            if not short:  # nothing goes that has just come, unless a request told something new
                settled = self.now - pool.last_start >= settle_s(pool.limits) - 1e-6
                assert settled or pool.arrivals[-1] > pool.last_start
            pool.ready -= ended
            pool.wasted += ended
            self.free_bytes += ended * pool.clone_bytes
        for name in decision.start:
            pool = self.pools[name]
            pool.starting += 1
            pool.restores += 1
            pool.last_start = self.now
            self.at(self.now + pool.restore_s, self.restored, pool)
        self.look_at = self.now + decision.look_again_s
        self.check()

    def check(self):
        pools = self.pools.values()
        assert sum(pool.starting for pool in pools) <= self.at_once
        for pool in pools:
            assert 0 <= pool.ready + pool.starting <= pool.limits.most
            pool.most_alive = max(pool.most_alive, pool.ready + pool.starting)
        assert self.free_bytes >= self.reserve_bytes or not any(pool.ready for pool in pools)


def poisson(random, rate_per_s, start, end):
    time = start
    while (time := time + random.expovariate(rate_per_s)) < end:
        yield time


def test_one_person_at_work():
    """Twenty kernels a day in three sessions: all warm but the first of each, nothing at night."""
    random, days = Random(1), 10
    pool = Pool("python", PoolLimits(least=0, most=3, keep_s=30 * MINUTE_S))
    times, nights = [], []
    for day in range(days):
        for hour, kernels in ((9, 8), (13, 7), (16, 5)):
            time = day * DAY_S + hour * HOUR_S
            for _ in range(kernels):
                time += random.uniform(5.0, 15 * MINUTE_S)
                times.append(time)
        nights += [day * DAY_S + hour * HOUR_S for hour in (0, 3, 6, 20, 23)]
    world = World([pool]).run([(time, "python") for time in times], days * DAY_S, nights)

    first = {times[0]} | {late for early, late in pairwise(times) if late - early > 30 * MINUTE_S}
    later = [hit for at, hit in pool.served if at not in first]
    assert len(later) == 17 * days
    assert sum(later) / len(later) >= 0.99
    assert not any(hit for at, hit in pool.served if at in first)
    assert world.watched == [0] * len(nights)
    assert pool.clone_s / HOUR_S / days <= 4.0
    assert pool.wasted <= 3 * days  # the last clone of each session


def test_a_steady_stream():
    """One request in ten seconds all day: 99 % warm from two clones."""
    pool = Pool("python", PoolLimits(least=0, most=8, keep_s=10 * MINUTE_S))
    times = poisson(Random(2), 0.1, 0.0, DAY_S)
    World([pool]).run([(time, "python") for time in times], DAY_S)
    assert len(pool.served) > 8000
    assert pool.hit_rate() >= 0.995
    assert pool.clone_s / DAY_S <= 2.5
    assert pool.wasted <= 0.001 * pool.restores


@pytest.mark.parametrize(("most", "hit_rate"), [(20, 0.95), (10, 0.5), (1, 0.05)])
def test_bursts(most, hit_rate):
    """Twenty requests within a second every five minutes: remembered, within ``most``."""
    random = Random(3)
    pool = Pool("python", PoolLimits(least=0, most=most, keep_s=10 * MINUTE_S))
    times = [300.0 * burst + random.uniform(0.0, 1.0) for burst in range(1, 73) for _ in range(20)]
    world = World([pool]).run(
        [(time, "python") for time in times], 8 * HOUR_S, [7 * HOUR_S, 7.9 * HOUR_S]
    )
    first = [hit for at, hit in pool.served if at < 310]
    assert sum(first) <= 1
    assert pool.hit_rate(since=590) >= hit_rate
    assert pool.most_alive == most
    assert pool.wasted <= most  # only when it was all over
    assert world.watched == [0, 0]


def test_one_burst_is_forgotten():
    pool = Pool("python", PoolLimits(least=0, most=20, keep_s=10 * MINUTE_S))
    world = World([pool]).run(
        [(0.05 * n, "python") for n in range(20)], HOUR_S, [200.0, 450.0, 560.0, 601.0]
    )
    full, half, little, none = world.watched
    assert (full, none) == (20, 0)
    assert 8 <= half <= 12
    assert 1 <= little <= 4
    assert pool.restores == 20  # none came back in between
    assert pool.clone_s <= 0.8 * 20 * 600


def test_three_templates_on_a_small_machine():
    """Kernels come and go and leave room for few clones: the reserve is never theirs."""
    random = Random(4)
    sizes = {"small": 80, "middle": 200, "large": 500}
    pools = [
        Pool(name, PoolLimits(least=0, most=6, keep_s=10 * MINUTE_S), clone_bytes=mib * MIB)
        for name, mib in sizes.items()
    ]
    requests = [
        (time, name)
        for name in sizes
        for time in poisson(random, 1 / 60, 0.0, 12 * HOUR_S)
        if int(time / HOUR_S) % 4 != 3
    ]
    world = World(pools, memory_mib=8000, kernel_mib=180, kernel_life_s=11 * MINUTE_S)
    world.run(requests, 13 * HOUR_S)
    assert world.shortages > 500  # memory was short, and `check` held throughout
    hits = {pool.name: pool.hit_rate() for pool in pools}
    assert hits["small"] >= 0.85
    assert hits["middle"] >= 0.75
    assert hits["large"] >= 0.5
    assert sum(pool.wasted for pool in pools) <= 0.15 * sum(pool.restores for pool in pools)


def test_a_golden_that_never_restores():
    """A day of demand: nine quick tries, then one in five minutes; others do not suffer."""
    broken = Pool("broken", PoolLimits(least=2, most=4, keep_s=10 * MINUTE_S), broken=True)
    sound = Pool("sound", PoolLimits(least=0, most=4, keep_s=10 * MINUTE_S))
    random = Random(5)
    requests = [
        (time, name) for name in ("broken", "sound") for time in poisson(random, 1 / 60, 0.0, DAY_S)
    ]
    World([broken, sound], at_once=1).run(requests, DAY_S)
    assert DAY_S / LONGEST_BACKOFF_S * 0.9 <= broken.restores <= 9 + DAY_S / LONGEST_BACKOFF_S
    assert broken.hit_rate() == 0.0
    assert sound.hit_rate() >= 0.98


@pytest.mark.parametrize("most", [1, 4, 12])
def test_everybody_has_left(most):
    """What waits after the last request costs less than ``most`` clones for ``keep_s``."""
    random = Random(6)
    limits = PoolLimits(least=0, most=most, keep_s=20 * MINUTE_S)
    pool = Pool("python", limits, restore_s=2.0)
    times = list(poisson(random, 1.0, 0.0, 120.0))
    world = World([pool])
    world.run([(time, "python") for time in times], times[-1] + 0.001)
    spent_s, decided = pool.clone_s, world.decisions
    world.run([], times[-1] + DAY_S)
    assert pool.ready == pool.starting == 0
    assert 0 < pool.clone_s - spent_s <= most * (limits.keep_s + SOONEST_LOOK_S)
    assert pool.most_alive == most
    assert world.decisions - decided <= limits.keep_s / 4 + DAY_S / 50  # and it sleeps well


def test_what_is_promised_waits_for_ever():
    pool = Pool("python", PoolLimits(least=2, most=4, keep_s=10 * MINUTE_S))
    World([pool]).run([(HOUR_S, "python")], DAY_S)
    assert pool.hit_rate() == 1.0
    assert (pool.ready, pool.restores, pool.wasted) == (2, 3, 0)
