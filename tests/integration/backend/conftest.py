"""Real runsc for these tests, or a skip that REQUIRE_RUNSC=1 turns into a failure."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.home import find_runsc
from tests.integration.backend.world import LocalSubject


@pytest.fixture(scope="session")
def runsc() -> Path:
    found = find_runsc()
    if found is None:
        message = "no runsc: run `torpor install-runsc` or set TORPOR_TEST_RUNSC"
        if os.environ.get("REQUIRE_RUNSC"):
            pytest.fail(message)
        pytest.skip(message)
    return Path(found)


@pytest.fixture
def subject(tmp_path: Path, runsc: Path) -> LocalSubject:
    return LocalSubject(tmp_path, runsc)
