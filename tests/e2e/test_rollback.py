"""Named checkpoints, and taking a kernel back to one."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager
from torpor.client import Client
from torpor.client_sleep import SleepClient
from torpor.config import user_paths
from torpor.errors import Busy, SnapshotUnusable

from tests.e2e.cells import reply_to, run, tell, value
from tests.e2e.sleeping import do, snapshots, status
from tests.home import start, stop, torpor_home

pytestmark = [pytest.mark.runsc, pytest.mark.timeout(120)]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    config = 'c.Torpor.templates = {"default": {"freeze_after_s": 0, "hibernate_after_s": 0}}\n'
    with torpor_home(config):
        km, kc = start(tmp_path)
        yield km, kc
        stop(km, kc)


def client() -> SleepClient:
    return SleepClient(Client(user_paths()))


def checkpoint(km: KernelManager, name: str) -> None:
    assert asyncio.run(client().checkpoint(str(km.kernel_id), name))["status"] == "running"


def roll_back(km: KernelManager, to: str | int) -> None:
    assert asyncio.run(client().roll_back(str(km.kernel_id), to))["status"] == "running"


def test_back_and_forth(pair: tuple[KernelManager, BlockingKernelClient]) -> None:
    km, kc = pair
    tell(kc, "x = 'first'; open('/tmp/f', 'w').write(x)")
    checkpoint(km, "first")
    assert value(kc, "x") == "'first'"
    tell(kc, "x = 'second'; open('/tmp/f', 'w').write(x)")
    checkpoint(km, "second")
    tell(kc, "x = 'third'; open('/tmp/f', 'w').write(x)")
    both = "x, open('/tmp/f').read()"
    for name in ("first", "second", "first"):
        roll_back(km, name)
        assert value(kc, both) == f"('{name}', '{name}')"
        assert run(kc, "print(x)").stdout == f"{name}\n"
        do(km, "hibernate")
        assert value(kc, both) == f"('{name}', '{name}')"
    named = {each["name"] for each in snapshots()}
    assert {"first", "second"} <= named
    roll_back(km, next(each["generation"] for each in snapshots() if each["name"] == "second"))
    assert value(kc, "x") == "'second'"


def test_named_ones_outlive_their_kernel(tmp_path: Path) -> None:
    config = 'c.Torpor.templates = {"default": {"freeze_after_s": 0, "hibernate_after_s": 0}}\n'
    with torpor_home(config) as home:
        km, kc = start(tmp_path)
        checkpoint(km, "kept")
        do(km, "hibernate")
        kernel_id = str(km.kernel_id)
        newest = max(each["generation"] for each in snapshots())
        with pytest.raises(Busy, match="sleeps in"):
            asyncio.run(client().drop(kernel_id, newest))
        stop(km, kc)
        [left] = snapshots()
        assert (left["name"], left["has_kernel"]) == ("kept", False)
        torpor = [sys.executable, "-m", "torpor", "snapshots", "rm", kernel_id[:6], "kept"]
        done = subprocess.run(torpor, capture_output=True, text=True, timeout=30)
        assert done.stdout.startswith("1 removed"), done.stderr
        assert snapshots() == []
        assert not (home / "state/snapshots" / kernel_id).exists()


def test_names(pair: tuple[KernelManager, BlockingKernelClient]) -> None:
    km, kc = pair
    tell(kc, "x = 1")
    checkpoint(km, "one")
    for name in ("one", "", "12", " x"):
        with pytest.raises(SnapshotUnusable):
            checkpoint(km, name)
    with pytest.raises(SnapshotUnusable, match="no snapshot"):
        roll_back(km, "two")
    assert status(km) == "running"
    assert value(kc, "x") == "1"
    asked = kc.execute("x += 1")
    assert reply_to(kc, asked, 10)["status"] == "ok"
