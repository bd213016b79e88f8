"""Processes are known by pid and start time; strangers are left alone."""

# ruff: noqa: ASYNC222 - these waits return at once

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from torpor.runsc import pidfd

CHILD = [sys.executable, "-I", "-S", "-c", "import sys; sys.stdin.read()"]


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(CHILD, stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def _started(child: subprocess.Popen[bytes]) -> int:
    started = pidfd.start_ticks(child.pid)
    assert started is not None
    return started


def test_start_is_known_and_does_not_change() -> None:
    assert pidfd.start_ticks(os.getpid()) == pidfd.start_ticks(os.getpid())
    assert pidfd.start_ticks(1 << 23) is None


async def test_zombies_are_gone(child: subprocess.Popen[bytes]) -> None:
    started = _started(child)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert pidfd.start_ticks(child.pid) is None
    assert await pidfd.ended(child.pid, started + 1) is None
    assert await pidfd.ended(child.pid, started) == -signal.SIGKILL
    assert await pidfd.ended(child.pid, started) is None
    with pytest.raises(ChildProcessError):
        os.waitpid(child.pid, os.WNOHANG)


async def test_end_is_seen_with_its_code(child: subprocess.Popen[bytes]) -> None:
    waiting = asyncio.create_task(pidfd.ended(child.pid, _started(child)))
    await asyncio.sleep(0)
    child.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(waiting, 5) == -signal.SIGTERM


async def test_another_process_with_that_pid_is_not_touched(
    child: subprocess.Popen[bytes],
) -> None:
    other = _started(child) + 1
    assert await pidfd.ended(child.pid, other) is None
    assert await pidfd.kill(child.pid, other, within_s=1)
    assert child.poll() is None


async def test_kill_waits_until_it_is_gone(child: subprocess.Popen[bytes]) -> None:
    started = _started(child)
    assert await pidfd.kill(child.pid, started, within_s=5)
    assert pidfd.start_ticks(child.pid) is None
    assert await pidfd.kill(child.pid, started, within_s=5)


async def test_reaped_collects_a_dying_child(child: subprocess.Popen[bytes]) -> None:
    assert child.stdin is not None
    child.stdin.close()
    await pidfd.reaped(child.pid)
    await pidfd.reaped(child.pid)
    with pytest.raises(ChildProcessError):
        os.waitpid(child.pid, os.WNOHANG)
