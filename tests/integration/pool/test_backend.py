"""A golden, its image and its clones, with the local backend alone and no daemon."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from torpor.runsc.plan import WORKSPACE_AT

from tests.integration.pool.making import (
    IMAGE_FILES,
    LONG_S,
    Making,
    claim,
    clone,
    golden,
    image_state,
    reported,
)

pytestmark = [
    pytest.mark.slow,  # minutes: `make slow`
    pytest.mark.runsc,
]


@pytest.fixture(params=["/tmp", "/srv"])
def place(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder for workspaces: where the sandbox has something writable of its own, and elsewhere."""
    if not os.access(request.param, os.W_OK):
        pytest.skip(f"{request.param} is not ours to write to")
    folder = Path(request.param) / f"torpor-ws-{secrets.token_hex(4)}"
    folder.mkdir(mode=0o700)
    yield folder
    shutil.rmtree(folder)


def workspaces(place: Path) -> tuple[Path, Path]:
    first, second = place / "first", place / "second/deeper"
    for folder in (first, second):
        folder.mkdir(parents=True)
        (folder / f"{folder.name}.txt").write_text(folder.name)
    return first, second


async def test_two_clones_of_one_image_become_two_kernels(
    making: Making, image: Path, place: Path
) -> None:
    before = image_state(image)
    folders = workspaces(place)
    async with AsyncExitStack() as stack:
        clones = [
            await stack.enter_async_context(clone(making, image, f"c{number}", folder))
            for number, folder in enumerate(folders)
        ]
        for number, running in enumerate(clones):
            async with running.line() as line:
                code = f"open('{WORKSPACE_AT}/written', 'w').write(str(marked))"
                reply = await line.call("execute", {"code": code}, timeout_s=LONG_S)
                assert reply["status"] == "ok", reply
                params = claim(folders[number], env={"REPORT": f"kernel {number}"})
                await line.call("claim", params, timeout_s=LONG_S)
        told = [await reported(running) for running in clones]
    for number, folder in enumerate(folders):
        assert (folder / "written").read_text() == "41"
        facts = told[number]
        assert facts["cwd"] == str(folder)
        assert facts["names"] == sorted([f"{folder.name}.txt", "written"])
        assert facts["env"] == f"kernel {number}"
        assert clones[number].spec.sandbox_id.startswith(facts["host"])
        assert facts["at_fixed_place"] == [], "the fixed place still shows the workspace"
        assert set(facts["rights"].values()) == {"0" * 16}
    assert told[0]["random"] != told[1]["random"]
    assert image_state(image) == before


async def test_a_clone_without_a_workspace(making: Making, image: Path) -> None:
    async with clone(making, image, "bare", None) as running:
        async with running.line() as line:
            params = claim(None, cwd="/home/sandbox")
            await line.call("claim", params, timeout_s=LONG_S)
        facts = await reported(running)
    assert (facts["cwd"], facts["names"]) == ("/home/sandbox", [".ipython"])


async def test_an_image_is_ours_alone(making: Making, image: Path) -> None:
    assert image_state(image) == (IMAGE_FILES, {(os.geteuid(), 0o600)}, 0o700)
    assert image.stat().st_uid == os.geteuid()


async def test_a_clone_that_is_killed_harms_no_other(making: Making, image: Path) -> None:
    async with clone(making, image, "a", None) as first, clone(making, image, "b", None) as second:
        making.crash(first.handle)
        async with asyncio.timeout(LONG_S):
            assert (await first.backend.exited(first.handle)).reason is not None
        async with second.line() as line:
            await line.call("claim", claim(None), timeout_s=LONG_S)
        assert (await reported(second))["env"] == "1"


async def test_an_image_is_of_use_while_clones_run(making: Making, image: Path) -> None:
    """Clones share the pages on the disk and nothing else: what one writes no other sees."""
    write = {"code": "marked = 'changed'; buffer = bytearray(b'x' * (8 << 20))"}
    check = {"code": "assert marked == 41"}
    async with clone(making, image, "a", None) as first:
        async with first.line() as line:
            assert (await line.call("execute", write, timeout_s=LONG_S))["status"] == "ok"
        async with clone(making, image, "b", None) as second, second.line() as line:
            assert (await line.call("execute", check, timeout_s=LONG_S))["status"] == "ok"


async def test_a_sandbox_has_ended_after_its_checkpoint(making: Making) -> None:
    folder = making.image_folder()
    async with golden(making, folder) as running:
        await running.backend.checkpoint(running.spec, running.handle)
        async with asyncio.timeout(LONG_S):
            await running.backend.exited(running.handle)
        assert not await running.backend.alive(running.handle)
    assert image_state(folder)[0] == IMAGE_FILES
