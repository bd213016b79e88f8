"""A sandbox whose first process exists and waits for the word to go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torpor.backends.base import Handle
from torpor.backends.local_layout import Layout
from torpor.runsc.saved_plan import without_secrets
from torpor.runsc.spawn import Spawned


@dataclass(frozen=True, slots=True)
class Begun:
    """What a start is in the middle of, and what ``Backend.stand_ready`` gives."""

    handle: Handle
    layout: Layout
    spawned: Spawned
    plan: dict[str, Any]

    async def go(self) -> None:
        """Let it go on. Raises LaunchError: it cannot."""
        await self.spawned.go()
        self.layout.write_shape(without_secrets(self.plan))
        self.layout.plan.unlink(missing_ok=True)  # it holds the key and the environment

    async def aclose(self) -> None:
        """Let go of its process, which ends unless it was told to go. Twice is fine."""
        await self.spawned.aclose()
