"""Real runsc, one image for all tests of the backend, one golden for all tests of the daemon."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.home import find_runsc
from tests.integration.pool.making import REPORTER, Making, make_image
from tests.integration.pool.pooled import pool_home


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
def making(tmp_path: Path, runsc: Path) -> Iterator[Making]:
    """A backend in a world of its own, in which nothing may be left."""
    making = Making(tmp_path, runsc)
    yield making
    assert making.leftovers() == []


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory, runsc: Path) -> Path:
    """The image of a kernel in which ``marked`` is 41 and a thread waits to report its claim."""
    making = Making(tmp_path_factory.mktemp("image"), runsc)
    folder = making.image_folder()
    asyncio.run(make_image(making, folder, "marked = 41", REPORTER))
    assert making.leftovers() == []
    return folder


@pytest.fixture(scope="session")
def golden(tmp_path_factory: pytest.TempPathFactory, runsc: Path) -> Path:
    """A copy of the goldens' folder of a home in which one was built; for ``PoolHome.plant``."""
    folder, workspace = tmp_path_factory.mktemp("golden"), tmp_path_factory.mktemp("workspace")
    with pool_home() as home:
        home.build(workspace)
        home.stop_daemon()
        shutil.copytree(home.goldens_folder, folder / "goldens")
    return folder / "goldens"
