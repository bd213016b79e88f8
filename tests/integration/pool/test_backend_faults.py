"""Checkpoints and restores that fail or are cancelled: a clear error, and nothing left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from torpor.backends.base import Image
from torpor.errors import LaunchError

from tests.integration.pool.making import (
    IS_ROOT,
    LONG_S,
    Making,
    Running,
    clone,
    golden,
    image_state,
    sandbox,
    small_disk,
)

pytestmark = [
    pytest.mark.slow,  # minutes: `make slow`
    pytest.mark.runsc,
]

# A checkpoint takes some 0.5 s: before it has joined the sandbox, in it, while it writes pages.
SAVING = " checkpoint --image-path"
MOMENTS_S = (0.0, 0.08, 0.3)


async def save(running: Running) -> None:
    await running.backend.checkpoint(running.spec, running.handle)


async def until_saving(making: Making) -> None:
    async with asyncio.timeout(LONG_S):
        while not making.processes(SAVING):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def still_saving(making: Making) -> dict[int, str]:
    """Give the processes that save although they should not: what was just killed takes a moment to go."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(10):
            while making.processes(SAVING):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    return making.processes(SAVING)


async def test_checkpoint_of_a_sandbox_that_has_died(making: Making) -> None:
    folder = making.image_folder()
    async with golden(making, folder) as running:
        making.crash(running.handle)
        await running.backend.exited(running.handle)
        with pytest.raises(LaunchError):
            await save(running)
        assert folder.stat().st_uid == os.geteuid()


@pytest.mark.parametrize("at_s", [0.05, 0.2])
async def test_sandbox_that_dies_while_it_is_saved(making: Making, at_s: float) -> None:
    folder = making.image_folder()
    async with golden(making, folder) as running:
        saving = asyncio.create_task(save(running))
        await asyncio.sleep(at_s)
        making.crash(running.handle)
        with contextlib.suppress(LaunchError):  # it may have been done just before
            async with asyncio.timeout(LONG_S):
                await saving
    names, owners, mode = image_state(folder)
    assert owners <= {(os.geteuid(), 0o600)}
    assert mode == 0o700
    assert names <= {"checkpoint.img", "pages.img", "pages_meta.img"}


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("at_s", MOMENTS_S)
async def test_cancelled_checkpoint(making: Making, at_s: float, times: int) -> None:
    folder = making.image_folder()
    async with golden(making, folder) as running:
        saving = asyncio.create_task(save(running))
        await asyncio.sleep(at_s)
        for _ in range(times):
            saving.cancel()
            await asyncio.sleep(0)
        async with asyncio.timeout(LONG_S):
            with contextlib.suppress(asyncio.CancelledError):
                await saving
        assert await still_saving(making) == {}
    assert image_state(folder)[1] <= {(os.geteuid(), 0o600)}


@pytest.mark.parametrize("times", [1, 2])
async def test_cancelled_checkpoint_of_a_sandbox_that_does_not_answer(
    making: Making, times: int
) -> None:
    """``run_beside``: if cancelled or out of time, the program is killed first."""
    folder = making.image_folder()
    async with golden(making, folder) as running:
        with making.frozen():
            saving = asyncio.create_task(save(running))
            await asyncio.sleep(0.5)
            await until_saving(making)  # which is what this test looks for afterwards
            for _ in range(times):
                saving.cancel()
                await asyncio.sleep(0)
            done, _ = await asyncio.wait({saving}, timeout=5)
            left = await still_saving(making)
        await asyncio.wait({saving})
    assert done, "the cancelled checkpoint was still waited for after 5 s"
    assert left == {}


async def test_checkpoint_of_a_sandbox_that_does_not_answer(
    making: Making, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torpor.backends.local._CHECKPOINT_S", 0.5)
    folder = making.image_folder()
    async with golden(making, folder) as running:
        with making.frozen():
            saving = asyncio.create_task(save(running))
            done, _ = await asyncio.wait({saving}, timeout=5)
            left = await still_saving(making)
        with pytest.raises(LaunchError, match=r"took more than 0\.5 s"):
            await saving
    assert done, "the limit of 0.5 s was not kept in 5 s"
    assert left == {}


async def test_checkpoint_into_a_folder_that_is_gone(making: Making) -> None:
    """Somebody empties the folder of goldens meanwhile."""
    folder = making.image_folder()
    async with golden(making, folder) as running:
        shutil.rmtree(folder)
        with pytest.raises(LaunchError):
            await save(running)


@pytest.mark.skipif(not IS_ROOT, reason="only root can mount a small file system")
@pytest.mark.parametrize("size", ["4k", "1m", "24m"])
async def test_checkpoint_onto_a_full_disk(making: Making, size: str) -> None:
    folder = making.image_folder()
    with small_disk(folder, size):
        async with golden(making, folder) as running:
            with pytest.raises(LaunchError) as caught:
                await save(running)
            assert "no space left on device" in str(caught.value).lower()
        assert image_state(folder)[1] <= {(os.geteuid(), 0o600)}


async def test_two_checkpoints_at_once_are_one(making: Making) -> None:
    folder = making.image_folder()
    async with golden(making, folder) as running:
        done = await asyncio.gather(save(running), save(running), return_exceptions=True)
    failed = [each for each in done if each is not None]
    assert all(isinstance(each, LaunchError) for each in failed), done


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("step", ["plan", "uid", "spawn", "record", "go"])
async def test_restore_cancelled_at_a_step(
    making: Making, image: Path, step: str, times: int
) -> None:
    backend = making.backend(hang_at=step)
    spec = making.spec("c", image=Image(image, restore=True))

    async def restore() -> None:
        await backend.prepare(spec)
        await backend.start(spec)

    before = image_state(image)
    restoring = asyncio.create_task(restore())
    await asyncio.sleep(0.25)
    for _ in range(times):
        restoring.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await restoring
    await backend.destroy(spec.sandbox_id, spec.directory)
    assert making.leftovers() == []
    assert image_state(image) == before


@pytest.mark.parametrize("at_s", [0.0, 0.04, 0.12, 0.2])
async def test_restore_cancelled_at_a_moment(making: Making, image: Path, at_s: float) -> None:
    async def restore() -> None:
        async with clone(making, image, "c", None):
            await asyncio.Event().wait()

    restoring = asyncio.create_task(restore())
    await asyncio.sleep(at_s)
    restoring.cancel()
    with pytest.raises(asyncio.CancelledError):
        await restoring
    assert making.leftovers() == []


async def test_restore_cancelled_as_it_goes(making: Making, image: Path) -> None:
    """The process has been told to become runsc, and nobody waits for its answer any more."""
    loop, spec = asyncio.get_running_loop(), making.spec("c", image=Image(image, restore=True))
    took_s = []
    for after_s in (0.0, 0.002, 0.004, 0.006, 0.008, 0.012):

        async def on_step(step: str, after_s: float = after_s) -> None:
            task = asyncio.current_task()
            if step == "go" and task is not None:
                loop.call_later(after_s, task.cancel)

        backend = replace(making.backend(), on_step=on_step)
        await backend.prepare(spec)
        starting = asyncio.create_task(backend.start(spec))
        began = loop.time()
        with contextlib.suppress(asyncio.CancelledError):
            await starting
        took_s.append(round(loop.time() - began, 1))
        await backend.destroy(spec.sandbox_id, spec.directory)
        assert making.leftovers() == []
        if took_s[-1] > 5:
            break
    assert max(took_s) < 5, took_s


@pytest.mark.parametrize("name", ["checkpoint.img", "pages.img", "pages_meta.img"])
async def test_restore_of_half_an_image(making: Making, image: Path, name: str) -> None:
    """Gvisor itself refuses an image that lacks something; the daemon never gets that far."""
    folder = making.folder / "half"
    shutil.copytree(image, folder)
    file = folder / name
    os.truncate(file, file.stat().st_size // 2)
    spec = making.spec("c", image=Image(folder, restore=True))
    async with sandbox(making, spec) as running:
        async with asyncio.timeout(LONG_S):
            ended = await running.backend.exited(running.handle)
        assert ended.reason


async def test_restore_from_an_empty_folder(making: Making) -> None:
    spec = making.spec("c", image=Image(making.image_folder(), restore=True))
    async with sandbox(making, spec) as running:
        async with asyncio.timeout(LONG_S):
            ended = await running.backend.exited(running.handle)
        assert "checkpoint" in (ended.reason or "")


async def test_restore_from_a_missing_folder(making: Making) -> None:
    spec = making.spec("c", image=Image(making.folder / "none", restore=True))
    with pytest.raises(LaunchError):
        async with sandbox(making, spec):
            pass
