from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torpor.errors import Busy
from torpor.snapshot.errors import NoRoom, SnapshotUnusable
from torpor.snapshot.manifest import snapshot_bytes
from torpor.snapshot.store import SnapshotStore
from torpor.template import GIB

from tests.unit.snapshot.making import (
    CONTENT,
    KERNEL,
    OTHER,
    SIZE_BYTES,
    a_manifest,
    fill,
    generations,
    left,
    publish,
    rows,
    tree,
)


def another(root: Path, budget_bytes: int = GIB) -> SnapshotStore:
    """What a daemon that was started anew sees."""
    return SnapshotStore(root, budget_bytes)


# Making


def test_nothing_is_made_by_looking(store: SnapshotStore, root: Path) -> None:
    assert store.list() == ()
    assert store.latest(KERNEL) is None
    assert store.get(KERNEL, 1) is None
    assert store.get(KERNEL, "x") is None
    assert store.next_generation(KERNEL) == 1
    assert store.drop(KERNEL) == ()
    assert store.reconcile([]).removed == ()
    assert store.room(1) is None
    assert store.used_bytes() == 0
    with pytest.raises(SnapshotUnusable, match="has no generation 1"):
        store.answered(KERNEL, 1)
    assert not root.parent.exists()


def test_published_and_found(store: SnapshotStore, root: Path) -> None:
    snapshot = publish(store)
    assert snapshot.folder == root / KERNEL / "1"
    assert snapshot.manifest.size_bytes == SIZE_BYTES
    for each in (store, another(root)):
        assert each.latest(KERNEL) == each.get(KERNEL, 1) == snapshot
        assert each.list() == rows(snapshot)
        assert each.verify(snapshot) is None
        assert each.next_generation(KERNEL) == 2
    assert left(root) == tree(snapshot)
    assert store.list()[0].size_bytes == SIZE_BYTES
    assert {name: (snapshot.image / name).read_bytes() for name in CONTENT} == CONTENT


def test_everything_is_private(store: SnapshotStore, root: Path) -> None:
    before = os.umask(0)
    try:
        draft = store.draft()
        fill(draft)
        (draft / "image" / "pages.img").chmod(0o666)
        store.publish(draft, a_manifest())
    finally:
        os.umask(before)
    for path in (root, *root.rglob("*")):
        seen = path.lstat()
        assert stat.S_IMODE(seen.st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_publishing_removes_nothing(store: SnapshotStore, root: Path) -> None:
    all_of_them = [publish(store), publish(store, name="x"), publish(store), publish(store)]
    assert generations(store) == [1, 2, 3, 4]
    assert store.latest(KERNEL) == all_of_them[-1]
    assert left(root) == tree(*all_of_them)


def test_generations_may_leave_gaps(store: SnapshotStore) -> None:
    publish(store, generation=41)
    assert store.next_generation(KERNEL) == 42


@pytest.mark.parametrize("generation", [1, 6, 7])
def test_generations_rise(store: SnapshotStore, root: Path, generation: int) -> None:
    snapshot = publish(store, generation=7)
    with pytest.raises(SnapshotUnusable, match="has generation 7 already"):
        publish(store, generation=generation)
    assert left(root) == tree(snapshot)


def test_a_name_is_used_once(store: SnapshotStore) -> None:
    publish(store, name="x")
    with pytest.raises(SnapshotUnusable, match="has a checkpoint 'x' already"):
        publish(store, name="x")
    publish(store, name="y")
    publish(store, name="x", kernel_id=OTHER)
    store.drop(KERNEL, 1)
    publish(store, name="x")
    assert generations(store) == [2, 3]


def test_a_draft_that_is_not_ours(store: SnapshotStore, root: Path, tmp_path: Path) -> None:
    theirs = another(root).draft()
    fill(theirs)
    for draft in (theirs, tmp_path, tmp_path / "none"):
        with pytest.raises(SnapshotUnusable, match="is not a draft"):
            store.publish(draft, a_manifest())
    assert theirs.exists()


def test_a_draft_is_used_once(store: SnapshotStore) -> None:
    draft = store.draft()
    fill(draft)
    snapshot = store.publish(draft, a_manifest())
    with pytest.raises(SnapshotUnusable, match="is not a draft"):
        store.publish(draft, a_manifest(generation=2))
    store.discard(draft)
    assert store.latest(KERNEL) == snapshot


def test_discarded(store: SnapshotStore, root: Path) -> None:
    draft = store.draft(500)
    fill(draft)
    store.discard(draft)
    store.discard(draft)
    assert left(root) == set()


def link_in(image: Path) -> None:
    (image / "pages.img").symlink_to("/etc/passwd")


def folder_in(image: Path) -> None:
    (image / "pages.img").mkdir()


def pipe_in(image: Path) -> None:
    os.mkfifo(image / "pages.img")


def nothing_in(image: Path) -> None:
    del image


@pytest.mark.parametrize("put", [link_in, folder_in, pipe_in, nothing_in])
def test_an_image_that_is_none(
    store: SnapshotStore, root: Path, put: Callable[[Path], None]
) -> None:
    draft = store.draft()
    put(draft / "image")
    with pytest.raises(SnapshotUnusable, match=r"not a plain file|no image"):
        store.publish(draft, a_manifest())
    assert left(root) == set()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"memory": {"c": float("nan")}}, "cannot be written"),
        ({"owner_uid": 12345}, "belongs to user 12345"),
        ({"created_at": "yesterday"}, "created_at is not a date"),
    ],
)
def test_a_manifest_that_could_not_be_read_back(
    store: SnapshotStore, root: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(SnapshotUnusable, match=words):
        publish(store, **changes)
    assert left(root) == set()


def test_a_manifest_that_is_too_large(
    store: SnapshotStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torpor.snapshot.store.MANIFEST_LIMIT_BYTES", 100)
    with pytest.raises(SnapshotUnusable, match="too large"):
        publish(store)
    assert left(root) == set()


@pytest.mark.parametrize("kernel_id", ["..", ".", "a/b", "", "+drafts", "/etc"])
def test_names_that_lead_elsewhere(store: SnapshotStore, kernel_id: str) -> None:
    calls: list[Callable[[], object]] = [
        lambda: a_manifest(kernel_id=kernel_id),
        lambda: store.latest(kernel_id),
        lambda: store.get(kernel_id, 1),
        lambda: store.get(kernel_id, "x"),
        lambda: store.drop(kernel_id),
        lambda: store.next_generation(kernel_id),
        lambda: store.answered(kernel_id, 1),
    ]
    publish(store)
    for call in calls:
        with pytest.raises(SnapshotUnusable, match="not the id of a kernel"):
            call()


@pytest.mark.parametrize("kernel_id", [".lock", ".draft-1", "...", "-rf", "a" * 128])
def test_odd_ids(store: SnapshotStore, root: Path, kernel_id: str) -> None:
    snapshot = publish(store, kernel_id=kernel_id)
    assert store.reconcile([kernel_id]).removed == ()
    assert another(root).latest(kernel_id) == snapshot
    assert store.drop(kernel_id)
    assert left(root) == set()


# Room


def test_the_budget(root: Path) -> None:
    manifest_bytes = len(snapshot_bytes(publish(SnapshotStore(root, GIB)).manifest))
    one_bytes = manifest_bytes + SIZE_BYTES
    assert another(root).used_bytes() == one_bytes
    store = another(root, 2 * one_bytes)
    assert store.room(one_bytes) is None
    words = store.room(one_bytes + 1)
    assert words == (
        f"all snapshots together may have {2 * one_bytes} bytes, and there are {one_bytes} bytes: "
        f"{one_bytes + 1} bytes more do not fit"
    )
    with pytest.raises(NoRoom, match="all snapshots together") as caught:
        store.draft(one_bytes + 1)
    assert "drop" in caught.value.hint
    assert publish(store, kernel_id=OTHER)
    with pytest.raises(NoRoom):
        publish(store)
    assert generations(store) == generations(store, OTHER) == [1]
    assert set(os.listdir(root / "+drafts")) == set()


def test_room_is_kept_for_drafts(root: Path) -> None:
    store = SnapshotStore(root, 10_000)
    draft = store.draft(6_000)
    words = store.room(5_000)
    assert words
    assert "and there are 0 bytes and 6000 bytes to be written: 5000 bytes more" in words
    fill(draft)
    assert store.room(4_000) is None
    assert store.room(4_001)
    with pytest.raises(NoRoom):
        store.draft(5_000)
    store.discard(draft)
    assert store.room(10_000) is None


def test_a_draft_that_became_larger_than_expected(root: Path) -> None:
    store = SnapshotStore(root, 20_000)
    kept = publish(store)
    expected = store.draft(10_000)
    draft = store.draft(1_000)
    fill(draft, {"pages.img": b"p" * 9_000})
    with pytest.raises(NoRoom, match="to be written"):
        store.publish(draft, a_manifest(kernel_id=OTHER))
    assert not draft.exists()
    fill(expected, {"pages.img": b"p" * 10_000})
    assert store.publish(expected, a_manifest(kernel_id=OTHER))
    assert store.latest(KERNEL) == kept


def test_the_disk(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = os.statvfs_result((4096, 4096, 1000, 500, 250, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: blocks)
    store = SnapshotStore(root, 10 * GIB, keep_free_bytes=50 * 4096)
    assert store.room(200 * 4096) is None
    words = store.room(2 * GIB)
    assert words == (
        f"the disk of {root} has 1024000 bytes left, and 204800 bytes are to stay free: 2.0 GiB "
        "more do not fit"
    )
    with pytest.raises(NoRoom):
        store.draft(5 * 1024 * 1024)


def test_nothing_is_removed_to_make_room(root: Path) -> None:
    old = publish(SnapshotStore(root, GIB))
    store = SnapshotStore(root, 1)
    with pytest.raises(NoRoom):
        store.draft()
    store.reconcile([KERNEL])
    assert store.latest(KERNEL) == old


# Using


def test_by_name(store: SnapshotStore) -> None:
    publish(store)
    named = publish(store, name="before training")
    publish(store)
    assert store.get(KERNEL, "before training") == named
    assert store.get(KERNEL, "after") is None
    with pytest.raises(SnapshotUnusable, match="not usable as the name"):
        store.get(KERNEL, "")


def test_by_generation(store: SnapshotStore) -> None:
    snapshots = [publish(store), publish(store)]
    assert [store.get(KERNEL, n) for n in (1, 2, 3)] == [*snapshots, None]
    with pytest.raises(SnapshotUnusable, match="0 is not a generation"):
        store.get(KERNEL, 0)


def test_answered(store: SnapshotStore, root: Path) -> None:
    publish(store)
    named = publish(store, name="x")
    publish(store)
    current, later = publish(store), publish(store)
    elsewhere = publish(store, kernel_id=OTHER)
    gone = store.answered(KERNEL, 4)
    assert [each.folder.name for each in gone] == ["1", "3"]
    assert {each.reason for each in gone} == {"generation 4 has answered"}
    assert gone[0].size_bytes > SIZE_BYTES
    assert store.answered(KERNEL, 4) == ()
    assert left(root) == tree(named, current, later, elsewhere)
    assert store.next_generation(KERNEL) == 6


def test_answered_from_what_is_not_whole(store: SnapshotStore) -> None:
    publish(store)
    damaged = publish(store)
    (damaged.image / "pages.img").unlink()
    with pytest.raises(SnapshotUnusable, match="is missing"):
        store.answered(KERNEL, 2)
    with pytest.raises(SnapshotUnusable, match="no generation 3"):
        store.answered(KERNEL, 3)
    assert generations(store) == [1]


def test_answered_keeps_what_may_have_had_a_name(store: SnapshotStore) -> None:
    damaged = publish(store)
    (damaged.folder / "manifest.json").write_bytes(b"?")
    publish(store)
    assert store.answered(KERNEL, 2) == ()
    assert damaged.folder.exists()


def test_what_is_held_stays(store: SnapshotStore, root: Path) -> None:
    held = publish(store)
    publish(store)
    with store.hold(held), another(root).hold(held):
        assert another(root).answered(KERNEL, 2) == ()
        assert store.reconcile([], orphans_older_than_s=0).orphans == rows(held)
        with pytest.raises(Busy, match=r"generation 1 of kernel .* is in use"):
            store.drop(KERNEL)
        assert store.verify(held) is None
    assert generations(store) == [1]
    assert store.drop(KERNEL)


def test_it_cannot_be_held_any_more(store: SnapshotStore) -> None:
    snapshot = publish(store)
    store.drop(KERNEL)
    with (
        pytest.raises(SnapshotUnusable, match="removed") as caught,
        store.hold(snapshot),
    ):
        pytest.fail("it was held")
    assert "golden" not in str(caught.value)
    words = store.verify(snapshot)
    assert words
    assert "is missing" in words
