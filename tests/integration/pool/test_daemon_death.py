"""torpord ends, by kill -9 or by order, while its pool is at work: the next one finds nothing half-made."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.cells import value
from tests.integration.pool.pooled import (
    PoolHome,
    eventually,
    faulty,
    kernel,
    nothing_is_left,
    pool_home,
    works,
)
from tests.world import processes_of

pytestmark = [
    pytest.mark.slow,  # minutes: `make slow`
    pytest.mark.runsc,
    pytest.mark.timeout(180),
]


def sandboxes(home: PoolHome) -> set[int]:
    return {p for p, line in processes_of(home.path, services=False).items() if "runsc" in line}


def only(home: PoolHome, pids: set[int]) -> None:
    """Return once no sandbox but that of ``pids`` is left, and nothing half-made on the disk."""
    eventually(lambda: sandboxes(home) <= pids, "orphan sandboxes are destroyed", 15)
    eventually(lambda: not home.incomplete(), "drafts are removed", 15)
    assert home.clones() == []


def until_building(home: PoolHome) -> None:
    eventually(lambda: home.pool()["building"] and home.drafts(), "a golden is being built")


# A build takes some 3 s: boots, warms up, is saved, is published. The last is after all of it.
@pytest.mark.parametrize(
    "at_s",
    [
        pytest.param(0.0, marks=pytest.mark.slow),
        0.8,
        pytest.param(1.6, marks=pytest.mark.slow),
        2.2,
        pytest.param(2.6, marks=pytest.mark.slow),
        pytest.param(3.0, marks=pytest.mark.slow),
        pytest.param(3.4, marks=pytest.mark.slow),
        pytest.param(4.0, marks=pytest.mark.slow),
    ],
)
def test_killed_while_a_golden_is_built(tmp_path: Path, at_s: float) -> None:
    with pool_home() as home:
        with kernel(tmp_path) as (km, kc):
            mine = sandboxes(home)
            value(kc, "kept = 1; kept")
            until_building(home)
            time.sleep(at_s)
            home.kill_daemon()
            assert km.is_alive()  # this starts the next one
            only(home, mine)
            assert value(kc, "kept") == "1"
            whole = {each["build"] for each in home.goldens()["goldens"]}
            assert len(whole) <= 1
            assert home.goldens()["failures"] == []
        with kernel(tmp_path):
            assert home.launches()[-1] == ("cloned" if whole else "created")
        nothing_is_left(home)


def test_stopped_while_a_golden_is_built(tmp_path: Path) -> None:
    with pool_home() as home:
        with kernel(tmp_path):
            until_building(home)
        time.sleep(1)
        before = time.monotonic()
        assert home.torpor("daemon", "stop").returncode == 0
        assert time.monotonic() - before < 10
        eventually(lambda: not sandboxes(home), "the sandboxes are ended")
        assert home.incomplete() == []
        assert not home.logged("golden not built"), "a build that was called off has not failed"
        assert not [line for line in home.log() if line["level"] == "error"]


def test_killed_while_clones_wait(golden: Path, tmp_path: Path) -> None:
    with pool_home() as home:
        home.plant(golden)
        with kernel(tmp_path):
            home.until_ready()
        with kernel(tmp_path) as (km, kc):
            assert home.launches()[-1] == "claimed"
            value(kc, "kept = 1; kept")
            home.until_ready()
            clones = home.clones()
            mine = sandboxes(home) - {
                pid for name in home.unclaimed() for pid in home.processes_of_sandbox(name)
            }
            home.kill_daemon()
            assert all(Path(f"/proc/{pid}").exists() for pid in clones), "nobody has ended them"
            assert km.is_alive()
            only(home, mine)
            assert value(kc, "kept") == "1"
            assert home.ready() == 0
            works(kc, tmp_path)
            with kernel(tmp_path):
                assert home.launches()[-1] == "cloned"
            home.until_ready()
            with kernel(tmp_path):
                assert home.launches()[-1] == "claimed"
        nothing_is_left(home)


@pytest.mark.parametrize("fault", ["pause-before-claim", "pause-after-claim"])
def test_killed_in_the_middle_of_a_claim(golden: Path, tmp_path: Path, fault: str) -> None:
    """Whoever waits for the start gets a kernel from the next daemon; the half-claimed one is gone."""
    with faulty(fault), pool_home() as home, ThreadPoolExecutor(1) as thread:
        home.plant(golden)
        home.pool()
        home.build(tmp_path)
        home.until_ready()
        [claimed] = home.clones()

        def kill() -> None:
            happened = home.paths.state / "fault-happened"
            eventually(happened.exists, "the claim is on its way")
            home.kill_daemon()

        killed = thread.submit(kill)
        with kernel(tmp_path):
            killed.result()
            assert home.launches() == ["cloned"]
            eventually(lambda: not Path(f"/proc/{claimed}").exists(), "the old clone is gone")
        nothing_is_left(home)


def test_killed_again_and_again(golden: Path, tmp_path: Path) -> None:
    """A start after each death works, and what all those daemons left is gone at the end."""
    with pool_home() as home:
        home.plant(golden)
        for number in range(5):
            with kernel(tmp_path):
                pass
            time.sleep(0.15 * number)
            home.kill_daemon()
        with kernel(tmp_path):
            pass
        assert set(home.launches()) <= {"cloned", "claimed"}
        nothing_is_left(home)
