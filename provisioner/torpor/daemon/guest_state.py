"""What a kernel's guest last said, as a value: folded from the bridge's events and status."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any


class Phase(StrEnum):
    """Where the kernel process in the sandbox is."""

    UNKNOWN = "unknown"
    STARTING = "starting"
    READY = "ready"
    FAILED = "failed"
    """It never answered."""
    EXITED = "exited"
    """It answered once and has ended since."""


@dataclass(frozen=True, slots=True)
class GuestState:
    """The guest's last word about the kernel of ``generation`` (1 is the first in its sandbox)."""

    phase: Phase = Phase.UNKNOWN
    generation: int = 0
    exit_code: int | None = None
    failure: str = ""
    """Why it never answered, readable."""
    timed_out: bool = False
    """It never answered because its time was over."""
    stderr_tail: str = ""
    link_error: str | None = None
    """Set once the link has failed for good: the guest broke the protocol."""

    @property
    def ended(self) -> bool:
        return self.phase in (Phase.FAILED, Phase.EXITED)


_PHASES: Mapping[str, Phase] = {
    "booted": Phase.STARTING,
    "idle": Phase.STARTING,
    "starting": Phase.STARTING,
    "ready": Phase.READY,
    "failed": Phase.FAILED,
    "exited": Phase.EXITED,
}


def after_event(state: GuestState, body: Mapping[str, Any]) -> GuestState:
    """Give the state after one guest event; news of an earlier generation changes nothing.

    The guest may be hostile: wrong types count as absent.
    """
    name = body.get("event")
    if name not in ("ready", "failed", "exited"):
        return state
    generation = _number(body.get("generation")) or state.generation
    if generation < state.generation:
        return state
    exit_code = _number(body.get("exit_code"))
    tail = _text(body.get("stderr_tail"))
    if name == "ready":
        return replace(
            state,
            phase=Phase.READY,
            generation=generation,
            exit_code=None,
            failure="",
            timed_out=False,
        )
    if name == "failed":
        return replace(
            state,
            phase=Phase.FAILED,
            generation=generation,
            exit_code=exit_code,
            failure=_text(body.get("message")) or "no reason given",
            timed_out=body.get("reason") == "timeout",
            stderr_tail=tail,
        )
    return replace(
        state, phase=Phase.EXITED, generation=generation, exit_code=exit_code, stderr_tail=tail
    )


def after_status(state: GuestState, status: Mapping[str, Any]) -> GuestState:
    """Give the state after a bridge's ``status`` of the kernel: events may have been missed."""
    generation = _number(status.get("generation")) or 0
    if generation < state.generation:
        return state
    phase = _PHASES.get(str(status.get("guest")), Phase.UNKNOWN)
    if phase is Phase.UNKNOWN:
        return state
    failure = status.get("failure")
    if not isinstance(failure, Mapping):
        failure = {}
    return GuestState(
        phase=phase,
        generation=generation,
        exit_code=_number(status.get("exit_code")),
        failure=_text(failure.get("message")),
        timed_out=failure.get("reason") == "timeout",
        stderr_tail=_text(status.get("stderr_tail")),
        link_error=status.get("link_error") if status.get("link") == "failed" else None,
    )


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _text(value: object) -> str:
    return value[-8192:] if isinstance(value, str) else ""
