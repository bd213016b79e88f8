"""Every rule of the pool by example, then what must hold for any pool at all."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torpor.lifecycle.pool import (
    LONGEST_BACKOFF_S,
    LOOK_S,
    PATIENCE_S,
    SOONEST_LOOK_S,
    WATCH_S,
    Machine,
    PoolLimits,
    Shape,
    backoff_s,
    decide,
    settle_s,
    wanted_clones,
)
from torpor.lifecycle.pool_demand import ARRIVALS_KEPT, NO_POOL, demand_text

MIB = 2**20
NOW = 100_000.0
LIMITS = PoolLimits(least=0, most=4, keep_s=600.0)


def a_shape(name="python", ages=(), **fields):
    """A shape whose requests came so many seconds before ``NOW``."""
    shape = Shape(
        name=name,
        limits=LIMITS,
        ready=0,
        starting=0,
        arrivals=tuple(sorted(NOW - age for age in ages)),
        clone_bytes=100 * MIB,
        restore_s=0.5,
    )
    return replace(shape, **fields)


def a_machine(**fields):
    machine = Machine(
        available_bytes=8000 * MIB,
        reserve_bytes=1000 * MIB,
        launching=0,
        launching_since=NOW,
        at_once=2,
        busy=False,
    )
    return replace(machine, **fields)


def limits(least=0, most=4, keep_s=600.0):
    return PoolLimits(least, most, keep_s)


BURST = tuple(0.05 * n for n in range(20))  # twenty requests within a second


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (a_shape(), 0),
        (a_shape(limits=limits(least=2)), 2),
        (a_shape(limits=limits(least=9, most=4)), 4),
        (a_shape(ages=[0]), 1),
        (a_shape(ages=[-1]), 1),  # the clock was read before the request came
        (a_shape(ages=[599]), 1),
        (a_shape(ages=[600]), 0),
        (a_shape(ages=[601], limits=limits(least=1)), 1),
        (a_shape(ages=[0, 100, 200, 300]), 1),  # sparse requests: the refill is quick enough
        (a_shape(ages=[100, 100.2]), 2),  # came together
        (a_shape(ages=[100, 101.5]), 1),  # the refill would have come between them
        (a_shape(ages=[100, 101.5], restore_s=2.0), 2),  # here it would not
        (a_shape(ages=BURST), 4),
        (a_shape(ages=BURST, limits=limits(most=0)), 0),
        (a_shape(ages=BURST, limits=limits(least=3, most=0)), 0),
        (a_shape(ages=BURST, limits=NO_POOL), 0),
        (a_shape(ages=BURST, limits=limits(least=2, keep_s=0.0)), 2),
        (a_shape(ages=BURST, limits=limits(most=50)), 20),
        (a_shape(ages=[age + 299 for age in BURST], limits=limits(most=50)), 20),
        (a_shape(ages=[age + 450 for age in BURST], limits=limits(most=50)), 10),
        (a_shape(ages=[age + 540 for age in BURST], limits=limits(most=50)), 4),
        (a_shape(ages=[age + 598 for age in BURST], limits=limits(most=50)), 2),  # their rate
        (a_shape(ages=[0, 0.04], restore_s=0.0), 2),  # no time at all is not believed
        (a_shape(ages=[10, 25, 40], restore_s=2.0, limits=limits(keep_s=60.0)), 2),
        # a steady stream: spaced so that no refill is late, only the rate asks for more
        (a_shape(ages=[10 * n for n in range(60)], restore_s=0.01), 1),
        (a_shape(ages=[10 * n for n in range(60)], restore_s=0.5), 2),
        (a_shape(ages=[10 * n for n in range(60)], restore_s=4.9, limits=limits(most=9)), 5),
        # more requests than are remembered: their rate is that of the time they span
        (a_shape(ages=[2 * n for n in range(64)], restore_s=0.99, limits=limits(most=9)), 5),
        (a_shape(ages=[0] * 64, restore_s=900.0, limits=limits(most=99)), 64),
        (a_shape(ages=[0] * 64, restore_s=900.0, limits=limits(most=9)), 9),
        (a_shape(ages=[1, 4], restore_s=1.4, limits=limits(keep_s=5.0)), 2),  # never over requests
    ],
)
def test_wanted_clones(shape, expected):
    assert wanted_clones(shape, NOW) == expected


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (a_shape(), "no request in the last 10 minutes"),
        (a_shape(ages=[5]), "1 request in the last 10 minutes"),
        (a_shape(ages=[5, 6], limits=limits(keep_s=7200.0)), "2 requests in the last 2 hours"),
        (a_shape(limits=limits(keep_s=90.0)), "no request in the last 90 s"),
        (a_shape(ages=range(64)), "64 requests or more in the last 10 minutes"),
        (a_shape(limits=NO_POOL), "it has no pool"),
    ],
)
def test_the_demand_is_told(shape, expected):
    assert demand_text(shape, NOW) == expected


@pytest.mark.parametrize(
    ("failures", "expected"),
    [(-1, 0), (0, 0), (1, 1), (2, 2), (3, 4), (9, 256), (10, 300), (5000, LONGEST_BACKOFF_S)],
)
def test_backoff_doubles_up_to_five_minutes(failures, expected):
    assert backoff_s(failures) == expected


CROWD = (0.0, 0.1, 0.2, 0.3)  # worth four clones


@pytest.mark.parametrize(
    ("shape", "machine", "started", "reason"),
    [
        (a_shape(), a_machine(), 0, "0 wanted: no request in the last 10 minutes; 0 ready"),
        (
            a_shape(ages=[5]),
            a_machine(),
            1,
            "1 wanted: 1 request in the last 10 minutes; 0 ready; starts 1",
        ),
        (
            a_shape(ages=CROWD, ready=1, starting=1),
            a_machine(),
            1,
            "4 wanted: 4 requests in the last 10 minutes; 1 ready, 1 starting; starts 1; "
            "waits for other restores",
        ),
        (a_shape(ages=CROWD, starting=2), a_machine(), 0, "waits for other restores"),
        (a_shape(ages=CROWD), a_machine(at_once=9), 4, "0 ready; starts 4"),
        (a_shape(ages=CROWD), a_machine(at_once=0), 0, "waits for other restores"),
        (a_shape(ages=CROWD, starting=5), a_machine(at_once=9), 0, "5 starting"),
        # processors are busy: one after the other
        (a_shape(ages=CROWD), a_machine(busy=True), 1, "one restore at a time on a busy machine"),
        (a_shape(ages=CROWD, starting=1), a_machine(busy=True), 0, "one restore at a time"),
        # somebody waits for a kernel
        (a_shape(ages=[5]), a_machine(launching=1), 0, "waits for launches to finish"),
        (
            a_shape(ages=CROWD),
            a_machine(launching=3, launching_since=NOW - PATIENCE_S),
            1,
            "starts 1; waits for launches to finish",
        ),
        (
            a_shape(ages=CROWD, ready=1),
            a_machine(launching=3, launching_since=NOW - PATIENCE_S),
            0,
            "waits for launches to finish",
        ),
        # memory
        (
            a_shape(ages=CROWD),
            a_machine(available_bytes=1149 * MIB),
            0,
            "waits for memory",
        ),
        (a_shape(ages=CROWD), a_machine(available_bytes=1150 * MIB), 1, "waits for memory"),
        (
            a_shape(ages=CROWD, starting=1),
            a_machine(available_bytes=1249 * MIB),
            0,
            "waits for memory",
        ),
        # failures
        (
            a_shape(ages=CROWD, failures=1, failed_at=NOW - 0.5),
            a_machine(),
            0,
            "its last restore failed: next try in 1 s",
        ),
        (
            a_shape(ages=CROWD, failures=5, failed_at=NOW - 6),
            a_machine(),
            0,
            "5 restores failed: next try in 10 s",
        ),
        (
            a_shape(ages=CROWD, failures=5, failed_at=NOW - 16),
            a_machine(),
            1,
            "starts 1; 5 restores failed: one try at a time",
        ),
        # what would soon be drained again is not started
        (a_shape(ages=[600 - settle_s(LIMITS) + 1]), a_machine(), 0, "1 wanted"),
        (a_shape(ages=[600 - settle_s(LIMITS) - 1]), a_machine(), 1, "starts 1"),
    ],
)
def test_what_one_shape_starts(shape, machine, started, reason):
    decision = decide([shape], machine, NOW)
    assert decision.start == (shape.name,) * started
    assert decision.drain == {}
    assert reason in decision.reasons[shape.name]


@pytest.mark.parametrize(
    ("shape", "drained", "reason"),
    [
        (a_shape(ready=3), 3, "0 wanted: no request in the last 10 minutes; 3 ready; ends 3"),
        (a_shape(ready=3, limits=limits(least=1)), 2, "1 wanted: no request in the last 10 min"),
        (a_shape(ready=3, ages=[5], limits=NO_POOL), 3, "0 wanted: it has no pool; 3 ready; en"),
        (a_shape(ready=1, starting=3, ages=[5]), 1, "1 ready, 3 starting; ends 1"),
        (a_shape(ready=3, starting=1, ages=CROWD), 0, "3 ready, 1 starting"),
        (a_shape(ready=1, ages=[599]), 0, "1 wanted"),
    ],
)
def test_what_one_shape_drains(shape, drained, reason):
    decision = decide([shape], a_machine(), NOW)
    assert decision.start == ()
    assert decision.drain == ({shape.name: drained} if drained else {})
    assert reason in decision.reasons[shape.name]


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        # the lowest part of what it wants
        ([a_shape("a", CROWD, ready=2), a_shape("b", [99])], ("b", "a")),
        ([a_shape("a", CROWD, ready=1), a_shape("b", CROWD)], ("b", "a")),
        ([a_shape("a", CROWD), a_shape("b", CROWD)], ("a", "b")),
        # then the last asked for
        ([a_shape("a", [9]), a_shape("b", [8])], ("b", "a")),
        ([a_shape("a", limits=limits(least=1)), a_shape("b", [599 - 60])], ("b", "a")),
        # one that failed after all others
        ([a_shape("a", CROWD, failures=1), a_shape("b", CROWD, ready=1)], ("b", "b")),
        ([a_shape("a", CROWD, failures=1), a_shape("b", CROWD, ready=3)], ("b", "a")),
        # one that is held leaves its place to others
        ([a_shape("a", [1], clone_bytes=9000 * MIB), a_shape("b", [8])], ("b",)),
    ],
)
def test_the_most_urgent_shape_is_first(shapes, expected):
    assert decide(shapes, a_machine(), NOW).start == expected
    assert decide(shapes[::-1], a_machine(), NOW).start == expected


def test_beside_launches_that_never_pause_restores_come_one_at_a_time():
    machine = a_machine(launching=1, launching_since=NOW - PATIENCE_S)
    shapes = [a_shape("a", [9]), a_shape("b", [8])]
    assert decide(shapes, machine, NOW).start == ("b",)


@pytest.mark.parametrize(
    ("short_mib", "expected"),
    [
        (-1, {}),
        (0, {}),
        (1, {"idle": 1}),
        (150, {"idle": 2}),
        (201, {"idle": 2, "hot": 1}),
        (301, {"idle": 2, "hot": 2}),
        (401, {"idle": 2, "hot": 2, "kept": 1}),  # what the template promised goes last
        (9000, {"idle": 2, "hot": 2, "kept": 1}),
    ],
)
def test_when_memory_is_short_the_idlest_goes_first(short_mib, expected):
    shapes = [
        a_shape("hot", [1, 1.1], ready=2),
        a_shape("idle", [99, 99.1], ready=2),
        a_shape("kept", ready=1, limits=limits(least=1)),
        a_shape("weightless", [200], ready=1, clone_bytes=0),
    ]
    decision = decide(shapes, a_machine(available_bytes=(1000 - short_mib) * MIB), NOW)
    assert decision.drain == expected
    for name, ended in expected.items():
        assert decision.reasons[name].endswith(f"; ends {ended} as memory is short")


def test_what_goes_anyway_counts_before_anything_else_goes():
    shapes = [a_shape("unwanted", ready=2), a_shape("idle", [99], ready=1)]
    machine = a_machine(available_bytes=800 * MIB)
    assert decide(shapes, machine, NOW).drain == {"unwanted": 2}
    machine = a_machine(available_bytes=799 * MIB)
    decision = decide(shapes, machine, NOW)
    assert decision.drain == {"unwanted": 2, "idle": 1}
    assert decision.reasons["unwanted"].endswith("2 ready; ends 2")


@pytest.mark.parametrize(
    ("shapes", "machine", "expected"),
    [
        ([], a_machine(), LOOK_S),
        ([a_shape()], a_machine(), LOOK_S),
        ([a_shape(starting=1, ages=[5])], a_machine(), LOOK_S),  # its end is an event
        ([a_shape(ready=1, ages=[5])], a_machine(), WATCH_S),
        ([a_shape(ready=1, ages=[598])], a_machine(), 2.0),
        ([a_shape(ready=1, ages=[599.99])], a_machine(), SOONEST_LOOK_S),
        ([a_shape(ages=[5], failures=2, failed_at=NOW - 1.5)], a_machine(), 0.5),
        ([a_shape(ages=[5], failures=9, failed_at=NOW)], a_machine(), WATCH_S),
        ([a_shape(ages=[5])], a_machine(launching=1, launching_since=NOW - 3), PATIENCE_S - 3),
        ([a_shape(ages=[5])], a_machine(available_bytes=0), WATCH_S),
    ],
)
def test_when_to_look_again(shapes, machine, expected):
    assert decide(shapes, machine, NOW).look_again_s == pytest.approx(expected)


# -- what holds for any pool ---------------------------------------------------------------------

in_any_case = settings(deadline=None, max_examples=200)

any_limits = st.builds(
    PoolLimits,
    least=st.integers(0, 4),
    most=st.integers(0, 12),
    keep_s=st.sampled_from([0.0, 1.0, 60.0, 600.0, 7200.0]),
)
any_ages = st.lists(
    st.one_of(st.floats(-1.0, 2.0), st.floats(0.0, 700.0), st.floats(0.0, 90_000.0)),
    max_size=ARRIVALS_KEPT,
)


@st.composite
def any_shapes(draw):
    names = draw(st.lists(st.sampled_from("abcde"), max_size=4, unique=True))
    return [
        a_shape(
            name,
            draw(any_ages),
            limits=draw(any_limits),
            ready=draw(st.integers(0, 8)),
            starting=draw(st.integers(0, 3)),
            clone_bytes=draw(st.integers(0, 300)) * MIB,
            restore_s=draw(st.floats(0.0, 30.0)),
            failures=draw(st.integers(0, 12)),
            failed_at=NOW - draw(st.floats(0.0, 400.0)),
        )
        for name in names
    ]


any_machines = st.builds(
    Machine,
    available_bytes=st.integers(0, 3000).map(lambda mib: mib * MIB),
    reserve_bytes=st.integers(0, 1000).map(lambda mib: mib * MIB),
    launching=st.integers(0, 3),
    launching_since=st.floats(NOW - 10, NOW),
    at_once=st.integers(0, 4),
    busy=st.booleans(),
)


def after(shapes, machine, decision, *, restored=True):
    """The shapes and the machine when all is done that was decided."""
    freed_bytes, done = 0, []
    for shape in shapes:
        drained, started = decision.drain.get(shape.name, 0), decision.start.count(shape.name)
        freed_bytes += drained * shape.clone_bytes
        ready, starting = shape.ready - drained, shape.starting + started
        if restored:
            freed_bytes -= starting * shape.clone_bytes
            ready, starting = ready + starting, 0
        done.append(replace(shape, ready=ready, starting=starting))
    return done, replace(machine, available_bytes=machine.available_bytes + freed_bytes)


@in_any_case
@given(any_shapes(), any_machines)
def test_no_decision_breaks_a_bound(shapes, machine):
    decision = decide(shapes, machine, NOW)
    start, drain = decision.start, decision.drain
    by_name = {shape.name: shape for shape in shapes}
    assert set(start) <= set(by_name)
    assert set(drain) <= set(by_name)
    assert not set(start) & set(drain)
    assert all(0 < ended <= by_name[name].ready for name, ended in drain.items())
    assert set(decision.reasons) == set(by_name)
    assert SOONEST_LOOK_S <= decision.look_again_s <= LOOK_S
    if start:
        assert len(start) + sum(shape.starting for shape in shapes) <= machine.at_once
        taken_bytes = sum(shape.starting * shape.clone_bytes for shape in shapes)
        taken_bytes += sum(by_name[name].clone_bytes for name in start)
        assert machine.available_bytes - taken_bytes >= machine.reserve_bytes
    if machine.busy or machine.launching:
        assert len(start) <= 1
    for name in set(start):
        assert by_name[name].alive + start.count(name) <= by_name[name].limits.most


@in_any_case
@given(any_shapes(), any_machines, st.randoms())
def test_the_same_world_gives_the_same_decision(shapes, machine, random):
    decision = decide(shapes, machine, NOW)
    assert decide(shapes, machine, NOW) == decision
    random.shuffle(shapes)
    assert decide(shapes, machine, NOW) == decision


@in_any_case
@given(any_shapes(), any_machines)
def test_a_drain_is_not_followed_by_another(shapes, machine):
    decision = decide(shapes, machine, NOW)
    shapes, machine = after(shapes, machine, replace(decision, start=()), restored=False)
    assert decide(shapes, machine, NOW).drain == {}


@in_any_case
@given(any_shapes())
def test_what_memory_lacks_is_given_back_if_it_can_be(shapes):
    machine = a_machine(available_bytes=500 * MIB)
    shapes, machine = after(shapes, machine, decide(shapes, machine, NOW), restored=False)
    idle = [shape for shape in shapes if shape.clone_bytes]
    assert machine.available_bytes >= machine.reserve_bytes or not any(s.ready for s in idle)


@in_any_case
@given(any_limits, any_ages, st.floats(0.0, 30.0), st.floats(0.0, 4000.0), st.floats(0.0, 4000.0))
def test_time_alone_never_raises_what_is_wanted(pool, ages, restore_s, first_s, second_s):
    shape = a_shape(ages=ages, limits=pool, restore_s=restore_s)
    wanted = wanted_clones(shape, NOW + first_s)
    assert 0 <= wanted_clones(shape, NOW + first_s + second_s) <= wanted <= pool.most


@in_any_case
@given(any_shapes(), st.floats(0.0, 1.0))
def test_what_was_started_stays_for_a_while(shapes, part):
    """Hysteresis: without a request or a loss of memory nothing goes that has just come."""
    machine = a_machine(at_once=9)
    decision = decide(shapes, machine, NOW)
    shapes, machine = after(shapes, machine, decision)
    for shape in shapes:
        later = NOW + part * settle_s(shape.limits)
        if shape.name in decision.start:
            assert shape.name not in decide(shapes, machine, later).drain


@in_any_case
@given(any_shapes())
def test_nobody_asking_leaves_what_is_promised(shapes):
    machine = a_machine(available_bytes=90_000 * MIB)
    now = NOW + 7200 + 2  # some requests are a second later than NOW
    for _ in range(60):
        decision = decide(shapes, machine, now)
        shapes, machine = after(shapes, machine, decision)
        now += LONGEST_BACKOFF_S  # failures are over
        shapes = [replace(shape, failures=0) for shape in shapes]
    for shape in shapes:
        assert shape.alive == min(shape.limits.least, shape.limits.most)
    assert decision.start == ()
    assert decision.drain == {}
