"""Sandboxes that stand ready for kernels that sleep: used when they fit, never missed when they do not."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager
from torpor.errors import SandboxError

from tests.e2e import dying
from tests.e2e.cells import reply_to, run, tell, value
from tests.e2e.sleeping import daemon_pid, do, events, own_kernel, sandbox_pids, state, status, wait
from tests.home import start, stop, torpor_home

pytestmark = [pytest.mark.runsc, pytest.mark.timeout(120)]

CONFIG = """
c.Torpor.templates = {"default": {"freeze_after_s": 0, "hibernate_after_s": 0}}
c.TorporDaemon.wake_ahead = 1
"""


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    with torpor_home(CONFIG) as folder:
        yield folder


@pytest.fixture
def pair(home: Path, tmp_path: Path) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    km, kc = start(tmp_path)
    yield km, kc
    stop(km, kc)
    wait(lambda: not folders(home), lambda: str(folders(home)))
    assert sandbox_pids(home) == []


Pair = tuple[KernelManager, BlockingKernelClient]


def folders(home: Path) -> set[str]:
    """Give the ids of all sandboxes, those that stand ready among them."""
    return set(os.listdir(home / "state/k"))


def ready(home: Path, km: KernelManager) -> str:
    """Put a kernel to sleep; give the id of the sandbox that stands ready for it then."""
    before = len(events(home, "sandbox ahead"))
    do(km, "hibernate")

    def news() -> list[dict[str, Any]]:
        return events(home, "sandbox ahead")[before:]

    wait(lambda: bool(news()), lambda: str(events(home, "no sandbox ahead")))
    assert news()[-1]["kernel_id"] == km.kernel_id
    return str(news()[-1]["sandbox_id"])


def test_many_nights(home: Path, pair: Pair) -> None:
    km, kc = pair
    tell(
        kc,
        "import threading, time; nights = []; t = threading.Thread(target=time.sleep, args=(99,))",
    )
    tell(kc, "t.start(); out = open('/tmp/x', 'w+'); name = __import__('socket').gethostname()")
    for night in range(4):
        sandbox_id = ready(home, km)
        assert status(km) == "hibernated"
        assert folders(home) == {sandbox_id}
        tell(kc, f"nights.append({night}); out.write('x')")
        assert state(km)["sandbox"]["id"] == sandbox_id
        assert folders(home) == {sandbox_id}
    assert (
        value(kc, "nights, t.is_alive(), out.tell(), name == __import__('socket').gethostname()")
        == "([0, 1, 2, 3], True, 4, True)"
    )
    assert events(home, "sandbox ahead not used") == []


def test_freeze_fork_and_restart_after_such_a_night(home: Path, pair: Pair) -> None:
    km, kc = pair
    tell(kc, "x = 41")
    ready(home, km)
    assert value(kc, "x + 1") == "42"
    do(km, "freeze")
    assert value(kc, "x + 1") == "42"
    do(km, "hibernate")
    assert value(kc, "x + 1") == "42"  # in no sandbox made ahead: it came too early
    km.restart_kernel(now=True)
    kc.wait_for_ready(timeout=30)
    assert run(kc, "x").error == "NameError"


@pytest.mark.parametrize("pause_s", [0.0, 0.32, 0.4])
def test_who_comes_before_it_is_ready(home: Path, pair: Pair, pause_s: float) -> None:
    km, kc = pair
    tell(kc, "x = 1")
    do(km, "hibernate")
    time.sleep(pause_s)
    assert value(kc, "x + 1") == "2"
    assert folders(home) == {state(km)["sandbox"]["id"]}


def test_it_has_died_meanwhile(home: Path, pair: Pair) -> None:
    km, kc = pair
    tell(kc, "x = 1")
    sandbox_id = ready(home, km)
    for pid in sandbox_pids(home):
        with suppress(ProcessLookupError):  # one may end with another
            os.kill(pid, signal.SIGKILL)
    assert value(kc, "x + 1") == "2"
    assert state(km)["sandbox"]["id"] != sandbox_id
    wait(lambda: len(folders(home)) == 1, lambda: str(folders(home)))


def test_only_as_many_as_asked_for(home: Path, pair: Pair, tmp_path: Path) -> None:
    km, kc = pair
    tell(kc, "x = 1")
    first = ready(home, km)
    (tmp_path / "other").mkdir()
    km2, kc2 = start(tmp_path / "other")
    try:
        tell(kc2, "x = 2")
        second = ready(home, km2)
        wait(lambda: folders(home) == {second}, lambda: str(folders(home)))
        assert value(kc, "x") == "1"
        assert value(kc2, "x") == "2"
        assert state(km)["sandbox"]["id"] != first
        assert state(km2)["sandbox"]["id"] == second
    finally:
        stop(km2, kc2)


def test_who_looks_has_it_made(home: Path, pair: Pair, tmp_path: Path) -> None:
    km, kc = pair
    tell(kc, "x = 1")
    first = ready(home, km)
    (tmp_path / "other").mkdir()
    km2, kc2 = start(tmp_path / "other")
    try:
        second = ready(home, km2)
        wait(lambda: folders(home) == {second}, lambda: str(folders(home)))
        assert reply_to(kc, kc.kernel_info(), 10)["status"] == "ok"

        def of_a_third() -> set[str]:
            found = folders(home)
            return found if len(found) == 1 and not found & {first, second} else set()

        wait(lambda: bool(of_a_third()), lambda: str(folders(home)))
        [third] = of_a_third()
        assert status(km) == status(km2) == "hibernated"
        assert value(kc, "x") == "1"
        assert state(km)["sandbox"]["id"] == third
    finally:
        stop(km2, kc2)


def test_shut_down_while_it_stands_ready(home: Path, tmp_path: Path) -> None:
    km, kc = start(tmp_path)
    ready(home, km)
    stop(km, kc)
    wait(lambda: not folders(home), lambda: str(folders(home)))
    assert sandbox_pids(home) == []


def test_a_damaged_snapshot_is_refused_all_the_same(home: Path, pair: Pair) -> None:
    km, kc = pair
    ready(home, km)
    [pages] = (home / "state/snapshots" / str(km.kernel_id)).glob("*/image/pages.img")
    with pages.open("r+b") as file:
        file.seek(pages.stat().st_size // 2)
        file.write(b"no such thing")
    assert run(kc, "1").reply["status"] == "error"
    with pytest.raises(SandboxError, match="damaged"):
        do(km, "wake")
    assert status(km) == "hibernated"


def test_the_daemon_dies_before_it_has_paused_one(tmp_path: Path) -> None:
    """Its row says so already, and runsc, which has only created it, is asked to have it go on."""
    with (
        torpor_home(CONFIG + dying.config()) as home,
        own_kernel(home, tmp_path / "ws") as (km, kc),
    ):
        tell(kc, "x = 1")
        ready(home, km)
        assert value(kc, "x + 1") == "2"
        before = daemon_pid(home)
        (home / "die").write_text("1")
        with suppress(SandboxError):  # whoever asks may find the next daemon
            do(km, "hibernate")
        (home / "die").unlink(missing_ok=True)
        assert value(kc, "x + 2") == "3"
        assert daemon_pid(home) != before
        assert not events(home, "sandbox does not go on")


def test_the_daemon_dies(home: Path, pair: Pair) -> None:
    km, kc = pair
    tell(kc, "x = 1")
    sandbox_id = ready(home, km)
    os.kill(daemon_pid(home), signal.SIGKILL)
    wait(lambda: not sandbox_pids(home), lambda: str(sandbox_pids(home)))
    assert status(km) == "hibernated"  # says the next daemon
    wait(lambda: sandbox_id not in folders(home), lambda: str(folders(home)))
    assert value(kc, "x + 1") == "2"
    sandbox_id = ready(home, km)
    assert value(kc, "x + 1") == "2"
    os.kill(daemon_pid(home), signal.SIGKILL)
    assert value(kc, "x + 2") == "3"  # it lives on, as any other
    assert state(km)["sandbox"]["id"] == sandbox_id
