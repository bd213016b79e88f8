"""What `torpor doctor` looks at: one small function per question, each giving a `Check`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """How good an answer is."""

    OK = "ok"
    WARN = "warn"
    """Kernels run, but something is missing."""
    FAIL = "fail"
    """No kernel can run before this is fixed."""


@dataclass(frozen=True, slots=True)
class Check:
    """The answer to one question about this machine."""

    name: str
    state: State
    found: str
    """One line: what is there."""
    fix: str = ""
    """What to do; never empty where the state is not ``ok``."""

    def to_json(self) -> dict[str, str]:
        return {
            "name": self.name,
            "state": self.state.value,
            "found": self.found,
            "fix": self.fix,
        }
