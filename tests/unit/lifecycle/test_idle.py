"""Every rule for idle kernels by example, then what must hold for any kernel and policy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torpor.lifecycle.idle import (
    AGAIN_S,
    BACKGROUND_SHARE,
    LOOK_S,
    QUIET_S,
    Action,
    IdleDecision,
    IdlePolicy,
    KernelSeen,
    Tier,
    again_s,
    next_tier,
)

NOW = 1_800_000_000.0
MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0
POLICY = IdlePolicy(MINUTE, 10 * MINUTE, 30 * DAY, count_background=False)
NEVER = IdlePolicy(0, 0, 0, count_background=False)
BACKGROUND = replace(POLICY, count_background=True)


def seen(tier: Tier, idle_s: float, **fields: Any) -> KernelSeen:
    """A kernel that has been as it is for an hour and was last asked something so long ago."""
    kernel = KernelSeen(
        tier=tier,
        changed_at=NOW - max(HOUR, idle_s),
        execution_state="idle",
        last_active=NOW - idle_s,
    )
    return replace(kernel, **fields)


def awake(idle_s: float, **fields: Any) -> KernelSeen:
    return seen(Tier.AWAKE, idle_s, **fields)


def frozen(idle_s: float, for_s: float, **fields: Any) -> KernelSeen:
    return seen(Tier.FROZEN, idle_s, **({"changed_at": NOW - for_s} | fields))


def asleep(for_s: float, **fields: Any) -> KernelSeen:
    return seen(Tier.ASLEEP, for_s + HOUR, **({"changed_at": NOW - for_s} | fields))


@pytest.mark.parametrize(
    ("kernel", "policy", "expected"),
    [
        # awake
        (awake(0), POLICY, ("none", "awake: freezes in 60 s", 60)),
        (awake(20), POLICY, ("none", "awake: freezes in 40 s", 40)),
        (awake(59.5), POLICY, ("none", "awake: freezes in 1 s", 0.5)),
        (awake(60), POLICY, ("freeze", "awake: idle for 60 s", LOOK_S)),
        (awake(570), POLICY, ("freeze", "awake: idle for 10 minutes", 30)),
        (awake(600), POLICY, ("hibernate", "awake: idle for 10 minutes", LOOK_S)),
        (awake(-5), POLICY, ("none", "awake: freezes in 65 s", LOOK_S)),  # a clock set back
        # activity other than a request
        (awake(HOUR, changed_at=NOW - 15), POLICY, ("none", "awake: freezes in 45 s", 45)),
        # never put to sleep
        (awake(HOUR, pinned=True), POLICY, ("none", "awake: pinned", LOOK_S)),
        (
            awake(HOUR, execution_state="busy"),
            POLICY,
            ("none", "awake: a cell is running", LOOK_S),
        ),
        (
            awake(HOUR, busy_reason="it waits for input", execution_state="busy"),
            POLICY,
            ("none", "awake: it waits for input", LOOK_S),
        ),
        (
            awake(HOUR, execution_state="starting"),
            POLICY,
            ("none", "awake: its kernel is starting", LOOK_S),
        ),
        # work in the background
        (awake(HOUR, background_cpu=1.0), POLICY, ("hibernate", "awake: idle for 60 minutes", 60)),
        (
            awake(HOUR, background_cpu=BACKGROUND_SHARE),
            BACKGROUND,
            ("none", "awake: it works in the background", LOOK_S),
        ),
        (awake(HOUR, background_cpu=0.04), BACKGROUND, ("hibernate", "awake: idle", 60)),
        (awake(HOUR, last_background=NOW - 15), BACKGROUND, ("none", "awake: freezes in 45 s", 45)),
        (awake(HOUR, last_background=NOW - 15), POLICY, ("hibernate", "awake: idle", LOOK_S)),
        # policies
        (awake(DAY), NEVER, ("none", "awake: never put to sleep", LOOK_S)),
        (
            awake(MINUTE),
            replace(POLICY, freeze_after_s=0),
            ("none", "awake: hibernates in 9 minutes", LOOK_S),
        ),
        (
            awake(DAY),
            replace(POLICY, hibernate_after_s=0),
            ("freeze", "awake: idle for 24 hours", LOOK_S),
        ),
        (
            awake(10),
            replace(POLICY, hibernate_after_s=30),  # sooner than it would freeze
            ("none", "awake: hibernates in 20 s", 20),
        ),
        (awake(45), replace(POLICY, hibernate_after_s=30), ("hibernate", "awake: idle", 15)),
        (awake(0.5), replace(POLICY, freeze_after_s=0.1), ("none", "awake: freezes in 2 s", 1.5)),
        (awake(QUIET_S), replace(POLICY, freeze_after_s=0.1), ("freeze", "awake: idle", LOOK_S)),
        # frozen
        (frozen(90, 30), POLICY, ("none", "frozen: hibernates in 9 minutes", LOOK_S)),
        (frozen(590, 530), POLICY, ("none", "frozen: hibernates in 10 s", 10)),
        (frozen(600, 540), POLICY, ("hibernate", "frozen: idle for 10 minutes", LOOK_S)),
        (frozen(90, 90), POLICY, ("none", "frozen: hibernates in 9 minutes", LOOK_S)),  # by hand
        # woken by hand after a day, and frozen again: what it did before tells nothing
        (frozen(DAY, 30), POLICY, ("none", "frozen: hibernates in 9 minutes", LOOK_S)),
        (frozen(DAY, 540, last_active=0.0), POLICY, ("hibernate", "frozen: idle", LOOK_S)),
        (frozen(DAY, DAY), NEVER, ("none", "frozen: never hibernated", LOOK_S)),
        (
            frozen(DAY, 590),
            replace(POLICY, freeze_after_s=0),
            ("none", "frozen: hibernates in 10 s", 10),
        ),
        (
            frozen(DAY, 1),
            replace(POLICY, hibernate_after_s=30),
            ("none", "frozen: hibernates in 1 s", 1),
        ),
        (frozen(HOUR, HOUR, pinned=True), POLICY, ("none", "frozen: pinned", LOOK_S)),
        (
            frozen(HOUR, HOUR, execution_state="busy"),
            POLICY,
            ("none", "frozen: a cell is running", LOOK_S),
        ),
        (
            frozen(HOUR, HOUR, background_cpu=1.0),  # measured before it froze
            BACKGROUND,
            ("hibernate", "frozen: idle for 60 minutes", LOOK_S),
        ),
        # asleep
        (asleep(0), POLICY, ("none", "asleep: expires in 30 days", LOOK_S)),
        (asleep(30 * DAY - 7), POLICY, ("none", "asleep: expires in 7 s", 7)),
        (asleep(30 * DAY), POLICY, ("expire", "asleep: idle for 31 days", LOOK_S)),
        (asleep(DAY, last_active=0.0), POLICY, ("none", "asleep: expires in 29 days", LOOK_S)),
        (asleep(40 * DAY, last_active=NOW - DAY), POLICY, ("none", "asleep: expires in 29", 60)),
        (asleep(900 * DAY), NEVER, ("none", "asleep: kept for ever", LOOK_S)),
        (asleep(40 * DAY, pinned=True), POLICY, ("none", "asleep: pinned", LOOK_S)),
        (asleep(40 * DAY, execution_state="starting"), POLICY, ("expire", "asleep: idle", LOOK_S)),
    ],
)
def test_next_tier(
    kernel: KernelSeen, policy: IdlePolicy, expected: tuple[str, str, float]
) -> None:
    decision = next_tier(kernel, policy, NOW)
    action, reason, look_again_s = expected
    assert (decision.action, decision.look_again_s) == (action, look_again_s)
    assert decision.reason.startswith(reason)


# Whatever the kernel and the policy are

MOMENTS = st.floats(0, 2 * NOW) | st.floats(NOW - HOUR, NOW + HOUR)
AFTER = st.sampled_from([0.0, -1.0, 0.1, 60.0, 600.0]) | st.floats(0, 1e7)
KERNELS = st.builds(
    KernelSeen,
    tier=st.sampled_from(Tier),
    changed_at=MOMENTS,
    execution_state=st.sampled_from(["idle", "idle", "idle", "busy", "starting", "dead"]),
    last_active=MOMENTS,
    busy_reason=st.sampled_from(["", "", "", "it waits for input"]),
    pinned=st.sampled_from([False, False, False, True]),
    background_cpu=st.floats(0, 4) | st.just(0.0),
    last_background=MOMENTS,
)
POLICIES = st.builds(IdlePolicy, AFTER, AFTER, AFTER, st.booleans())
LATER = st.floats(0, 1e8) | st.floats(0, 100)
DEPTH = {Action.NONE: 0, Action.FREEZE: 1, Action.HIBERNATE: 2, Action.EXPIRE: 3}
MAY = {
    Tier.AWAKE: {Action.NONE, Action.FREEZE, Action.HIBERNATE},
    Tier.FROZEN: {Action.NONE, Action.HIBERNATE},
    Tier.ASLEEP: {Action.NONE, Action.EXPIRE},
}


@given(KERNELS, POLICIES, MOMENTS)
def test_what_a_tier_may_become(kernel: KernelSeen, policy: IdlePolicy, now: float) -> None:
    decision = next_tier(kernel, policy, now)
    assert decision.action in MAY[kernel.tier]
    assert decision.reason.startswith(f"{kernel.tier}: ")


@given(KERNELS, POLICIES, MOMENTS)
def test_what_is_at_work_is_left_alone(kernel: KernelSeen, policy: IdlePolicy, now: float) -> None:
    at_work = [
        replace(kernel, execution_state="busy"),
        replace(kernel, busy_reason="it waits for input"),
        replace(kernel, pinned=True),
    ]
    for each in at_work:
        assert next_tier(each, policy, now).action is Action.NONE


@given(KERNELS, POLICIES, MOMENTS)
def test_what_was_active_just_now_is_left_alone(
    kernel: KernelSeen, policy: IdlePolicy, now: float
) -> None:
    active = replace(kernel, last_active=max(0.0, now - QUIET_S / 2))
    assert next_tier(active, policy, now).action is Action.NONE


@given(KERNELS, POLICIES, MOMENTS, LATER)
def test_while_nothing_happens_it_only_goes_on(
    kernel: KernelSeen, policy: IdlePolicy, now: float, later_s: float
) -> None:
    first, second = next_tier(kernel, policy, now), next_tier(kernel, policy, now + later_s)
    assert DEPTH[first.action] <= DEPTH[second.action]


@given(KERNELS, POLICIES, MOMENTS, st.floats(0, 1e7))
def test_activity_only_puts_off(
    kernel: KernelSeen, policy: IdlePolicy, now: float, later_s: float
) -> None:
    depth = DEPTH[next_tier(kernel, policy, now).action]
    for name in ("last_active", "last_background", "changed_at"):
        active = replace(kernel, **{name: getattr(kernel, name) + later_s})
        assert DEPTH[next_tier(active, policy, now).action] <= depth


@given(KERNELS, POLICIES, MOMENTS, st.floats(0, 1, exclude_max=True))
def test_it_looks_again_before_anything_changes(
    kernel: KernelSeen, policy: IdlePolicy, now: float, part: float
) -> None:
    decision = next_tier(kernel, policy, now)
    assert 0 < decision.look_again_s <= LOOK_S
    between = now + part * decision.look_again_s
    assume(between < now + decision.look_again_s)  # or rounding says it has come
    assert next_tier(kernel, policy, between - 1e-6 if between > now else now).action in (
        decision.action,
    )


@pytest.mark.parametrize(
    ("freeze_s", "hibernate_s", "expected"),
    [(60, 600, AGAIN_S), (0, 0, AGAIN_S), (2, 8, 0.5), (0, 8, 2), (8, 0, 2), (0.1, 8, 0.5)],
)
def test_who_is_busy_is_looked_at_again(
    freeze_s: float, hibernate_s: float, expected: float
) -> None:
    policy = replace(POLICY, freeze_after_s=freeze_s, hibernate_after_s=hibernate_s)
    assert again_s(policy) == expected


@given(POLICIES)
def test_who_is_busy_is_looked_at_again_before_any_tier_has_passed(policy: IdlePolicy) -> None:
    waits = [each for each in (policy.freeze_after_s, policy.hibernate_after_s) if each > QUIET_S]
    assert 0 < again_s(policy) < min([*waits, LOOK_S])


@settings(max_examples=50)
@given(KERNELS, POLICIES)
def test_it_comes_to_rest(kernel: KernelSeen, policy: IdlePolicy) -> None:
    """A caller that does what it is told sees each tier once, and never wakes anything."""
    now = NOW
    kernel = replace(kernel, changed_at=NOW)
    deeper = {Action.FREEZE: Tier.FROZEN, Action.HIBERNATE: Tier.ASLEEP}
    tiers = [kernel.tier]
    for _ in range(2000):
        decision: IdleDecision = next_tier(kernel, policy, now)
        if decision.action is Action.EXPIRE:
            assert kernel.tier is Tier.ASLEEP
            break
        if decision.action is not Action.NONE:
            kernel = replace(kernel, tier=deeper[decision.action], changed_at=now)
            tiers.append(kernel.tier)
        now += max(decision.look_again_s, now * 1e-4)
    order = list(Tier)
    assert [order.index(tier) for tier in tiers] == sorted({order.index(tier) for tier in tiers})
