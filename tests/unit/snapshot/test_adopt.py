"""A snapshot that was published elsewhere, taken in as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torpor.golden.manifest import ImageFile
from torpor.snapshot.build import Snapshot
from torpor.snapshot.errors import NoRoom, SnapshotUnusable
from torpor.snapshot.manifest import snapshot_bytes
from torpor.snapshot.store import SnapshotStore

from tests.unit.snapshot.making import CONTENT, KERNEL, fill, left, publish, tree


@pytest.fixture
def there(tmp_path: Path) -> SnapshotStore:
    """Where snapshots come from."""
    return SnapshotStore(tmp_path / "there", 1 << 20)


def adopt(store: SnapshotStore, snapshot: Snapshot, content: dict[str, bytes]) -> Snapshot:
    draft = store.draft(snapshot.manifest.size_bytes)
    fill(draft, content)
    return store.adopt(draft, snapshot.manifest)


def test_as_it_was(store: SnapshotStore, there: SnapshotStore, root: Path) -> None:
    theirs = publish(there, generation=5, name="x")
    ours = adopt(store, theirs, CONTENT)
    assert ours.manifest == theirs.manifest
    assert (ours.folder / "manifest.json").read_bytes() == snapshot_bytes(theirs.manifest)
    assert store.verify(ours) is None
    assert SnapshotStore(root, 1 << 20).latest(KERNEL) == ours
    assert left(root) == tree(ours)
    assert store.next_generation(KERNEL) == 6


def test_below_a_newer_one(store: SnapshotStore, there: SnapshotStore) -> None:
    newer = publish(store, generation=9)
    ours = adopt(store, publish(there, generation=5), CONTENT)
    assert [row.generation for row in store.list()] == [5, 9]
    assert store.latest(KERNEL) == newer
    with pytest.raises(SnapshotUnusable, match="has generation 9 already"):
        publish(store, generation=6)
    assert ours.manifest.generation == 5


@pytest.mark.parametrize(
    "content",
    [
        CONTENT | {"pages.img": b"q" * 1000},
        CONTENT | {"pages.img": b"p" * 999},
        CONTENT | {"more.img": b""},
        {name: CONTENT[name] for name in ("pages.img", "checkpoint.img")},
        {},
    ],
)
def test_other_files(
    store: SnapshotStore, there: SnapshotStore, root: Path, content: dict[str, bytes]
) -> None:
    theirs = publish(there)
    with pytest.raises(SnapshotUnusable, match=r"is not the one that was published|no image"):
        adopt(store, theirs, content)
    assert left(root) == set()


def test_no_files_at_all_are_no_snapshot(
    store: SnapshotStore, there: SnapshotStore, root: Path
) -> None:
    theirs = publish(there)
    nothing: dict[str, ImageFile] = {}
    with pytest.raises(SnapshotUnusable, match="is not the one that was published"):
        adopt(store, Snapshot(replace(theirs.manifest, files=nothing), theirs.folder), CONTENT)
    assert left(root) == set()


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        ({"generation": 3}, {"generation": 3}, "has generation 3 already"),
        (
            {"generation": 3, "name": "x"},
            {"generation": 2, "name": "x"},
            "a checkpoint 'x' already",
        ),
        (
            {"generation": 1, "name": "x"},
            {"generation": 2, "name": "x"},
            "a checkpoint 'x' already",
        ),
    ],
)
def test_taken(
    store: SnapshotStore,
    there: SnapshotStore,
    root: Path,
    ours: dict[str, Any],
    theirs: dict[str, Any],
    words: str,
) -> None:
    before = publish(store, **ours)
    with pytest.raises(SnapshotUnusable, match=words):
        adopt(store, publish(there, **theirs), CONTENT)
    assert left(root) == tree(before)


def test_a_damaged_one_in_its_place_stays(
    store: SnapshotStore, there: SnapshotStore, root: Path
) -> None:
    damaged = publish(store)
    (damaged.folder / "manifest.json").write_bytes(b"{}")
    with pytest.raises(SnapshotUnusable, match="has generation 1 already"):
        adopt(store, publish(there), CONTENT)
    assert left(root) == tree(damaged)


def test_over_the_budget(there: SnapshotStore, root: Path) -> None:
    theirs = publish(there)
    with pytest.raises(NoRoom):
        adopt(SnapshotStore(root, theirs.manifest.size_bytes), theirs, CONTENT)
    assert left(root) == set()


def test_somebody_elses(store: SnapshotStore, there: SnapshotStore, root: Path) -> None:
    theirs = publish(there)
    other = replace(theirs.manifest, owner_uid=theirs.manifest.owner_uid + 1)
    with pytest.raises(SnapshotUnusable, match="belongs to user"):
        adopt(store, Snapshot(other, theirs.folder), CONTENT)
    assert left(root) == set()
