from __future__ import annotations

from pathlib import Path

import pytest
from torpor.snapshot.store import SnapshotStore

from tests.unit.golden.conftest import Clock

BUDGET_BYTES = 1 << 20


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "state" / "snapshots"


@pytest.fixture
def store(root: Path, clock: Clock) -> SnapshotStore:
    return SnapshotStore(root, BUDGET_BYTES, clock=clock)
