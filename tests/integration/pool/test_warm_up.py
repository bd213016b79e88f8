"""Kernels that no golden can be made of: said why, left alone for a while, started cold meanwhile."""

from __future__ import annotations

import json
import time
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.cells import value
from tests.home import write_kernelspec
from tests.integration.pool.making import IS_ROOT, small_disk
from tests.integration.pool.modules import write_modules
from tests.integration.pool.pooled import (
    PoolHome,
    eventually,
    kernel,
    nothing_is_left,
    pool_home,
)

pytestmark = [
    pytest.mark.slow,  # minutes: `make slow`
    pytest.mark.runsc,
    pytest.mark.timeout(180),
]


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    """A folder with modules to warm up, which kernels have on their PYTHONPATH."""
    folder = tmp_path / "modules"
    folder.mkdir()
    write_modules(folder)
    return folder


def warming(*names: str) -> str:
    return f"c.Torpor.templates = {{'default': {{'warm_up': {list(names)!r}}}}}\n"


def fails(home: PoolHome, workspace: Path, *, within_s: float = 30) -> dict[str, Any]:
    """Give the one failure that is on record once the first start has caused a build."""
    with kernel(workspace):
        assert home.launches()[-1] == "created"
        eventually(lambda: home.logged("golden not built"), "the build has failed", within_s)
        [failure] = eventually(lambda: home.goldens()["failures"], "the failure is on record")
        with kernel(workspace):  # beside the first
            assert home.launches()[-1] == "created"
            assert home.last_why() == "there is no golden yet"
    assert home.goldens()["goldens"] == []
    assert home.clones() == []
    assert home.incomplete() == []
    found: dict[str, Any] = failure
    return found


@pytest.mark.slow
def test_modules_that_may_be_missing(modules: Path, tmp_path: Path) -> None:
    with pool_home(warming("not_there?", "fine")) as home:
        write_kernelspec(home.path / "jupyter", env={"PYTHONPATH": str(modules)})
        with kernel(tmp_path):
            eventually(lambda: home.logged("golden built"), "the golden is built")
        [golden] = home.goldens()["goldens"]
        assert list(golden["warm_up_failed"]) == ["not_there"]
        home.until_ready()
        with kernel(tmp_path) as (_, kc):
            assert home.launches()[-1] == "claimed"
            assert value(kc, "import sys; 'fine' in sys.modules, 'fine' in globals()") == (
                "(True, False)"
            )
            assert value(kc, "import fine; fine.VALUE") == "7"


def test_a_failure_is_left_alone_for_a_while_and_then_mended(modules: Path, tmp_path: Path) -> None:
    """10 s, then 20 s; a daemon that ends forgets nothing; a mended module is built in the end."""
    with pool_home(warming("raising")) as home:
        write_kernelspec(home.path / "jupyter", env={"PYTHONPATH": str(modules)})
        failure = fails(home, tmp_path)

        def due() -> bool:
            return time.time() > failure["at"] + 9

        home.stop_daemon()
        with kernel(tmp_path):
            assert home.launches()[-1] == "created"
            assert home.goldens()["failures"] == [failure] or due()
            time.sleep(2)
            assert home.counters().get("build_failed", 0) == 0 or due(), "tried again too soon"
            (modules / "raising.py").write_text("VALUE = 1\n")
            eventually(lambda: home.logged("golden built"), "it is tried again", 30)
            waited_s = time.time() - failure["at"]
        assert waited_s > 9
        assert home.goldens()["failures"] == []
        nothing_is_left(home)


@pytest.mark.slow
def test_failures_in_a_row_wait_longer_and_longer(modules: Path, tmp_path: Path) -> None:
    with pool_home(warming("raising")) as home:
        write_kernelspec(home.path / "jupyter", env={"PYTHONPATH": str(modules)})
        fails(home, tmp_path)
        eventually(lambda: len(home.logged("golden not built")) >= 3, "three builds", 120)
        eventually(  # a moment after it is in the log
            lambda: [each["in_a_row"] for each in home.goldens()["failures"]] == [3],
            "the third failure is on record",
        )
        times = [datetime.fromisoformat(line["at"]) for line in home.logged("golden not built")]
        waited_s = [(b - a).total_seconds() for a, b in pairwise(times)]
        assert waited_s[0] > 9
        assert waited_s[1] > 19


@pytest.mark.skipif(not IS_ROOT, reason="only root can mount a small file system")
def test_a_disk_that_is_full(tmp_path: Path) -> None:
    with pool_home() as home:
        home.pool()
        home.goldens_folder.mkdir(mode=0o700)
        with small_disk(home.goldens_folder, "24m"):
            home.goldens_folder.chmod(0o700)
            failure = fails(home, tmp_path)
            assert "no space left" in failure["reason"].lower()
            home.stop_daemon()
        nothing_is_left(home)


ODD = """
import sys
if "ipykernel_launcher" in " ".join(sys.orig_argv) or "quick_ipykernel" in " ".join(sys.orig_argv):
    import ipykernel.ipkernel
    ipykernel.ipkernel.IPythonKernel.kernel_info = property(lambda self: {info})
"""
INFO = {"protocol_version": "5.3", "implementation": "odd", "implementation_version": "1"}


@pytest.mark.parametrize(
    "info",
    [
        {**INFO, "language_info": "python"},
        pytest.param({**INFO, "language_info": {"version": [3]}}, marks=pytest.mark.slow),
        pytest.param(INFO, marks=pytest.mark.slow),
    ],
    ids=["text", "list", "none"],
)
def test_a_kernel_with_an_odd_kernel_info(tmp_path: Path, info: dict[str, Any]) -> None:
    """Whatever a kernel says of itself: it is cloned, or not and said why; nothing spins."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(ODD.format(info=info))
    calm(tmp_path, "", {"PYTHONPATH": str(site)})


@pytest.mark.parametrize(
    "answer",
    [
        "{'files': 5}",
        pytest.param("{'files': [5, None, 'relative', '/nul\\0']}", marks=pytest.mark.slow),
        pytest.param("{'files': [], 'folders': 5}", marks=pytest.mark.slow),
    ],
)
def test_a_kernel_that_lies_about_its_files(tmp_path: Path, answer: str) -> None:
    source = f"import kernel_claim\nkernel_claim._REQUESTS['seen'] = lambda _: {answer}\n"
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "lying.py").write_text(source)
    calm(tmp_path, warming("lying"), {"PYTHONPATH": str(folder)})


def calm(tmp_path: Path, config: str, env: dict[str, str]) -> None:
    workspace = tmp_path / "ws"
    workspace.mkdir()
    with pool_home(config) as home:
        write_kernelspec(home.path / "jupyter", env=env)
        with kernel(workspace):
            ended = ("golden built", "golden not built", "task failed")
            eventually(lambda: [each for each in ended if home.logged(each)], "a build has ended")
        time.sleep(4)  # the time of another build
        tried = len(home.logged("golden not built")) + len(home.logged("task failed"))
        assert tried <= 1, [json.dumps(line) for line in home.log()[-4:]]
        assert not home.logged("task failed"), home.logged("task failed")
        if not home.logged("golden built"):
            assert home.goldens()["failures"]
        nothing_is_left(home)
