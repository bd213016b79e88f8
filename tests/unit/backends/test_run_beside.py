"""``run_beside``, with a program that stands in for the launcher: cancelled, and cancelled again."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest
from torpor.runsc import launchers, spawn


def children() -> set[str]:
    """Give the children of this process, also those that have ended and were not waited for."""
    found: set[str] = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError):  # a thread that has just ended
            found.update((task / "children").read_text().split())
    return found


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("after_ms", [0, 1, 2, 3, 5, 8, 13, 50])
async def test_cancelled_at_any_moment_it_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int, after_ms: int
) -> None:
    launcher = tmp_path / "launcher"
    launcher.write_text("import time; time.sleep(30)")
    monkeypatch.setattr(launchers, "LAUNCHER", launcher)
    before = children()
    task = asyncio.create_task(spawn.run_beside(launchers.Launchers(), 1, None, ["x"], within_s=20))
    for _ in range(after_ms):
        await asyncio.sleep(0.001)
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert children() <= before
