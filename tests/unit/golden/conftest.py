from __future__ import annotations

from pathlib import Path

import pytest
from torpor.golden.store import GoldenStore


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 4_000_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "state" / "goldens"


@pytest.fixture
def store(root: Path, clock: Clock) -> GoldenStore:
    return GoldenStore(root, 10_000, clock)
