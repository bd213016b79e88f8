"""The pool while it lives: built, cloned, claimed, changed, drained, ended; and nothing is left."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.e2e.cells import value
from tests.integration.pool.pooled import (
    POOL,
    eventually,
    faulty,
    kernel,
    nothing_is_left,
    pool_home,
)

pytestmark = [
    pytest.mark.slow,  # minutes: `make slow`
    pytest.mark.runsc,
]


def test_created_then_built_then_cloned_then_claimed(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    with pool_home() as home:
        with kernel(first):
            assert home.last_why() == "there is no golden yet"
        eventually(lambda: home.logged("golden built"), "the golden is built")
        home.until_ready()
        with kernel(second):  # its workspace is another one: nothing waits for it
            assert home.last_why() == "no clone was ready"
        home.until_ready(2)
        with kernel(first) as (_, one), kernel(second) as (_, other):
            code = "import os, random, uuid; (random.random(), os.urandom(8), uuid.uuid4())"
            assert value(one, code) != value(other, code)
        assert home.launches() == ["created", "cloned", "claimed", "claimed"]
        counters = home.counters()
        assert (counters["built"], counters["claimed"]) == (1, 2)
        [golden] = home.goldens()["goldens"]
        assert (golden["kernel_name"], golden["template"]) == ("sandboxed", "default")
        nothing_is_left(home)


def test_a_built_golden_serves_the_first_start(golden: Path, tmp_path: Path) -> None:
    with pool_home() as home:
        home.plant(golden)
        with kernel(tmp_path):
            assert home.launches() == ["cloned"]
        home.until_ready()
        with kernel(tmp_path):
            assert home.launches() == ["cloned", "claimed"]
        assert home.counters().get("built", 0) == 0
        nothing_is_left(home)


def template(**fields: object) -> str:
    return f"c.Torpor.templates = {{'default': {fields!r}}}\n"


def test_new_limits_count_from_the_next_start(golden: Path, tmp_path: Path) -> None:
    """Under a live pool: no clone of the old template is claimed any more, and in the end all go."""
    cells = "import resource; resource.getrlimit(resource.RLIMIT_NOFILE)[0]"
    with pool_home(template(pool_keep_s=15.0)) as home:
        home.plant(golden)
        with kernel(tmp_path):
            home.until_ready()
        old = home.clones()
        home.configure(POOL + template(pool_keep_s=15.0, open_files=4096))
        with kernel(tmp_path) as (_, kc):
            assert home.launches()[-1] == "created"
            assert value(kc, cells) == "4096"
        eventually(lambda: not set(old) & set(home.clones()), "the old clones are ended", 40)
        assert home.counters().get("sick", 0) == 0
        nothing_is_left(home)


def test_clones_that_a_template_no_longer_promises_are_ended(golden: Path, tmp_path: Path) -> None:
    """``pool_least`` of a template that was changed is nobody's wish any more."""
    least = template(pool_keep_s=2.0, pool_least=1)
    with pool_home(least) as home:
        home.plant(golden)
        with kernel(tmp_path):
            home.until_ready()
        old = home.clones()
        home.configure(POOL + template(pool_keep_s=2.0, open_files=4096))
        with kernel(tmp_path):
            assert home.launches()[-1] == "created"
        eventually(lambda: not set(old) & set(home.clones()), "the old clones are ended", 20)


@pytest.mark.slow
def test_a_pool_that_a_template_gives_up(golden: Path, tmp_path: Path) -> None:
    with pool_home(template(pool_keep_s=15.0)) as home:
        home.plant(golden)
        with kernel(tmp_path):
            home.until_ready()
        home.configure(POOL + template(pool_keep_s=15.0, pool_most=0))
        with kernel(tmp_path):
            assert home.launches()[-1] == "created"
            assert home.last_why() == "its template has no pool"
        eventually(lambda: not home.clones(), "its clones are ended", 40)


def test_clones_that_are_killed_while_they_wait(golden: Path, tmp_path: Path) -> None:
    """Thrown away, counted, replaced; the start that comes at that moment works."""
    with pool_home() as home:
        home.plant(golden)
        with kernel(tmp_path):
            home.until_ready()
        [killed] = home.clones()
        os.kill(killed, signal.SIGKILL)
        eventually(lambda: home.logged("clone ended"), "the death is noticed")
        assert home.counters()["sick"] == 1
        home.until_ready()
        [other] = home.clones()
        assert other != killed
        os.kill(other, signal.SIGKILL)
        with kernel(tmp_path):
            pass
        assert home.launches()[-1] in ("cloned", "claimed")
        assert not home.logged("golden is given up"), "clones that are killed say nothing of it"
        nothing_is_left(home)


@pytest.mark.slow
def test_a_clone_that_does_not_answer_its_claim(golden: Path, tmp_path: Path) -> None:
    """Stopped, as on a machine that swaps: after 10 s the start goes on without it."""
    with pool_home() as home:
        home.plant(golden)
        with kernel(tmp_path):
            home.until_ready()
        [(name, pid)] = home.unclaimed().items()
        for each in home.processes_of_sandbox(name):
            os.kill(each, signal.SIGSTOP)
        with kernel(tmp_path):
            assert home.launches()[-1] in ("cloned", "created")
            assert "could not be claimed" in home.last_why()
        assert home.logged("claim failed")
        assert not Path(f"/proc/{pid}").exists()
        nothing_is_left(home)


def test_a_clone_that_dies_in_its_claim(golden: Path, tmp_path: Path) -> None:
    """One that was restored for this very start: it goes on cold, and at once."""
    with faulty("kill-before-claim"), pool_home() as home:
        home.plant(golden)
        with kernel(tmp_path):
            assert home.launches() == ["created"]
            assert "could not be claimed" in home.last_why()
        assert home.logged("claim failed")
        home.until_ready()
        with kernel(tmp_path):
            assert home.launches()[-1] == "claimed"
        assert home.logged("launched")[0]["seconds"] < 6, "the death of the sandbox is known"
        nothing_is_left(home)


def test_a_waiting_clone_that_dies_in_its_claim(golden: Path, tmp_path: Path) -> None:
    with faulty("kill-before-claim"), pool_home() as home:
        home.plant(golden)
        home.pool()  # starts the daemon from here, with its fault
        home.build(tmp_path)  # there it is: only clones are made
        home.until_ready()
        with kernel(tmp_path):
            assert home.launches() == ["cloned"]
            assert "could not be claimed" in home.last_why()
        home.until_ready()
        with kernel(tmp_path):
            assert home.launches()[-1] == "claimed"
        nothing_is_left(home)


def test_a_golden_whose_clones_never_can_be_claimed(golden: Path, tmp_path: Path) -> None:
    """Every start works cold, and not every start tries: a golden that sick is given up."""
    with faulty("refuse-claims"), pool_home() as home:
        home.plant(golden)
        for _ in range(4):
            with kernel(tmp_path):
                assert home.launches()[-1] == "created"
        assert home.counters()["sick"] >= 3
        assert home.logged("golden is given up")


def test_daemon_stop_ends_clones(golden: Path, tmp_path: Path) -> None:
    with pool_home() as home:
        home.plant(golden)
        with kernel(tmp_path):
            home.until_ready()
        pids = home.clones()
        assert pids
        assert home.torpor("daemon", "stop").returncode == 0
        assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_daemon_stop_by_force_ends_clones_and_no_kernel(golden: Path, tmp_path: Path) -> None:
    with pool_home() as home:
        home.plant(golden)
        with kernel(tmp_path) as (km, kc):
            value(kc, "kept = 1; kept")
            home.until_ready()
            pids = home.clones()
            assert home.torpor("daemon", "stop", "--force").returncode == 0
            assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
            assert value(kc, "kept") == "1"
            assert km.is_alive()


def test_an_idle_daemon_ends_when_its_pool_is_empty(golden: Path, tmp_path: Path) -> None:
    config = "c.TorporDaemon.idle_exit_s = 1.0\n" + template(pool_keep_s=20.0)
    with pool_home(config) as home:
        home.plant(golden)
        began = time.monotonic()
        with kernel(tmp_path):
            home.until_ready()
        pid = home.daemon_pid()
        time.sleep(3)
        assert Path(f"/proc/{pid}").exists(), "clones wait for whoever comes next"
        eventually(lambda: not home.daemon_runs(), "the daemon ends", 40)
        assert time.monotonic() - began > 20, "they wait from the start of the last kernel on"
        assert home.logged("idle")
        assert home.incomplete() == []


@pytest.mark.slow
def test_clones_of_one_workspace_serve_no_other(golden: Path, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b", "c")]
    with pool_home() as home:
        home.plant(golden)
        for folder in folders:
            folder.mkdir()
            with kernel(folder):
                pass
        home.until_ready(3)
        for folder in reversed(folders):
            with kernel(folder):
                assert home.launches()[-1] == "claimed"


@pytest.mark.slow
def test_a_golden_that_is_removed_takes_its_clones_along(golden: Path, tmp_path: Path) -> None:
    with pool_home() as home:
        build = home.plant(golden)
        with kernel(tmp_path):
            home.until_ready()
        pids = home.clones()
        done = home.torpor("golden", "rm", build.parent.name[:8])
        assert done.returncode == 0, done.stderr
        assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
        assert not (build / "manifest.json").exists()
        with kernel(tmp_path):
            assert home.launches()[-1] in ("created", "cloned")


def test_looking_makes_nothing(runsc: Path) -> None:
    with pool_home() as home:
        assert home.pool()["shapes"] == []
        assert home.goldens() == {"goldens": [], "failures": []}
        assert not home.goldens_folder.exists()
