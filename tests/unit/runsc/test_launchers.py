"""Launchers that have started already are used, and nothing is left of those that are not."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from asyncio.subprocess import Process
from collections.abc import Iterator
from pathlib import Path

import pytest
from torpor.runsc import launchers
from torpor.runsc.launchers import Launchers

from tests.unit.processes import children

LABEL = "/the/home"
NOWHERE = ["join", "4194305", "-", "-", "/bin/true"]  # one more than the highest pid there can be


def words(pid: int) -> list[str]:
    """Give what is after the launcher on a command line, which is empty in the middle of an exec."""
    ends_at = time.monotonic() + 5.0
    while not (line := Path(f"/proc/{pid}/cmdline").read_text()) and time.monotonic() < ends_at:
        time.sleep(0.001)
    argv = line.split("\0")[:-1]
    return argv[argv.index(str(launchers.LAUNCHER)) + 1 :]


def filling() -> list[asyncio.Task[object]]:
    return [each for each in asyncio.all_tasks() if each.get_name() == "spare launchers"]


async def filled(before: set[int]) -> set[int]:
    """Wait until the spare launchers are there, and give them."""
    for task in filling():
        await task
    return {pid for pid in children() - before if words(pid)[:1] == ["wait"]}


async def last_words(process: Process) -> tuple[int | None, bytes]:
    said, _ = await process.communicate(b"")
    return process.returncode, said


async def killed(process: Process) -> None:
    process.kill()
    await process.communicate()


@pytest.fixture
def before() -> set[int]:
    return children()


@pytest.fixture(autouse=True)
def nothing_left(before: set[int]) -> Iterator[None]:
    yield
    assert children() <= before


@pytest.fixture(autouse=True)
def short_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launchers, "REST_S", 0.001)


@pytest.fixture
def endless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have launchers that do nothing, and do not end when nobody needs them any more."""
    launcher = tmp_path / "launcher"
    launcher.write_text("import time; time.sleep(30)")
    monkeypatch.setattr(launchers, "LAUNCHER", launcher)


@pytest.mark.usefixtures("endless")
async def test_none_is_made_ready_unasked(before: set[int]) -> None:
    some = Launchers()
    process = await some.start(["a", "b"])
    assert filling() == []
    assert children() - before == {process.pid}
    assert words(process.pid) == ["a", "b"]
    await some.aclose()
    assert process.returncode is None  # it is the caller's
    await killed(process)


async def test_the_second_was_there_before(before: set[int]) -> None:
    plain = await last_words(await Launchers().start(NOWHERE))
    assert plain[0] == 1
    assert plain[1].startswith(b"cannot enter the sandbox: ")
    some = Launchers(2, LABEL)
    assert await last_words(await some.start(NOWHERE)) == plain
    ready = await filled(before)
    assert len(ready) == 2
    assert all(words(pid) == ["wait", LABEL] for pid in ready)
    second = await some.start(NOWHERE)
    assert second.pid in ready
    assert await last_words(second) == plain
    again = await filled(before)
    assert len(again) == 2
    assert len(again - ready) == 1
    await some.aclose()


async def test_all_that_are_ready_are_used_before_another_is_started(before: set[int]) -> None:
    some = Launchers(2, LABEL)
    await last_words(await some.start(NOWHERE))
    ready = await filled(before)
    started = [await some.start(NOWHERE) for _ in range(3)]
    assert {each.pid for each in started[:2]} == ready
    assert started[2].pid not in ready
    for process in started:
        assert (await last_words(process))[0] == 1
    await some.aclose()


async def test_one_that_was_killed_is_not_used(before: set[int]) -> None:
    some = Launchers(1, LABEL)
    await last_words(await some.start(NOWHERE))
    [pid] = await filled(before)
    os.kill(pid, signal.SIGKILL)
    await some._ready[0].wait()
    process = await some.start(NOWHERE)
    assert process.pid != pid
    assert (await last_words(process))[0] == 1
    await some.aclose()


async def test_what_cannot_be_started_is_for_the_caller_to_know(
    before: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    some = Launchers(1, LABEL)
    with monkeypatch.context() as broken:
        broken.setattr(sys, "executable", "/nonexistent/python")
        for _ in range(2):
            with pytest.raises(FileNotFoundError):
                await some.start(NOWHERE)
            assert await filled(before) == set()
    await last_words(await some.start(NOWHERE))
    assert len(await filled(before)) == 1
    await some.aclose()


@pytest.mark.usefixtures("endless")
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("after_ms", [0, 1, 2, 3, 5, 8, 13, 50])
async def test_closed_at_any_moment_they_are_gone(
    before: set[int], after_ms: int, times: int
) -> None:
    some = Launchers(3, LABEL)
    process = await some.start(["a"])
    for _ in range(after_ms):
        await asyncio.sleep(0.001)
    for _ in range(times):
        await some.aclose()
        assert filling() == []
        assert children() - before == {process.pid}
    await killed(process)


@pytest.mark.usefixtures("endless")
async def test_all_that_are_ready_are_ended(before: set[int]) -> None:
    some = Launchers(3, LABEL)
    await killed(await some.start(["a"]))
    assert len(await filled(before)) == 3
    await some.aclose()
    assert children() <= before


@pytest.mark.usefixtures("endless")
async def test_closed_while_they_rest(before: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launchers, "REST_S", 3600.0)
    some = Launchers(3, LABEL)
    await killed(await some.start(["a"]))
    assert len(filling()) == 1
    await some.aclose()
    assert filling() == []
    assert children() <= before


@pytest.mark.usefixtures("endless")
@pytest.mark.parametrize("longest_s", [3600.0, 0.3])
async def test_whatever_is_started_has_the_processors(
    before: set[int], monkeypatch: pytest.MonkeyPatch, longest_s: float
) -> None:
    """One started every tenth of a second: others are made ready when that ends, or after a while."""
    monkeypatch.setattr(launchers, "REST_S", 0.6)  # six times as long as the pause between two
    monkeypatch.setattr(launchers, "LONGEST_REST_S", longest_s)
    some = Launchers(1, LABEL)
    started, ready = [], set[int]()
    while len(started) < 8 and not ready:
        started.append(await some.start(["a"]))
        await asyncio.sleep(0.1)
        ready = children() - before - {each.pid for each in started}
    assert bool(ready) == (longest_s == 0.3)
    assert len(await filled(before | {each.pid for each in started})) == 1
    await some.aclose()
    for process in started:
        await killed(process)


@pytest.mark.usefixtures("endless")
async def test_closed_before_anything(before: set[int]) -> None:
    await Launchers(3, LABEL).aclose()
    assert children() <= before


async def test_after_the_end_there_are_plain_ones(before: set[int]) -> None:
    some = Launchers(2, LABEL)
    await last_words(await some.start(NOWHERE))
    await filled(before)
    await some.aclose()
    process = await some.start(NOWHERE)
    assert filling() == []
    assert children() - before <= {process.pid}
    assert (await last_words(process))[0] == 1


@pytest.mark.parametrize("told", [b"", b"\x05\0", b"\x05\0\0\0[\x01"])
async def test_one_that_nobody_needs_any_more_ends(told: bytes) -> None:
    """Its input ends, perhaps in the middle of an order."""
    process = await Launchers().start(["wait", LABEL])
    assert process.stdin is not None
    process.stdin.write(told)
    assert await last_words(process) == (0, b"")
