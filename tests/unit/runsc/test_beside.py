"""What waits beside a sandbox is told to run, or leaves nothing."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import pytest
from torpor.errors import LaunchError
from torpor.runsc.launchers import Launchers
from torpor.runsc.spawn import Beside


def children() -> set[str]:
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return set(file.read().split())


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    before = children()
    yield
    assert children() <= before


async def test_nothing_is_left_of_one_that_was_not_needed() -> None:
    beside = Beside(Launchers(), os.getpid(), None, ["/bin/true"])
    await beside.aclose()
    beside.start()
    [starting] = [each for each in asyncio.all_tasks() if each.get_name() == "run beside"]
    process = await starting
    await beside.aclose()
    assert process.returncode is not None
    await beside.aclose()


async def test_what_cannot_enter_says_so() -> None:
    beside = Beside(Launchers(), 2**22 + 1, None, ["/bin/true"])
    beside.start()
    with pytest.raises(LaunchError, match="cannot enter the sandbox"):
        await beside.run(within_s=10)


async def test_cancelled_it_is_gone() -> None:
    beside = Beside(Launchers(), os.getpid(), None, ["/bin/true"])
    beside.start()
    running = asyncio.create_task(beside.run(within_s=10))
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
