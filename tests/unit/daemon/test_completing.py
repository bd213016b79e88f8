"""Digests that this daemon's snapshots still lack: which, when they are computed, and for whom."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torpor.backends.base import Build, Handle, Saved
from torpor.daemon import completing
from torpor.daemon.completing import REST_S, keep_completing
from torpor.daemon.kernel import Kernel
from torpor.daemon.snapshots import Snapshots
from torpor.errors import SnapshotUnusable
from torpor.lifecycle import Status
from torpor.snapshot import store as store_module
from torpor.snapshot.build import Snapshot
from torpor.snapshot.later import completed, is_complete
from torpor.snapshot.manifest import SnapshotManifest
from torpor.snapshot.store import SnapshotStore
from torpor.template import Template

from tests.unit.daemon.storing import MIB, World, until
from tests.unit.snapshot.making import CONTENT, KERNEL, OTHER, left, publish
from tests.unit.snapshot.test_later import flip, publish_later, sums

ALL = {name: hashlib.sha256(raw).hexdigest() for name, raw in CONTENT.items()}
BUILD = Build("release-20260101.0", ("avx2", "sse4_2"))
HANDLE = Handle(
    backend="local",
    sandbox_id="s",
    pid=1,
    pid_start=1,
    runsc="/usr/bin/runsc",
    runsc_build=BUILD.runtime,
    root="",
    uid=0,
    cgroups=(),
    directory="",
    workspace=None,
    workspace_mode="none",
)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torpor.snapshot.image.LARGE_BYTES", 100)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def snapshots(world: World) -> Snapshots:
    return Snapshots(world.local)


def another(tmp_path: Path) -> SnapshotStore:
    """What a daemon that was started anew sees."""
    return SnapshotStore(tmp_path / "local", 100 * MIB)


async def slept(
    snapshots: Snapshots, world: World, content: Mapping[str, bytes] = CONTENT
) -> Snapshot:
    """Publish what a kernel has saved of itself, as one that falls asleep does."""
    kernel = world.kernels.get(KERNEL) or world.kernel(Status.LIVE, 0)
    folder = world.local._root.parent / "saved"
    folder.mkdir(mode=0o700)
    for name, raw in content.items():
        (folder / name).write_bytes(raw)
    snapshot = await snapshots.publish(
        kernel.row,
        Saved(folder, "d" * 64, ()),
        handle=HANDLE,
        template=Template(),
        build=BUILD,
        memory={},
        mapped=[],
        opened=[],
        peers=[],
        kernel_generation=1,
    )
    kernel.row = replace(kernel.row, status=Status.ASLEEP, generation=snapshot.manifest.generation)
    return snapshot


def is_kept(snapshot: Snapshot) -> bool:
    return (snapshot.folder / "digests.json").exists()


# Which


async def test_what_was_published_is_due_until_it_is_complete(
    world: World, snapshots: Snapshots, tmp_path: Path
) -> None:
    snapshot = await slept(snapshots, world)
    assert list(snapshots.incomplete) == [(KERNEL, 1)]
    assert not is_kept(snapshot)
    await snapshots.complete(KERNEL, 1)
    await snapshots.complete(KERNEL, 1)
    assert snapshots.incomplete == {}
    for store in (world.local, another(tmp_path)):
        found = store.get(KERNEL, 1)
        assert found
        assert sums(found) == ALL
        assert store.verify(found) is None


async def test_what_is_small_never_is(world: World, snapshots: Snapshots) -> None:
    snapshot = await slept(snapshots, world, {"pages.img": b"p"})
    assert is_complete(snapshot.manifest.files)
    assert snapshots.incomplete == {}


async def test_a_kernel_that_wakes_meanwhile_does_not_wait(
    world: World, snapshots: Snapshots
) -> None:
    snapshot = await slept(snapshots, world)
    row = world.kernels[KERNEL].row
    assert snapshots.store.get(row.kernel_id, row.generation) == snapshot
    await snapshots.require_usable(snapshot, Template(), BUILD)
    assert await snapshots.missing(row) is None
    assert await snapshots.memory(row) == {}
    assert not is_kept(snapshot)


async def test_the_next_daemon_finds_what_is_left(
    world: World, snapshots: Snapshots, tmp_path: Path
) -> None:
    publish(world.local)
    publish_later(world.local)
    publish_later(world.local, kernel_id=OTHER)
    following = Snapshots(another(tmp_path))
    await following.reconcile(frozenset({KERNEL}))
    assert set(following.incomplete) == {(KERNEL, 2), (OTHER, 1)}
    for key in list(following.incomplete):
        await following.complete(*key)
    assert following.incomplete == {}
    last = Snapshots(another(tmp_path))
    await last.reconcile(frozenset({KERNEL}))
    assert last.incomplete == {}


async def test_looking_once_more_finds_nothing(world: World, snapshots: Snapshots) -> None:
    publish_later(world.local)
    await snapshots.reconcile(frozenset({KERNEL}))
    assert list(snapshots.incomplete) == [(KERNEL, 1)]
    await snapshots.complete(KERNEL, 1)
    await snapshots.reconcile(frozenset({KERNEL}))
    assert snapshots.incomplete == {}
    [listed] = await snapshots.list()
    assert is_complete(listed.files)


async def test_one_that_is_gone_is_fine(
    world: World, snapshots: Snapshots, caplog: pytest.LogCaptureFixture
) -> None:
    await slept(snapshots, world)
    world.local.drop(KERNEL)
    await snapshots.complete(KERNEL, 1)
    await snapshots.complete(OTHER, 7)
    assert snapshots.incomplete == {}
    assert world.here() == []
    assert caplog.records == []


async def test_one_that_was_touched_since_is_told_and_stays(
    world: World, snapshots: Snapshots, caplog: pytest.LogCaptureFixture
) -> None:
    snapshot = await slept(snapshots, world)
    flip(snapshot)
    await snapshots.complete(KERNEL, 1)
    assert [(each.levelno, each.message) for each in caplog.records] == [
        (logging.WARNING, "digests not computed")
    ]
    assert "was changed after it was written" in caplog.records[0].__dict__["fields"]["error"]
    assert snapshots.incomplete == {}
    assert world.here() == [(KERNEL, 1)]
    assert not is_kept(snapshot)
    with pytest.raises(SnapshotUnusable, match=r"damaged: .* was changed after it was written"):
        await snapshots.require_usable(snapshot, Template(), BUILD)


class Slow:
    """Has digests take until they may be done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.began, self.go_on, self.ended = (threading.Event() for _ in range(3))
        monkeypatch.setattr(store_module, "completed", self)

    def __call__(self, manifest: SnapshotManifest, folder: Path, digests: Any) -> SnapshotManifest:
        self.began.set()
        assert self.go_on.wait(10)
        try:
            return completed(manifest, folder, digests)
        finally:
            self.ended.set()


async def test_a_kernel_that_is_removed_meanwhile_does_not_wait_and_leaves_nothing(
    world: World, snapshots: Snapshots, monkeypatch: pytest.MonkeyPatch
) -> None:
    await slept(snapshots, world)
    slow = Slow(monkeypatch)
    computing = asyncio.create_task(snapshots.complete(KERNEL, 1))
    await until(slow.began.is_set)
    try:
        await asyncio.wait_for(snapshots.forget(KERNEL), 5)
        assert left(world.local._root) == set()
        assert not slow.ended.is_set()
    finally:
        slow.go_on.set()
    await computing
    assert slow.ended.is_set()
    assert left(world.local._root) == set()
    assert snapshots.incomplete == {}


# Copies


async def test_a_copy_is_complete(world: World, snapshots: Snapshots, tmp_path: Path) -> None:
    snapshot = await slept(snapshots, world)
    copied = await snapshots.copy(snapshot, OTHER)
    assert sums(copied) == ALL
    assert {name: (copied.image / name).read_bytes() for name in CONTENT} == CONTENT
    assert list(snapshots.incomplete) == [(KERNEL, 1)]
    for store in (world.local, another(tmp_path)):
        for kernel_id in (KERNEL, OTHER):
            found = store.get(kernel_id, 1)
            assert found
            assert sums(found) == ALL
            assert store.verify(found) is None


async def test_nothing_is_copied_of_what_is_gone(world: World, snapshots: Snapshots) -> None:
    snapshot = await slept(snapshots, world)
    world.local.drop(KERNEL)
    with pytest.raises(SnapshotUnusable, match="cannot be read: No such file"):
        await snapshots.copy(snapshot, OTHER)
    assert world.here() == []
    assert list((world.local._root / "+drafts").iterdir()) == []


# When


class Looked(dict[str, Kernel]):
    """Counts how often a kernel is looked for."""

    looks = 0

    def get(self, *args: Any) -> Any:
        self.looks += 1
        return super().get(*args)


class Loop:
    """It runs, and its clock stands still until somebody moves it."""

    def __init__(self, world: World, patch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.kernels = Looked(world.kernels)
        patch.setattr(completing, "LOOK_S", 0.001)
        clock = SimpleNamespace(monotonic=lambda: self.now)
        for module in ("completing", "snapshots"):
            patch.setattr(f"torpor.daemon.{module}.time", clock)

    @asynccontextmanager
    async def running(self, snapshots: Snapshots) -> AsyncIterator[asyncio.Task[None]]:
        task = asyncio.create_task(keep_completing(snapshots, self.kernels))
        try:
            yield task
            assert not task.done() or task.cancelled()
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def has_looked(self) -> None:
        looks = self.kernels.looks
        await until(lambda: self.kernels.looks > looks + 10)


@pytest.fixture
def loop(world: World, monkeypatch: pytest.MonkeyPatch) -> Loop:
    world.kernel(Status.LIVE, 0)
    return Loop(world, monkeypatch)


async def test_it_rests_first(world: World, snapshots: Snapshots, loop: Loop) -> None:
    snapshot = await slept(snapshots, world)
    async with loop.running(snapshots):
        loop.now += REST_S - 0.5
        await loop.has_looked()
        assert list(snapshots.incomplete) == [(KERNEL, 1)]
        assert not is_kept(snapshot)
        loop.now += 0.5
        await until(lambda: is_kept(snapshot))
    assert snapshots.incomplete == {}


async def test_a_kernel_in_the_middle_of_something_is_left_alone(
    world: World, snapshots: Snapshots, loop: Loop
) -> None:
    snapshot = await slept(snapshots, world)
    of_nobody = publish_later(world.local, kernel_id=OTHER)
    snapshots.incomplete[OTHER, 1] = loop.now
    loop.now += REST_S
    async with loop.running(snapshots):
        async with loop.kernels[KERNEL].lock:
            await until(lambda: is_kept(of_nobody))
            await loop.has_looked()
            assert list(snapshots.incomplete) == [(KERNEL, 1)]
            assert not is_kept(snapshot)
        await until(lambda: is_kept(snapshot))


class Failing(SnapshotStore):
    """A disk on which the snapshots of one kernel cannot be read."""

    def __init__(self, root: Path, exc: Exception) -> None:
        super().__init__(root, 100 * MIB)
        self.exc = exc

    def get(self, kernel_id: str, which: int | str) -> Snapshot | None:
        if kernel_id == KERNEL:
            raise self.exc
        return super().get(kernel_id, which)


@pytest.mark.parametrize(
    "exc",
    [OSError(5, "Input/output error"), SnapshotUnusable("damaged"), RuntimeError("not foreseen")],
)
async def test_what_cannot_be_read_holds_up_nobody(
    world: World,
    loop: Loop,
    tmp_path: Path,
    exc: Exception,
    caplog: pytest.LogCaptureFixture,
) -> None:
    snapshots = Snapshots(Failing(tmp_path / "local", exc))
    snapshot, other = await slept(snapshots, world), publish_later(world.local, kernel_id=OTHER)
    snapshots.incomplete[OTHER, 1] = loop.now
    loop.now += REST_S
    async with loop.running(snapshots):
        await until(lambda: is_kept(other))
        assert snapshots.incomplete == {}
        following = publish_later(world.local, kernel_id=OTHER)
        snapshots.incomplete[OTHER, 2] = loop.now - REST_S
        await until(lambda: is_kept(following))
    assert not is_kept(snapshot)
    assert {(KERNEL, 1), (OTHER, 1)} <= set(world.here()), "all stay"
    assert [each.message for each in caplog.records] == ["digests not computed"], "it is told once"


async def test_it_ends_when_it_is_told_to(
    world: World, snapshots: Snapshots, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the thread that computes: what it has begun it brings to its end."""
    slow = Slow(monkeypatch)
    snapshot = await slept(snapshots, world)
    loop.now += REST_S
    async with loop.running(snapshots) as task:
        await until(slow.began.is_set)
        task.cancel()
        await asyncio.wait({task}, timeout=1)
        assert task.cancelled()
        slow.go_on.set()
        await until(slow.ended.is_set)
    assert is_kept(snapshot)


async def test_it_ends_while_it_rests(world: World, snapshots: Snapshots, loop: Loop) -> None:
    async with loop.running(snapshots) as task:
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task}, timeout=1)
        assert task.cancelled()
