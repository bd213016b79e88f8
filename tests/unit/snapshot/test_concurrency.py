"""Many threads, and many processes, at one store."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from torpor.errors import Busy
from torpor.golden.image import outward_damage
from torpor.golden.manifest import ImageFile
from torpor.snapshot.errors import NoRoom, SnapshotUnusable
from torpor.snapshot.shelf import Shelf
from torpor.snapshot.store import SnapshotStore

from tests.unit.snapshot.making import (
    KERNEL,
    a_manifest,
    fill,
    generations,
    left,
    publish,
    tree,
    whole,
)

BUDGET_BYTES = 1 << 24


def together(acts: list[Callable[[], object]]) -> list[object]:
    """Run all at once; give what they give, or raise."""
    start = threading.Barrier(len(acts))

    def act(each: Callable[[], object]) -> object:
        start.wait(10)
        try:
            return each()
        except (SnapshotUnusable, NoRoom, Busy) as exc:
            return exc

    with ThreadPoolExecutor(len(acts)) as pool:
        return list(pool.map(act, acts))


def test_one_generation_is_published_once(root: Path) -> None:
    stores = [SnapshotStore(root, BUDGET_BYTES) for _ in range(6)]
    drafts = [store.draft() for store in stores]
    for draft in drafts:
        fill(draft)

    def publishing(n: int) -> Callable[[], object]:
        return lambda: stores[n].publish(drafts[n], a_manifest(hostname=str(n)))

    results = together([publishing(n) for n in range(6)])
    (winner,) = [each for each in results if not isinstance(each, SnapshotUnusable)]
    assert stores[0].latest(KERNEL) == winner
    assert left(root) == tree(winner)  # type: ignore[arg-type]


def test_the_budget_holds(root: Path) -> None:
    one_bytes = 4000
    store = SnapshotStore(root, 10 * one_bytes)

    def hibernate(n: int) -> object:
        draft = store.draft(one_bytes)
        fill(draft)
        return store.publish(draft, a_manifest(kernel_id=f"k{n}"))

    def hibernating(n: int) -> Callable[[], object]:
        return lambda: hibernate(n)

    results = together([hibernating(n) for n in range(14)])
    refused = [each for each in results if isinstance(each, NoRoom)]
    assert len(store.list()) == 14 - len(refused)
    assert store.used_bytes() <= 10 * one_bytes
    assert all(store.verify(each) is None for each in whole(store))
    assert store.room(10 * one_bytes - store.used_bytes()) is None


def test_all_at_once(root: Path) -> None:
    store, other = SnapshotStore(root, BUDGET_BYTES), SnapshotStore(root, BUDGET_BYTES)
    publish(store)
    ended = threading.Event()

    def wake() -> int:
        woken = 0
        while not ended.is_set() or not woken:
            snapshot = other.latest(KERNEL)
            assert snapshot
            try:
                with other.hold(snapshot):
                    assert other.verify(snapshot) is None
                    woken += 1
            except SnapshotUnusable as exc:
                assert "removed" in exc.message  # noqa: PT017
        return woken

    def hibernate() -> int:
        try:
            for _ in range(40):
                newest = publish(store).manifest.generation
                store.answered(KERNEL, newest)
        finally:
            ended.set()
        return newest

    def reconcile() -> int:
        while not ended.is_set():
            found = other.reconcile([], orphans_older_than_s=None)
            assert found.unusable == ()
        return 0

    woken, newest, _ = together([wake, hibernate, reconcile])
    assert woken
    assert newest == 41
    store.answered(KERNEL, 41)
    assert generations(store) == [41]
    store.reconcile([KERNEL])
    assert left(root) == tree(*store.list())


def churn(root: Path, kernel_id: str) -> None:
    store = SnapshotStore(root, BUDGET_BYTES)
    for _ in range(15):
        newest = publish(store, kernel_id=kernel_id)
        store.answered(kernel_id, newest.manifest.generation)
        store.reconcile(["a", "b", "c"])
        assert store.latest(kernel_id) == newest


def test_processes(root: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=churn, args=(root, name)) for name in "abc"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    store = SnapshotStore(root, BUDGET_BYTES)
    assert [generations(store, name) for name in "abc"] == [[15]] * 3
    assert left(root) == tree(*store.list())


def test_none_is_only_found_where_there_was_none(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = SnapshotStore(root, BUDGET_BYTES), SnapshotStore(root, BUDGET_BYTES)
    publish(store)
    generations_now = Shelf.generations

    def then_superseded(shelf: Shelf, kernel_id: str) -> list[int]:
        listed = generations_now(shelf, kernel_id)
        monkeypatch.setattr(Shelf, "generations", generations_now)
        newer = publish(store)
        store.answered(KERNEL, newer.manifest.generation)
        return listed

    looks: list[Callable[[], list[int]]] = [
        lambda: [found.manifest.generation for found in [other.latest(KERNEL)] if found],
        lambda: generations(other),
    ]
    for look in looks:
        monkeypatch.setattr(Shelf, "generations", then_superseded)
        assert look() == generations(store)


def test_being_removed_is_no_damage(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, other = SnapshotStore(root, BUDGET_BYTES), SnapshotStore(root, BUDGET_BYTES)
    older = publish(store)
    publish(store)

    def dropped_before(image: Path, files: Mapping[str, ImageFile]) -> str | None:
        monkeypatch.setattr("torpor.snapshot.build.outward_damage", outward_damage)
        store.drop(KERNEL, 2)
        return outward_damage(image, files)

    monkeypatch.setattr("torpor.snapshot.build.outward_damage", dropped_before)
    assert other.latest(KERNEL) == older
