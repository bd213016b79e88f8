"""Shutdown, restart, interrupt and dead owners, when kernels are frozen, asleep or just waking."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager
from torpor.api import CHANNELS, Endpoints
from torpor.client import Client
from torpor.client_sleep import SleepClient
from torpor.config import user_paths

from tests.e2e.cells import ended, marked, tell, value, wait_begun
from tests.e2e.sleeping import (
    daemon_pid,
    do,
    own_kernel,
    snapshots,
    state,
    status,
    wait,
)
from tests.home import torpor_home

pytestmark = [pytest.mark.runsc, pytest.mark.timeout(120)]

Pair = tuple[KernelManager, BlockingKernelClient]
CONFIG = 'c.Torpor.templates = {"default": {"freeze_after_s": 0, "hibernate_after_s": 0}}\n'
OWNER = """
import sys, time
sys.path.insert(0, {repo!r})
from pathlib import Path
from tests.e2e.sleeping import do
from tests.home import start
for _ in range(2):
    km, kc = start(Path({cwd!r}))
    do(km, "hibernate")
print("asleep", flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    with torpor_home(CONFIG) as folder:
        yield folder


@pytest.fixture
def pair(home: Path, tmp_path: Path) -> Iterator[Pair]:
    with own_kernel(home, tmp_path) as started:
        yield started


@pytest.mark.parametrize("now", [True, False])
@pytest.mark.parametrize("verb", ["freeze", "hibernate"])
def test_what_comes_after_a_restart_is_kept(pair: Pair, verb: str, now: bool) -> None:
    km, kc = pair
    do(km, verb)
    km.restart_kernel(now=now)
    kc.wait_for_ready(timeout=30)
    tell(kc, "precious = 42")
    do(km, "hibernate")
    assert status(km) == "hibernated"
    assert km.is_alive()
    assert value(kc, "precious") == "42"


def test_a_frozen_kernel_that_is_asked_to_end_ends(pair: Pair) -> None:
    km, kc = pair
    do(km, "freeze")
    kc.shutdown()
    wait(lambda: not km.is_alive(), lambda: str(state(km)))
    assert status(km) == "exited"


def test_an_interrupt_meets_the_cell_for_which_it_wakes(pair: Pair) -> None:
    km, kc = pair
    tell(kc, "import time; x = 1")
    do(km, "hibernate")
    asked = kc.execute(marked("time.sleep(60)"))
    wait(lambda: status(km) in ("waking", "running"), lambda: status(km))
    if status(km) == "running":  # it was awake before anybody looked
        wait_begun(kc, asked)
    km.interrupt_kernel()
    assert ended(kc, asked, 20).error == "KeyboardInterrupt"
    assert value(kc, "x") == "1"


def test_those_of_a_dead_owner_go_and_the_others_stay(
    home: Path, pair: Pair, tmp_path: Path
) -> None:
    km, kc = pair
    tell(kc, "x = 1")
    do(km, "hibernate")
    code = OWNER.format(repo=str(Path(__file__).parents[2]), cwd=str(tmp_path))
    env = {**os.environ, "TMPDIR": str(tmp_path)}  # their connection files outlive it
    owner = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=env
    )
    assert owner.stdout is not None
    try:
        assert owner.stdout.readline() == "asleep\n"
        os.kill(daemon_pid(home), signal.SIGKILL)
    finally:
        owner.kill()
        owner.wait()
        owner.stdout.close()
    assert value(kc, "x") == "1"  # the bridge starts torpord for this
    wait(lambda: len(asyncio.run(Client(user_paths()).kernels())) == 1, lambda: "they stay")
    do(km, "hibernate")
    assert value(kc, "x") == "1"


@pytest.mark.parametrize("after_s", [0.15, 0.3])
def test_a_restore_that_is_broken_off_leaves_nothing(pair: Pair, after_s: float) -> None:
    km, kc = pair
    tell(kc, "import os; big = os.urandom(200 << 20)")
    do(km, "hibernate")
    [mine] = snapshots()
    client, ends = (
        Client(user_paths()),
        Endpoints("tcp", "127.0.0.1", dict.fromkeys(CHANNELS, 0), "k"),
    )

    async def ask() -> None:
        async with asyncio.timeout(after_s):
            await SleepClient(client).fork(str(km.kernel_id), "broken-off", ends)

    with suppress(TimeoutError):
        asyncio.run(ask())
        asyncio.run(client.delete("broken-off"))  # it was quicker
    time.sleep(1)  # what a thread goes on with comes late
    wait(
        lambda: [each["kernel_id"] for each in snapshots()] == [mine["kernel_id"]],
        lambda: f"{snapshots()} {asyncio.run(client.kernels())}",
    )
    assert value(kc, "len(big)") == str(200 << 20)
