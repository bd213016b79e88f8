"""What the launcher says becomes an error that tells what to do."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from torpor.errors import LaunchError
from torpor.runsc.launchers import Launchers
from torpor.runsc.spawn import Spawned, _divided, _enter, failure


@pytest.mark.parametrize(
    ("report", "message", "hint"),
    [
        (
            b"error namespace 1 user namespace: Operation not permitted",
            "(namespace): user namespace: Operation",
            "switched off",
        ),
        (b"error namespace 28 user namespace: No space", "(namespace)", "max_user_namespaces"),
        (b"error namespace 38 x", "(namespace)", "no user namespaces"),
        (b"error runsc 2 gone", "(runsc): gone", "install-runsc"),
        (b"error runsc 13 x", "(runsc)", "not executable"),
        (b"error runsc 8 x", "(runsc)", "not for this machine"),
        (b"error process 12 clone3: Cannot allocate memory", "(process)", "not enough memory"),
        (b"error files 28 mount: No space", "(files)", "free some space"),
        (b"error cgroup 5 odd", "(cgroup): odd", ""),
        (b"note x\nerror files 2 y", "(files): y", ""),
        (b"Traceback ...\nModuleNotFoundError: x", "ModuleNotFoundError: x", ""),
        (b"error broken", "error broken", ""),
        (b"", "died without a word", ""),
        (b"\xff\xfe", "launcher failed", ""),
    ],
)
def test_failures_are_readable(report: bytes, message: str, hint: str) -> None:
    error = failure(report)
    assert isinstance(error, LaunchError)
    assert message in error.message
    assert hint in error.hint
    assert bool(hint) is bool(error.hint)


async def test_a_missing_plan_is_an_error_and_closing_twice_is_fine(tmp_path: Path) -> None:
    spawned = Spawned(Launchers())
    await spawned.aclose()
    with pytest.raises(LaunchError, match="No such file"):
        await spawned.spawn(tmp_path / "missing", None, ())
    await spawned.aclose()
    await spawned.aclose()


async def test_cancelling_while_it_starts_is_clean(tmp_path: Path) -> None:
    spawned = Spawned(Launchers())
    task = asyncio.create_task(spawned.spawn(tmp_path / "missing", None, ()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await spawned.aclose()


async def test_a_cgroup_that_cannot_be_entered() -> None:
    with pytest.raises(LaunchError, match=r"\(cgroup\).*/nonexistent"):
        await _enter(os.getpid(), ["/nonexistent"])


@pytest.mark.parametrize(
    ("with_tasks", "by_itself", "others"),
    [
        ((), "", "abc"),
        (("b",), "b", "ac"),
        (("a", "c"), "ac", "b"),
        (("a", "b", "c"), "abc", ""),
    ],
)
def test_cgroups_that_a_thread_can_enter_by_itself(
    tmp_path: Path, with_tasks: tuple[str, ...], by_itself: str, others: str
) -> None:
    for name in "abc":
        (tmp_path / name).mkdir()
    for name in with_tasks:
        (tmp_path / name / "tasks").touch()
    files, folders = _divided([str(tmp_path / name) for name in "abc"])
    assert files == [f"{tmp_path}/{name}/tasks" for name in by_itself]
    assert folders == [f"{tmp_path}/{name}" for name in others]


def test_no_cgroups_and_one_that_is_gone() -> None:
    assert _divided([]) == ([], [])
    assert _divided(["/nonexistent"]) == ([], ["/nonexistent"])
