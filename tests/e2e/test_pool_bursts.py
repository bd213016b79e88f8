"""Many starts at the same moment: each ends in a kernel that is right, or in one clear error."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.manager import AsyncKernelManager, KernelManager

from tests.e2e.cells import value
from tests.e2e.pool_home import LIGHT, PoolHome, kernel, pool_home, start_of, warm
from tests.home import KERNEL, start, stop

MOST = 5
CODE = "import os, random; (int(os.environ['NUMBER']) ** 2, os.getcwd(), random.random(), os.uname()[1])"

pytestmark = [
    pytest.mark.slow,  # minutes: `make slow`
    pytest.mark.runsc,
    pytest.mark.timeout(180),
]


@dataclass(frozen=True)
class Worked:
    """One kernel of a burst: its number and what it said."""

    number: int
    said: tuple[int, str, float, str]
    ports: tuple[int, ...]
    kernel_id: str


async def said_by(km: AsyncKernelManager) -> Any:
    results: list[str] = []

    def hook(message: dict[str, Any]) -> None:
        if message["msg_type"] == "execute_result":
            results.append(message["content"]["data"]["text/plain"])

    kc = km.client()
    kc.start_channels()
    try:
        await kc.wait_for_ready(timeout=120)
        reply = await kc.execute_interactive(CODE, output_hook=hook, timeout=120)
        assert reply["content"]["status"] == "ok", reply["content"]
        assert reply["content"]["execution_count"] == 1
    finally:
        kc.stop_channels()
    return eval(results[-1])


async def started(number: int, cwd: Path) -> AsyncKernelManager:
    km = AsyncKernelManager(kernel_name=KERNEL)
    try:
        await km.start_kernel(cwd=str(cwd), env={**os.environ, "NUMBER": str(number)})
    except BaseException:
        if km.has_kernel:  # jupyter_client sleeps for a moment after a start that has succeeded
            await km.shutdown_kernel(now=True)
        km.context.destroy(linger=0)
        raise
    return km


@asynccontextmanager
async def burst(count: int, folders: list[Path]) -> AsyncIterator[list[Any]]:
    """Start so many kernels at once; give a manager or an error of each. All are stopped at the end."""
    starts = [started(number, folders[number % len(folders)]) for number in range(count)]
    ended = await asyncio.gather(*starts, return_exceptions=True)
    try:
        yield ended
    finally:
        running = [each for each in ended if isinstance(each, AsyncKernelManager)]
        await asyncio.gather(*(each.shutdown_kernel(now=True) for each in running))
        for each in running:
            each.context.destroy(linger=0)


async def assert_all_work(count: int, folders: list[Path], home: PoolHome) -> None:
    async with burst(count, folders) as ended:
        assert [each for each in ended if isinstance(each, BaseException)] == []
        said = await asyncio.gather(*(said_by(each) for each in ended))
        for number, (square, cwd, _, _) in enumerate(said):
            assert (square, cwd) == (number * number, str(folders[number % len(folders)]))
        assert len({each[2] for each in said}) == count, "the same random number twice"
        hows = [home.launched(each.kernel_id)["how"] for each in ended]
        restored = sum(how != "created" for how in hows)
        names = {each[3] for each, how in zip(said, hows, strict=True) if how != "created"}
        assert len(names) == restored, "the same hostname twice"
        ports = [port for each in ended for port in each.ports]
        assert len(set(ports)) == len(ports)
    await asyncio.to_thread(home.wait_settled)


@pytest.fixture(scope="module")
def home() -> Iterator[PoolHome]:
    """A home with a pool."""
    with pool_home(LIGHT) as made:
        yield made


@pytest.fixture(scope="module")
def folders(home: PoolHome, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two workspaces; clones wait for the first."""
    made = [tmp_path_factory.mktemp("ws") for _ in range(2)]
    warm(home, made[0])
    return made


async def test_twenty_at_once(home: PoolHome, folders: list[Path]) -> None:
    before = len(home.events("launched"))
    await assert_all_work(20, folders, home)
    hows = [each["how"] for each in home.events("launched")[before:]]
    assert hows.count("created") == 0, hows
    assert hows.count("claimed") >= 1, hows


@pytest.mark.slow
async def test_twenty_at_once_without_a_golden(tmp_path: Path) -> None:
    with pool_home(LIGHT) as home:
        await assert_all_work(20, [tmp_path], home)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_hundred_at_once(home: PoolHome, folders: list[Path]) -> None:
    await assert_all_work(100, folders, home)


async def test_starts_that_are_given_up_leave_nothing(home: PoolHome, folders: list[Path]) -> None:
    tasks = [asyncio.create_task(started(number, folders[0])) for number in range(6)]
    await asyncio.sleep(0.15)
    for task in tasks:
        task.cancel()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    for each in ended:
        if isinstance(each, AsyncKernelManager):  # it was quicker
            await each.shutdown_kernel(now=True)
            each.context.destroy(linger=0)
    await asyncio.to_thread(home.wait_settled)
    await assert_all_work(2, folders, home)


# -- at capacity -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[PoolHome, Path]]:
    """A home that holds five kernels, with a workspace for which clones wait.

    Tests that use it come last: from here on it is the home of this process.
    """
    folder = tmp_path_factory.mktemp("ws")
    with pool_home(f"{LIGHT}c.TorporDaemon.most_kernels = {MOST}\n") as made:
        warm(made, folder)
        yield made, folder


def assert_refused(cwd: Path) -> None:
    km = KernelManager(kernel_name=KERNEL)
    with pytest.raises(Exception, match="at capacity") as caught:
        km.start_kernel(cwd=str(cwd))
    text = str(caught.value)
    assert str(MOST) in text
    assert "most_kernels" in text
    assert "Traceback" not in text
    assert len(text) < 500


def test_the_sixth_of_five_is_refused(small: tuple[PoolHome, Path]) -> None:
    home, cwd = small
    running = [start(cwd) for _ in range(MOST)]
    try:
        home.wait_ready(cwd)  # a clone that waits is no reason to let more in
        assert_refused(cwd)
        assert len(home.kernels()) == MOST
        for number, (_, kc) in enumerate(running):
            assert value(kc, f"{number} + 1") == str(number + 1)
        km, kc = running[0]
        km.restart_kernel(now=True)  # it has its place already
        kc.wait_for_ready(timeout=30)
        stop(*running.pop())
        with kernel(cwd) as (km, _):
            assert start_of(km)["how"] in ("claimed", "cloned")
            assert_refused(cwd)
    finally:
        for pair in running:
            stop(*pair)
    home.wait_settled()


async def test_five_of_eight_at_once_get_in(small: tuple[PoolHome, Path]) -> None:
    home, cwd = small
    async with burst(8, [cwd]) as ended:
        refused = [each for each in ended if isinstance(each, BaseException)]
        assert all("at capacity" in str(each) for each in refused), refused
        assert len(ended) - len(refused) == MOST
        running = [each for each in ended if isinstance(each, AsyncKernelManager)]
        said = await asyncio.gather(*(said_by(each) for each in running))
        assert len({square for square, *_ in said}) == MOST
    await asyncio.to_thread(home.wait_settled)
