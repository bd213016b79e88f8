"""A warm-up that fails: no golden, and a reason that leads to the template's ``warm_up``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.home import write_kernelspec
from tests.integration.pool.modules import MODULES, write_modules
from tests.integration.pool.pooled import PoolHome, faulty, pool_home

pytestmark = [
    pytest.mark.slow,  # minutes: `make slow`
    pytest.mark.runsc,
]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[PoolHome, Path]]:
    """A home with a template for each module, whose warm-ups may take 2 s; builds are asked for."""
    folder = tmp_path_factory.mktemp("modules")
    write_modules(folder)
    templates = {name: {"warm_up": ["fine", name]} for name in (*MODULES, "not_there")}
    templates["raising-or-not"] = {"warm_up": ["fine", "raising?"]}
    with faulty("short-warm-up"), pool_home(f"c.Torpor.templates = {templates!r}\n") as home:
        write_kernelspec(home.path / "jupyter", env={"PYTHONPATH": str(folder)})
        home.pool()  # starts the daemon from here
        yield home, tmp_path_factory.mktemp("workspace")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("raising", "import raising failed: RuntimeError: this module is broken"),
        ("raising-or-not", "import raising failed: RuntimeError: this module is broken"),
        ("needing", "import needing failed: ModuleNotFoundError"),
        ("not_there", "import not_there failed: ModuleNotFoundError"),
        ("leaving", "SystemExit"),
        ("exiting", "import exiting"),
        ("crashing", "import crashing"),
        ("hanging", "took more than 2 s"),
        ("busy", "took more than 2 s"),
    ],
)
def test_warm_up_that_fails(many: tuple[PoolHome, Path], name: str, why: str) -> None:
    """No golden, nothing left of it, and the reason both for whoever asked and on record."""
    home, workspace = many
    words = ("sandboxed", "--template", name, "--workspace", str(workspace), "--json")
    done = home.torpor("golden", "build", *words)
    assert done.returncode != 0
    said = json.loads(done.stdout)["error"]["message"]
    assert why in said
    # One that has ended is no slow one: nobody looks in the right place for that.
    assert ("took more than" in said) == (name in ("hanging", "busy"))
    assert any(why in each["reason"] for each in home.goldens()["failures"])
    assert home.goldens()["goldens"] == []
    assert home.unclaimed() == {}
    assert home.incomplete() == []
