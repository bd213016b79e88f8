"""The one table that says what to do about a kernel. Pure: loops elsewhere only execute it.

``Status`` is what the registry remembers, ``Target`` what is wanted, ``Seen`` what the world shows
now. After each executed step the caller looks again; ``NOTHING`` means that all three agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """What the registry remembers about a kernel."""

    LAUNCHING = "launching"
    """Written before anything was allocated: parts of it may exist."""
    LIVE = "live"
    """Its sandbox was started and its kernel has answered once."""
    ASLEEP = "asleep"
    """Its memory is in a snapshot and it has no sandbox; its endpoints stay bound."""
    LOST = "lost"
    """Its sandbox is gone; its endpoints stay bound, so that a restart finds the same clients."""


class Target(StrEnum):
    """What is wanted of a kernel."""

    PRESENT = "present"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class Seen:
    """What the world shows about a kernel at this moment."""

    launching: bool
    """A launch of it runs in this very daemon."""
    sandbox: bool
    """The process of its sandbox lives (same pid, same start time)."""
    endpoints: bool
    """The bridge holds its endpoints."""
    owner: bool
    """Its lease is held: the owner process lives, or no lease was asked for."""


class Step(StrEnum):
    """What to do next about a kernel."""

    NOTHING = "nothing"
    CANCEL = "cancel"
    """Stop the launch that is on its way; it undoes itself."""
    REMOVE = "remove"
    """Destroy sandbox, endpoints and files, and forget the kernel."""
    LOSE = "lose"
    """Clear away the dead sandbox, keep the endpoints, remember the kernel as lost."""
    OPEN = "open"
    """Bind the recorded endpoints again and take up the link."""


def next_step(status: Status, target: Target, seen: Seen) -> Step:
    """Give the next step that brings a kernel from ``seen`` to ``target``."""
    unwanted = target is Target.ABSENT or not seen.owner
    if seen.launching:
        return Step.CANCEL if unwanted else Step.NOTHING
    if unwanted or status is Status.LAUNCHING:
        return Step.REMOVE
    if status is Status.LOST:
        return Step.NOTHING
    if status is Status.ASLEEP:
        return Step.NOTHING if seen.endpoints else Step.OPEN
    if not seen.sandbox:
        return Step.LOSE
    return Step.NOTHING if seen.endpoints else Step.OPEN
