"""torpord dies while kernels sleep: who holds only a connection file still gets an answer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager

from tests.e2e.cells import run, tell, value, wait_ready
from tests.e2e.sleeping import daemon_pid, daemons, do, events, status, wait
from tests.home import start, stop, torpor_home
from tests.world import processes_of

pytestmark = [pytest.mark.runsc, pytest.mark.timeout(120)]

QUIET = 'c.Torpor.templates = {"default": {"freeze_after_s": 0, "hibernate_after_s": 0}}\n'


@pytest.fixture
def home() -> Iterator[Path]:
    with torpor_home(QUIET) as folder:
        yield folder


@contextmanager
def asleep(folder: Path) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    """A hibernated kernel, its x is 1, and a client that knows its connection file and no more."""
    km, kc = start(folder)
    agent = BlockingKernelClient(connection_file=km.connection_file)
    agent.load_connection_file()
    try:
        tell(kc, "x = 1")
        do(km, "hibernate")
        agent.start_channels()
        wait_ready(agent)  # answered while it sleeps
        yield km, agent
    finally:
        agent.stop_channels()
        stop(km, kc)


def kill_daemon(home: Path) -> int:
    pid = daemon_pid(home)
    os.kill(pid, signal.SIGKILL)
    wait(lambda: pid not in daemons(home), lambda: str(daemons(home)))
    return pid


def test_an_agent_wakes_a_kernel_whose_daemon_has_died(home: Path, tmp_path: Path) -> None:
    with asleep(tmp_path) as (km, agent):
        killed = kill_daemon(home)
        time.sleep(2)
        assert daemons(home) == [], "nobody wants anything"
        began = time.monotonic()
        assert run(agent, "x += 1; x", timeout_s=20).result == "2"
        print(f"answered after {time.monotonic() - began:.2f} s")
        assert value(agent, "x") == "2", "once"
        [pid] = daemons(home)
        assert pid != killed
        assert status(km) == "running"
        do(km, "hibernate")
        assert value(agent, "x") == "2"


@pytest.mark.parametrize(
    "after_s",
    [0.0, 0.05, *(pytest.param(after_s, marks=pytest.mark.slow) for after_s in (0.01, 0.1, 0.2))],
)
def test_a_message_that_came_just_before(home: Path, tmp_path: Path, after_s: float) -> None:
    with asleep(tmp_path) as (_, agent):
        pid, asked_at = daemon_pid(home), time.monotonic()
        msg_id = agent.execute("x += 1; x")
        time.sleep(after_s)
        os.kill(pid, signal.SIGKILL)
        took_s = time.monotonic() - asked_at
        while True:
            reply = agent.get_shell_msg(timeout=20)
            if reply["parent_header"].get("msg_id") == msg_id:
                break
        assert reply["content"]["status"] == "ok", reply["content"]
        assert value(agent, "x") == "2", "once"
        # After so long it may have been awake already, and need no daemon.
        assert len(daemons(home)) in ([1] if took_s < 0.1 else [0, 1])


def test_a_daemon_that_was_stopped_stays_so(home: Path, tmp_path: Path) -> None:
    with asleep(tmp_path) as (km, agent):
        stopped = [sys.executable, "-m", "torpor", "daemon", "stop", "--force"]
        subprocess.run(stopped, check=True, timeout=30)
        wait(lambda: not daemons(home), lambda: str(daemons(home)))
        msg_id = agent.execute("x += 1; x")
        time.sleep(3)
        assert daemons(home) == []
        assert status_after_start(km) == "hibernated"  # which starts it
        while agent.get_shell_msg(timeout=20)["parent_header"].get("msg_id") != msg_id:
            pass
        assert value(agent, "x") == "2"


def status_after_start(km: KernelManager) -> str:
    subprocess.run([sys.executable, "-m", "torpor", "daemon", "start"], check=True, timeout=30)
    return "hibernated" if status(km) in ("hibernated", "waking", "running") else status(km)


@pytest.mark.slow
def test_a_daemon_that_cannot_start(home: Path, tmp_path: Path) -> None:
    """A few attempts, then an error for whoever waits; the kernel sleeps on and can be woken later."""
    with asleep(tmp_path) as (_, agent):
        kill_daemon(home)
        config = home / "config/torpor_config.py"
        good = config.read_text()
        config.write_text("this is no python\n")
        reply = run(agent, "x += 1; x", timeout_s=100).reply
        assert reply["status"] == "error"
        assert "could not be started" in reply["evalue"]
        assert daemons(home) == []
        config.write_text(good)
        assert value(agent, "x", timeout_s=20) == "1"
        assert len(events(home, "started")) == 2


def test_the_daemon_that_was_started_holds_nothing_of_the_bridge(
    home: Path, tmp_path: Path
) -> None:
    with asleep(tmp_path) as (_, agent):
        kill_daemon(home)
        assert value(agent, "x", timeout_s=20) == "1"
        [pid] = daemons(home)
        bridge = next(p for p, line in processes_of(home).items() if "torpor.bridge" in line)
        both = set(descriptors(pid)) & set(descriptors(bridge))
        assert {each for each in both if "socket:" in each or "pipe:" in each} == set()
        wait(lambda: not zombies_of(bridge), lambda: str(zombies_of(bridge)))


def descriptors(pid: int) -> list[str]:
    folder, found = f"/proc/{pid}/fd", []
    for fd in os.listdir(folder):
        with suppress(OSError):  # closed meanwhile
            found.append(os.readlink(f"{folder}/{fd}"))
    return found


def zombies_of(pid: int) -> list[str]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    found = []
    for child in children:
        with suppress(OSError):  # reaped meanwhile
            if ") Z " in Path(f"/proc/{child}/stat").read_text():
                found.append(child)
    return found
