"""A second kernel with the memory of the first."""

from __future__ import annotations

import json
import subprocess
import sys
from ast import literal_eval
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager

from tests.e2e.cells import tell, value, wait_ready
from tests.e2e.sleeping import do, sandbox_pids, snapshots, status, wait
from tests.home import start, stop, torpor_home

pytestmark = [pytest.mark.runsc, pytest.mark.timeout(120)]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[tuple[Path, KernelManager, BlockingKernelClient]]:
    config = 'c.Torpor.templates = {"default": {"freeze_after_s": 0, "hibernate_after_s": 0}}\n'
    with torpor_home(config) as home:
        km, kc = start(tmp_path)
        yield home, km, kc
        stop(km, kc)
        wait(lambda: not sandbox_pids(home), lambda: str(sandbox_pids(home)))
        assert snapshots() == []


def torpor(*words: str) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-m", "torpor", *words, "--json"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


@contextmanager
def forked(km: KernelManager) -> Iterator[BlockingKernelClient]:
    with client_of(torpor("fork", str(km.kernel_id)[:8])) as client:
        yield client


@contextmanager
def client_of(state: dict[str, object]) -> Iterator[BlockingKernelClient]:
    """Give a client of a fork, and end both."""
    client = BlockingKernelClient(connection_file=str(state["connection_file"]))
    client.load_connection_file()
    client.start_channels()
    try:
        wait_ready(client)  # else it may miss what a cell says; it wakes nobody
        yield client
    finally:
        client.stop_channels()
        torpor("shutdown", str(state["kernel_id"]))


@pytest.mark.parametrize("asleep", [False, True])
def test_a_fork(world: tuple[Path, KernelManager, BlockingKernelClient], asleep: bool) -> None:
    _home, km, kc = world
    tell(kc, "import random, secrets, uuid; x = ['shared']; open('/tmp/f', 'w').write('first')")
    if asleep:
        do(km, "hibernate")
    with forked(km) as other:
        assert value(other, "x, open('/tmp/f').read()") == "(['shared'], 'first')"
        assert status(km) == ("hibernated" if asleep else "running")
        tell(other, "x.append('mine'); open('/tmp/f', 'w').write('second')")
        tell(kc, "x.append('yours')")
        assert value(kc, "x, open('/tmp/f').read()") == "(['shared', 'yours'], 'first')"
        assert value(other, "x, open('/tmp/f').read()") == "(['shared', 'mine'], 'second')"
        drawn = "random.random(), secrets.token_hex(8), str(uuid.uuid4()), get_ipython().kernel.session.session"
        assert set(literal_eval(value(kc, drawn))).isdisjoint(literal_eval(value(other, drawn)))
    assert value(kc, "x") == "['shared', 'yours']"


def test_a_fork_of_a_fork_outlives_the_first(
    world: tuple[Path, KernelManager, BlockingKernelClient],
) -> None:
    home, km, kc = world
    tell(kc, "x = 1")
    state = torpor("fork", str(km.kernel_id))
    second = torpor("fork", str(state["kernel_id"]))
    torpor("shutdown", str(state["kernel_id"]))
    torpor("hibernate", str(second["kernel_id"]))
    with client_of(second) as client:
        assert value(client, "x") == "1"
    assert len(list((home / "state/k").iterdir())) == 1
    assert value(kc, "x") == "1"
