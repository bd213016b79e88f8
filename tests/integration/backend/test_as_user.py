"""As root: everything in this folder once more as an ordinary user, on the same runsc."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.unprivileged import REPOSITORY, as_user, user_env

pytestmark = [
    pytest.mark.runsc,
    pytest.mark.slow,  # `make test-user` runs all of them as an ordinary user anyway
    pytest.mark.skipif(os.geteuid() != 0, reason="is an ordinary user already"),
    pytest.mark.timeout(300),
]


def test_all_of_this_as_an_ordinary_user(
    runsc: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = tmp_path_factory.mktemp("user") / "home"
    runsc = runsc.resolve()
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-x"),
        f"--basetemp={home}/t",
        str(Path(__file__).parent),
    ]
    done = subprocess.run(
        as_user(command, home=home, needs=[runsc.parent]),
        env=user_env(home, TORPOR_TEST_RUNSC=str(runsc), PYTHONDONTWRITEBYTECODE="1"),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
