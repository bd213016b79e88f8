"""The one place that says when an idle kernel is put to sleep, and how deep. Pure: no clock.

The caller looks at a kernel, calls ``next_tier``, does what it says, and calls again after
``look_again_s``, or at once when something it gave has changed.

Activity is a message that asks the kernel to do something, a running cell, and output; for a
template that says so also work in the background. Presence never counts: an open browser tab does
not keep a kernel awake. All moments are of one clock that goes on while machines are off (seconds
since 1970): kernels sleep through reboots.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from math import ceil, inf

LOOK_S = 60.0
"""Look again after so long though no moment is near: no event is relied on for ever."""
AGAIN_S = 5.0
"""Look again after so long, at most, at what is busy or refused; see ``again_s``."""
_AGAIN_LEAST_S = 0.5
QUIET_S = 2.0
"""Whatever the policy, nothing is put to sleep sooner after its last activity: more may follow."""
BACKGROUND_SHARE = 0.05
"""From so much of one processor on an idle kernel counts as working in the background."""
RUNNING = "a cell is running"
_IDLE = "idle"
_BUSY = "busy"


class Tier(StrEnum):
    """How deep a kernel sleeps."""

    AWAKE = "awake"
    FROZEN = "frozen"
    """No processor, all its memory."""
    ASLEEP = "asleep"
    """Only its snapshot."""


class Action(StrEnum):
    """What to do about an idle kernel."""

    NONE = "none"
    FREEZE = "freeze"
    HIBERNATE = "hibernate"
    EXPIRE = "expire"
    """Delete the kernel and its snapshots."""


_FOR_EVER = {
    Tier.AWAKE: "never put to sleep",
    Tier.FROZEN: "never hibernated",
    Tier.ASLEEP: "kept for ever",
}


@dataclass(frozen=True, slots=True)
class IdlePolicy:
    """What a template says about its idle kernels; 0 (or less) is never.

    The first two count from the last activity, the third from falling asleep. A kernel that was
    woken without being asked for anything gets all its time again.
    """

    freeze_after_s: float
    hibernate_after_s: float
    expire_after_s: float
    count_background: bool
    """Work in the background (threads, asyncio tasks) is activity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelSeen:
    """One kernel now. What never happened was at 0."""

    tier: Tier
    changed_at: float
    """When it came into this tier."""
    execution_state: str
    """As the kernel says: ``idle``, ``busy``, ``starting``."""
    last_active: float = 0.0
    """When it was last asked for something, ran something, or said something."""
    busy_reason: str = ""
    """Why it must not be put to sleep now, for a person; "" when it may be."""
    pinned: bool = False
    """Somebody wants it to stay as it is."""
    background_cpu: float = 0.0
    """The share of one processor it uses now."""
    last_background: float = 0.0
    """When that was last ``BACKGROUND_SHARE`` or more."""


@dataclass(frozen=True, slots=True)
class IdleDecision:
    """What to do now, and a sentence for people why."""

    action: Action
    reason: str
    look_again_s: float
    """Decide again after so long, though nothing may have happened. More than 0."""


def next_tier(seen: KernelSeen, policy: IdlePolicy, now: float) -> IdleDecision:
    """Give what the policy wants done about a kernel now.

    While nothing happens it only ever goes on from less to more: none, freeze, hibernate for one
    that is awake; none, hibernate for a frozen one; none, expire for one that is asleep.
    """
    kept = _kept_by(seen, policy)
    if kept:
        return IdleDecision(Action.NONE, f"{seen.tier}: {kept}", LOOK_S)
    due = _due(seen, policy)
    reached = [action for action, at in due.items() if at <= now]
    ahead = [at - now for at in due.values() if now < at < inf]
    look_again_s = min([LOOK_S, *ahead])
    if reached:
        idle_s = now - (_active_at(seen, policy) or seen.changed_at)
        return IdleDecision(reached[-1], f"{seen.tier}: idle for {_span(idle_s)}", look_again_s)
    next_action = min(due, key=lambda action: due[action])
    ahead_s = due[next_action] - now
    outlook = f"{next_action}s in {_span(ahead_s)}" if ahead_s < inf else _FOR_EVER[seen.tier]
    return IdleDecision(Action.NONE, f"{seen.tier}: {outlook}", look_again_s)


def again_s(policy: IdlePolicy) -> float:
    """Give after how many seconds to look again at a kernel that is busy, or refused to sleep.

    Sooner under a policy that does not wait long: because a cell ran at the moment of one look, no
    kernel may miss a tier.
    """
    waits = [each for each in (policy.freeze_after_s, policy.hibernate_after_s) if each > 0]
    return max(_AGAIN_LEAST_S, min([AGAIN_S, *(each / 4 for each in waits)]))


def _kept_by(seen: KernelSeen, policy: IdlePolicy) -> str:
    """Give what keeps it in its tier however long that lasts; "" when nothing does."""
    if seen.pinned:
        return "pinned"
    if seen.busy_reason:
        return seen.busy_reason
    if seen.execution_state == _BUSY:
        return RUNNING
    if seen.tier is not Tier.AWAKE:
        return ""
    if seen.execution_state != _IDLE:
        return f"its kernel is {seen.execution_state}"
    if policy.count_background and seen.background_cpu >= BACKGROUND_SHARE:
        return "it works in the background"
    return ""


def _due(seen: KernelSeen, policy: IdlePolicy) -> dict[Action, float]:
    """Give when each further tier is due, the deepest last; ``inf`` for never."""
    active_at = _active_at(seen, policy)
    freeze_s, hibernate_s = _wait_s(policy.freeze_after_s), _wait_s(policy.hibernate_after_s)
    if seen.tier is Tier.AWAKE:
        return {Action.FREEZE: active_at + freeze_s, Action.HIBERNATE: active_at + hibernate_s}
    if seen.tier is Tier.FROZEN:
        # Of one that was woken by hand, fell idle and froze again, only its freezing tells when.
        idle_s = freeze_s if freeze_s < inf else 0.0
        in_tier_s = max(QUIET_S, hibernate_s - idle_s)
        return {Action.HIBERNATE: max(active_at + hibernate_s, seen.changed_at + in_tier_s)}
    return {Action.EXPIRE: max(active_at, seen.changed_at) + _wait_s(policy.expire_after_s)}


def _active_at(seen: KernelSeen, policy: IdlePolicy) -> float:
    active_at = seen.last_active
    if policy.count_background:
        active_at = max(active_at, seen.last_background)
    return max(active_at, seen.changed_at) if seen.tier is Tier.AWAKE else active_at


def _wait_s(after_s: float) -> float:
    return max(after_s, QUIET_S) if after_s > 0 else inf


def _span(span_s: float) -> str:
    """Give a duration for people, rounded up."""
    for unit, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if span_s > 2 * unit:
            return f"{ceil(span_s / unit)} {name}"
    return f"{ceil(span_s)} s"
