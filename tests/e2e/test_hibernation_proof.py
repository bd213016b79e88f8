"""The first cell after a night is the health check of its kernel: it is done once, or who asked is told."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from queue import Empty

import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager
from torpor.errors import SandboxError

from tests.e2e import dying
from tests.e2e.cells import Ran, drain, reply_to, tell, value
from tests.e2e.sleeping import (
    daemon_pid,
    do,
    generations,
    own_kernel,
    sandbox_pids,
    snapshots,
    state,
    status,
    wait,
    wait_status,
)
from tests.e2e.stores import QUIET, torpor
from tests.home import start, stop, torpor_home
from tests.world import processes_of

pytestmark = [pytest.mark.runsc, pytest.mark.timeout(120)]

Pair = tuple[KernelManager, BlockingKernelClient]
ALL = 10_000
# A kernel that can be told, through its workspace, to stand still before it says anything of a message.
ILL = """
import os, signal, threading, time
def fall_ill():
    if os.path.exists("stop"):
        os.kill(os.getpid(), signal.SIGSTOP)
    while os.path.exists("wait"):
        open("taken", "w").close()
        if os.path.exists("die"):
            os.kill(os.getpid(), 9)
        time.sleep(0.01)
def watch():
    while True:
        if os.path.exists("stop"):
            fall_ill()
        time.sleep(0.005)
threading.Thread(target=watch, daemon=True).start()
kernel = get_ipython().kernel
take = kernel.set_parent
def taken(*args, **options):
    fall_ill()
    return take(*args, **options)
kernel.set_parent = taken
x = 0
"""
COUNT = """
with open("ran", "a") as file:
    file.write("once\\n")
(x := x + 1)
"""
DIE = """
with open("ran", "a") as file:
    file.write("once\\n")
os.kill(os.getpid(), 9)
"""


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    with torpor_home(QUIET + dying.config()) as folder:
        yield folder


@pytest.fixture
def pair(home: Path, workspace: Path) -> Iterator[Pair]:
    with own_kernel(home, workspace) as (km, kc):
        tell(kc, ILL)
        try:
            yield km, kc
        finally:
            for name in ("die", "marks"):
                (home / name).unlink(missing_ok=True)
            for name in ("stop", "wait", "die"):
                (workspace / name).unlink(missing_ok=True)
    assert snapshots() == []


def lines(workspace: Path) -> int:
    """Give how often a cell has run that says so in a file."""
    ran = workspace / "ran"
    return ran.read_text().count("once\n") if ran.exists() else 0


def told_of(km: KernelManager) -> tuple[str, str]:
    """Give what ``torpor kernels`` says of a kernel: how it is, and why."""
    [found] = [each for each in torpor("kernels")["kernels"] if each["kernel_id"] == km.kernel_id]
    return found["status"], found["reason"] or ""


def test_a_kernel_that_does_not_go_on(
    home: Path, pair: Pair, workspace: Path, tmp_path: Path
) -> None:
    km, kc = pair
    do(km, "hibernate")
    tell(kc, "x = 41")
    do(km, "hibernate")
    kept = generations(km)
    assert kept == [1, 2]
    (tmp_path / "other").mkdir()
    other = start(tmp_path / "other")
    theirs = set(sandbox_pids(home))
    try:
        tell(other[1], "y = 6")
        (workspace / "stop").touch()
        began = time.monotonic()
        asked = [kc.execute(COUNT) for _ in range(2)]
        wait(lambda: status(km) == "waking", lambda: status(km))
        assert value(other[1], "y * 7") == "42"
        for number, msg_id in enumerate(asked):
            ran = Ran(reply_to(kc, msg_id, 40))
            assert number or 9 < time.monotonic() - began < 25
            drain(kc, msg_id, ran, 20)
            assert (ran.reply["status"], ran.error) == ("error", "WakeFailed")
            assert "could not be woken" in ran.reply["evalue"]
            assert "restart the kernel to start fresh" in ran.reply["traceback"][-1]
            assert [each["content"]["evalue"] for each in ran.of_type("error")] == [
                ran.reply["evalue"]
            ]
        with pytest.raises(Empty):
            kc.get_shell_msg(timeout=0.2)
        wait_status(km, "hibernated")
        [how, why] = told_of(km)
        assert how == "hibernated"
        assert "did not take up what it was asked" in why
        wait(lambda: set(sandbox_pids(home)) <= theirs, lambda: str(sandbox_pids(home)))
        assert generations(km) == kept
        assert lines(workspace) == 0
        assert value(other[1], "y * 7") == "42"
        assert km.is_alive()
        (workspace / "stop").unlink()  # and it goes on from where it was
        assert value(kc, COUNT) == "42"
        assert lines(workspace) == 1
        wait_status(km, "running")
        assert told_of(km)[1] == ""
        wait(lambda: generations(km) == [2], lambda: str(generations(km)))
    finally:
        stop(*other)


@pytest.mark.slow
def test_a_wake_for_nobody_is_checked_as_well(home: Path, pair: Pair, workspace: Path) -> None:
    km, kc = pair
    tell(kc, "x = 41")
    do(km, "hibernate")
    kept = generations(km)
    (workspace / "stop").touch()
    began = time.monotonic()
    with pytest.raises(SandboxError, match="does not answer"):
        do(km, "wake")
    assert 9 < time.monotonic() - began < 25
    assert told_of(km)[0] == "hibernated"
    assert "could not be woken" in told_of(km)[1]
    wait(lambda: not sandbox_pids(home), lambda: str(sandbox_pids(home)))
    assert generations(km) == kept
    (workspace / "stop").unlink()
    assert do(km, "wake")["status"] == "running"
    assert value(kc, COUNT) == "42"


@pytest.mark.parametrize("what", ["kernel", "sandbox"])
def test_one_that_ends_before_it_says_anything(
    home: Path, pair: Pair, workspace: Path, what: str
) -> None:
    """Who asked need not wait until its time is over."""
    km, kc = pair
    tell(kc, "x = 41")
    do(km, "hibernate")
    kept = generations(km)
    asked = taken(km, kc, workspace, COUNT)
    began = time.monotonic()
    if what == "kernel":
        (workspace / "die").touch()
    else:
        for pid in sandbox_pids(home):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    reply = reply_to(kc, asked, 20)
    assert time.monotonic() - began < 8  # its time would be 10
    assert "could not be woken" in reply["evalue"]
    assert ("the kernel has died" if what == "kernel" else "its sandbox ended") in reply["evalue"]
    wait_status(km, "hibernated")
    wait(lambda: not sandbox_pids(home), lambda: str(sandbox_pids(home)))
    assert km.is_alive()
    assert generations(km) == kept
    assert lines(workspace) == 0
    for name in ("die", "wait"):
        (workspace / name).unlink(missing_ok=True)
    assert value(kc, COUNT) == "42"
    assert lines(workspace) == 1


def taken(km: KernelManager, kc: BlockingKernelClient, workspace: Path, code: str) -> str:
    """Ask a kernel that sleeps to execute ``code``; it has got that, and waits before it says so."""
    (workspace / "wait").touch()
    msg_id = kc.execute(code)
    wait((workspace / "taken").exists, lambda: str(state(km)))
    assert status(km) == "waking"
    return msg_id


@pytest.mark.parametrize("number", range(2))
def test_a_cell_that_kills_its_kernel(home: Path, pair: Pair, workspace: Path, number: int) -> None:
    """It has died as any other, or could not be woken: who asked hears of it, and it is done once."""
    km, kc = pair
    tell(kc, "x = 41")
    do(km, "hibernate")
    asked = kc.execute(DIE)
    behind = kc.execute(COUNT)
    refused = await_end(km, kc, asked)
    print("refused" if refused else "died")
    assert lines(workspace) == 1
    if refused:
        assert reply_to(kc, behind, 10)["ename"] == "WakeFailed"
        wait_status(km, "hibernated")
        wait(lambda: not sandbox_pids(home), lambda: str(sandbox_pids(home)))
        assert lines(workspace) == 1
        assert value(kc, COUNT) == "42"
        assert lines(workspace) == 2
    else:
        assert not km.is_alive()
    km.restart_kernel(now=True)
    kc.wait_for_ready(timeout=30)
    assert value(kc, "'x' in globals()") == "False"
    assert lines(workspace) == 1 + refused
    do(km, "hibernate")
    assert value(kc, "1 + 1") == "2"


def await_end(km: KernelManager, kc: BlockingKernelClient, asked: str) -> bool:
    """Wait until somebody says what has become of a cell; whether that was a reply."""
    until = time.monotonic() + 20
    exited_at = 0.0
    while time.monotonic() < until:
        with suppress(Empty):
            reply = kc.get_shell_msg(timeout=0.05)
            if reply["parent_header"].get("msg_id") == asked:
                assert reply["content"]["ename"] == "WakeFailed", reply["content"]
                return True
        exited_at = (exited_at or time.monotonic()) if status(km) == "exited" else 0.0
        if exited_at and time.monotonic() > exited_at + 0.5:
            return False
    raise AssertionError(f"nobody says what has become of it: {state(km)}")


@pytest.mark.parametrize("where", ["after put_kernel", "before call release"])
def test_killed_between_the_row_and_the_cell(
    home: Path, pair: Pair, workspace: Path, where: str
) -> None:
    """The next torpord passes what waits, and only that."""
    km, kc = pair

    def once(steps: int) -> list[str]:
        do(km, "hibernate")
        assert status(km) == "hibernated"
        (home / "marks").unlink(missing_ok=True)
        before = lines(workspace)
        (home / "die").write_text(str(steps))
        assert value(kc, COUNT, timeout_s=20) == str(before + 1)
        assert lines(workspace) == before + 1
        if steps == ALL:
            wait(lambda: "after answered" in marks(), lambda: str(marks()))
        (home / "die").unlink(missing_ok=True)
        km.is_alive()  # as a server asks every few seconds
        wait_status(km, "running")
        return marks()

    def marks() -> list[str]:
        return (home / "marks").read_text().splitlines()

    steps = once(ALL)
    at = steps.index("before call release")
    assert steps[at - 1] == "after put_kernel"
    pid = daemon_pid(home)
    steps = once(at if where == "before call release" else at - 1)
    assert steps[-1] == where
    assert daemon_pid(home) != pid
    with pytest.raises(Empty):
        kc.get_shell_msg(timeout=0.2)
    assert value(kc, COUNT) == "3"
    assert lines(workspace) == 3


def test_killed_before_the_proof(home: Path, pair: Pair, workspace: Path) -> None:
    """The kernel has the cell, and has said nothing of it yet."""
    km, kc = pair
    do(km, "hibernate")
    asked, behind = taken(km, kc, workspace, COUNT), kc.execute(COUNT)
    os.kill(daemon_pid(home), signal.SIGKILL)
    assert km.is_alive()  # says the next one
    assert lines(workspace) == 0
    (workspace / "wait").unlink()
    for msg_id in (asked, behind):
        assert reply_to(kc, msg_id, 10)["status"] == "ok"
    assert value(kc, "x") == "2"
    assert lines(workspace) == 2
    assert status(km) == "running"
    with pytest.raises(Empty):
        kc.get_shell_msg(timeout=0.2)
    do(km, "hibernate")
    assert value(kc, COUNT) == "3"


@pytest.mark.slow
def test_killed_before_a_proof_that_does_not_come_in_time(
    home: Path, pair: Pair, workspace: Path
) -> None:
    """Nobody is left to decide: it is awake as it is, and whatever it does at last is heard."""
    km, kc = pair
    do(km, "hibernate")
    asked = taken(km, kc, workspace, COUNT)
    os.kill(daemon_pid(home), signal.SIGKILL)
    time.sleep(11)
    assert km.is_alive()
    (workspace / "wait").unlink()
    assert reply_to(kc, asked, 10)["status"] == "ok"
    assert value(kc, COUNT) == "2"
    do(km, "hibernate")
    assert value(kc, COUNT) == "3"
    assert lines(workspace) == 3


def test_the_bridge_dies_before_the_proof(home: Path, pair: Pair, workspace: Path) -> None:
    """The kernel is awake then, and answers through the next one."""
    km, kc = pair
    do(km, "hibernate")
    asked = taken(km, kc, workspace, COUNT)
    [pid] = [p for p, c in processes_of(home).items() if "torpor.bridge" in c]
    os.kill(pid, signal.SIGKILL)
    wait_status(km, "running")
    (workspace / "wait").unlink()
    assert reply_to(kc, asked, 20)["status"] == "ok"
    assert value(kc, COUNT) == "2"
    assert lines(workspace) == 2


def test_slow_is_not_ill(pair: Pair, workspace: Path) -> None:
    """A kernel that needs a moment, and one whose cell is long."""
    km, kc = pair
    do(km, "hibernate")
    asked = taken(km, kc, workspace, COUNT + "\ntime.sleep(1)")
    time.sleep(2)
    assert status(km) == "waking"
    (workspace / "wait").unlink()
    wait_status(km, "running")
    assert reply_to(kc, asked, 10)["status"] == "ok"
    assert value(kc, "x") == "1"
    assert lines(workspace) == 1
