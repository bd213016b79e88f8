import asyncio
import os
import socket
import subprocess
import sys
from dataclasses import replace

import pytest
from torpor.daemon.processes import (
    ExitWatch,
    ExitWatches,
    Process,
    boot_id,
    peer_of,
    peer_process,
    process_of,
    start_ticks,
)

SLEEPER = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]


@pytest.fixture
def sleeper():
    with subprocess.Popen(SLEEPER) as child:
        yield child
        child.kill()


def test_we_are_alive():
    me = process_of(os.getpid())
    assert me is not None
    assert me.alive()
    assert Process.from_json(me.to_json()) == me
    assert me.boot_id == boot_id()


def test_another_start_or_boot_is_another_process():
    me = process_of(os.getpid())
    assert not replace(me, start_ticks=me.start_ticks + 1).alive()
    assert not replace(me, boot_id="before").alive()


def test_a_zombie_is_dead(sleeper):
    child = process_of(sleeper.pid)
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert not child.alive()
    assert process_of(sleeper.pid) is None
    sleeper.wait()
    assert start_ticks(sleeper.pid) is None


async def test_an_exit_is_told_once(sleeper):
    told = []
    watch = ExitWatch(process_of(sleeper.pid), lambda: told.append(1))
    await asyncio.sleep(0.02)
    assert told == []
    sleeper.kill()
    async with asyncio.timeout(3):
        while not told:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.02)
    assert told == [1]
    watch.close()
    watch.close()


async def test_one_that_is_dead_already_is_told_in_the_next_turn(sleeper):
    gone = process_of(sleeper.pid)
    reused = replace(gone, start_ticks=1)
    sleeper.kill()
    sleeper.wait()
    told = []
    for process in (gone, reused):
        ExitWatch(process, lambda: told.append(1))
    assert told == []
    await asyncio.sleep(0.01)
    assert told == [1, 1]


async def test_closed_in_time_nothing_is_told(sleeper):
    told = []
    for process in (process_of(sleeper.pid), Process(2**22 + 5, 1, boot_id())):
        ExitWatch(process, lambda: told.append(1)).close()
    sleeper.kill()
    await asyncio.sleep(0.05)
    assert told == []


def test_who_is_at_the_other_end(tmp_path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen()
        code = f"import socket; s=socket.socket(socket.AF_UNIX); s.connect({str(tmp_path / 's')!r})"
        code += "; s.recv(1)"
        with subprocess.Popen([sys.executable, "-S", "-c", code]) as child:
            end, _ = server.accept()
            with end:
                assert peer_of(end).uid == os.geteuid()
                assert peer_process(end) == process_of(child.pid)
                child.kill()
                child.wait()
                assert peer_process(end) is None


async def test_many_watch_one_process_with_one_descriptor(sleeper):
    process, told = process_of(sleeper.pid), []
    before = len(os.listdir("/proc/self/fd"))
    watches = ExitWatches()
    first, second, third = (
        watches.watch(process, lambda each=each: told.append(each)) for each in range(3)
    )
    assert len(os.listdir("/proc/self/fd")) == before + 1
    second.close()
    second.close()
    sleeper.kill()
    async with asyncio.timeout(3):
        while len(told) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert told == [0, 2]
    for each in (first, second, third):
        each.close()
    assert len(os.listdir("/proc/self/fd")) == before
