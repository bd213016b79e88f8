"""The commands about sleep, snapshots and forks, as people run them, with real sandboxes."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager
from torpor.client import Client
from torpor.config import user_paths

from tests.e2e.sleeping import wait_status
from tests.e2e.stores import store_home
from tests.home import start, stop

pytestmark = [pytest.mark.runsc, pytest.mark.timeout(180)]

Pair = tuple[KernelManager, BlockingKernelClient]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    url = f"file://{tmp_path_factory.mktemp('store')}"
    with store_home(url, {"after_s": 86400, "local": "keep"}) as folder:
        yield folder


@pytest.fixture
def pair(home: Path, tmp_path: Path) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    km, kc = start(tmp_path)
    yield km, kc
    stop(km, kc)


def run(*argv: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    ran = subprocess.run(
        [sys.executable, "-m", "torpor", *argv],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == code, ran.stdout + ran.stderr
    return ran


def document(*argv: str, code: int = 0) -> Any:
    return json.loads(run(*argv, "--json", code=code).stdout)


def test_one_document_of_kernels_it_was_done_to_and_of_others(pair: Pair) -> None:
    km, _ = pair
    for verb in ("freeze", "hibernate", "pin", "unpin", "wake"):
        found = document(verb, km.kernel_id, "nosuch", km.kernel_id[:8], code=1)
        assert [each["kernel_id"] for each in found["kernels"]] == [km.kernel_id] * 2
        (error,) = found["errors"]
        assert (error["kernel"], error["error"]["code"]) == ("nosuch", "gone")


def test_what_is_said_is_so(pair: Pair) -> None:
    km, kc = pair
    assert f"{km.kernel_id} is frozen (" in run("freeze", km.kernel_id).stderr
    assert f"{km.kernel_id} is hibernated (" in run("hibernate", "--all").stderr
    assert f"{km.kernel_id} is hibernated already" in run("freeze", km.kernel_id).stderr
    assert f"{km.kernel_id} is awake (" in run("wake", km.kernel_id).stderr
    kc.execute("import os; os._exit(3)")
    wait_status(km, "exited")
    ran = run("wake", km.kernel_id, code=1)
    assert f"kernel {km.kernel_id} has exited with code 3" in ran.stderr
    assert "awake" not in ran.stderr
    assert document("hibernate", "--all") == {"kernels": [], "errors": []}


def test_files_of_forks_go_with_them(pair: Pair, home: Path) -> None:
    km, _ = pair
    (home / "jr" / "kernel-others.json").write_text("{}")
    run("checkpoint", km.kernel_id, "before")
    one, two = (document("fork", km.kernel_id) for _ in range(2))
    three = document("restore", km.kernel_id, "before")
    files = [Path(each["connection_file"]) for each in (one, two, three)]
    run("kernels")
    assert all(each.is_file() for each in files)
    run("shutdown", one["kernel_id"])
    assert not files[0].exists()
    asyncio.run(Client(user_paths()).delete(two["kernel_id"]))  # as anybody else would
    run("kernels")
    assert [each.exists() for each in files] == [False, False, True]
    run("shutdown", three["kernel_id"])
    assert [each.name for each in (home / "jr").glob("kernel-*.json")] == ["kernel-others.json"]
    assert list((home / "state" / "connection-files").iterdir()) == []
    run("snapshots", "push", km.kernel_id, "before")
    run("snapshots", "rm", km.kernel_id, "before")


def test_where_a_snapshot_is_and_goes(pair: Pair) -> None:
    km, _ = pair
    run("hibernate", km.kernel_id)
    fetched = run("snapshots", "fetch", km.kernel_id).stdout.strip()
    assert fetched.endswith(" MiB, disk (it was there already)")
    assert document("snapshots", "fetch", km.kernel_id)["on"] == ["disk"]
    assert run("snapshots", "push", km.kernel_id).stdout.strip().endswith(" disk + store")
    again = run("snapshots", "push", km.kernel_id).stdout.strip()
    assert again.endswith(" disk + store (it was there already)")
    run("snapshots", "rm", km.kernel_id, "1", "--disk")
    for which in (["1"], []):
        said = run("snapshots", "push", km.kernel_id, *which).stdout
        assert "is in the store already, and not on this disk" in said
    assert document("snapshots", "push", km.kernel_id)["on"] == ["store"]
    fetched = run("snapshots", "fetch", km.kernel_id).stdout.strip()
    assert fetched.endswith(" MiB, disk + store")


def test_checkpoints_that_a_kernel_leaves_behind(pair: Pair) -> None:
    km, _ = pair
    run("checkpoint", km.kernel_id, "before")
    run("snapshots", "push", km.kernel_id, "before")  # what is just being sent cannot be removed
    told = run("shutdown", km.kernel_id).stderr
    assert f"{km.kernel_id}: named checkpoints stay: before" in told
    assert f"torpor snapshots rm {km.kernel_id} before" in told
    removed = document("snapshots", "rm", km.kernel_id, "--all", "--yes")
    assert (removed["removed"], removed["errors"]) == (1, [])


def test_all_snapshots_but_those_that_kernels_sleep_in(pair: Pair) -> None:
    km, _ = pair
    run("checkpoint", km.kernel_id, "before")
    run("snapshots", "push", km.kernel_id, "before")  # what is just being sent cannot be removed
    run("hibernate", "--all")
    ran = run("snapshots", "rm", "--all", code=1)
    assert "nobody is there to answer: Checkpoints among them: before. Remove 1 snap" in ran.stderr
    assert document("snapshots", "rm", "--all", "--yes")["removed"] == 1
    (left,) = document("snapshots")["snapshots"]
    assert left["name"] == ""
    run("snapshots", "rm", "--all", "--store", "--yes")
    assert "is awake" in run("wake", km.kernel_id).stderr
    assert run("snapshots", "push", km.kernel_id, "--all", code=2).stdout == ""


def test_all_kernels_end_when_somebody_says_so(pair: Pair) -> None:
    km, _ = pair
    assert "nobody is there to answer" in run("shutdown", "--all", code=1).stderr
    (state,) = document("shutdown", "--all", "--yes")["kernels"]
    assert state == {"kernel_id": km.kernel_id, "status": "gone", "checkpoints": []}


def test_what_stopping_the_daemon_means(pair: Pair, home: Path, tmp_path: Path) -> None:
    _, kc = pair
    other, client = start(tmp_path)
    try:
        run("hibernate", other.kernel_id)
        refused = run("daemon", "stop", code=1).stderr
        assert "those that sleep sleep on" in refused
        said = run("daemon", "stop", "--force").stdout
        assert "kernels that are awake and go on: 1" in said
        assert "kernels that sleep, and that nobody wakes until torpord runs: 1" in said
        assert "`torpor kernels` starts it" in run("daemon", "status", code=3).stdout
        reply = kc.execute_interactive("1 + 1", timeout=20)
        assert reply["content"]["status"] == "ok"
        client.execute("2 + 2")  # waits
        run("kernels")
        wait_status(other, "running")
    finally:
        stop(other, client)
