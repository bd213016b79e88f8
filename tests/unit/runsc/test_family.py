"""The processes that descend from one, and stopping them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

import pytest
from torpor.backends.local_freezer import go_on, stop
from torpor.errors import SandboxGone
from torpor.runsc import pidfd
from torpor.runsc.family import family

from tests.unit.daemon.storing import until
from tests.unit.handles import handle

BUSY = """
import os
for _ in range(3):
    if os.fork() == 0:
        break
print(flush=True)
while True:
    pass
"""


@pytest.fixture
def parent():
    with subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE) as process:
        for _ in range(4):
            assert process.stdout is not None
            process.stdout.readline()
        yield process.pid
        for each in reversed(family(process.pid)):
            subprocess.run(["kill", "-KILL", str(each.pid)], check=True)


def used_s(pid: int) -> float:
    return sum(each.cpu_s for each in family(pid))


async def test_frozen_ones_use_nothing_and_go_on(parent: int) -> None:
    sandbox = handle(parent, pidfd.start_ticks(parent))
    assert len(family(parent)) == 4
    assert family(parent)[0].pid == parent
    assert await stop(sandbox)
    assert await stop(sandbox)
    before = used_s(parent)
    await asyncio.sleep(0.3)
    assert used_s(parent) == before
    go_on(sandbox)
    go_on(sandbox)
    await until(lambda: used_s(parent) > before)


async def test_somebody_else_with_the_same_number_is_left_alone(parent: int) -> None:
    start = pidfd.start_ticks(parent)
    assert start is not None
    stranger = handle(parent, start + 1)
    with pytest.raises(SandboxGone):
        await stop(stranger)
    with pytest.raises(SandboxGone):
        go_on(stranger)
    assert {each.state for each in family(parent)} <= {"R", "S"}


def test_nobody() -> None:
    assert family(2**22 + 1) == []


GRANDCHILD = """
import os
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print(flush=True)
        while True:
            pass
import time
time.sleep(1000)
"""


async def test_what_computes_below_the_sentry_is_never_stopped_and_told() -> None:
    argv = [sys.executable, "-c", GRANDCHILD]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:  # noqa: ASYNC220
        assert process.stdout is not None
        process.stdout.readline()
        try:
            sandbox = handle(process.pid, pidfd.start_ticks(process.pid))
            assert not await stop(sandbox)
            assert [each.state for each in family(process.pid)] == ["T", "T", "R"]
            go_on(sandbox)
            await until(lambda: "T" not in [each.state for each in family(process.pid)])
        finally:
            for each in reversed(family(process.pid)):
                os.kill(each.pid, signal.SIGKILL)
