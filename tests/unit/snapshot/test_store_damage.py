from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from torpor.golden.manifest import sealed
from torpor.snapshot.build import Snapshot
from torpor.snapshot.errors import SnapshotUnusable
from torpor.snapshot.manifest import snapshot_bytes
from torpor.snapshot.room import size_text
from torpor.snapshot.store import SnapshotStore
from torpor.template import GIB

from tests.unit.golden.conftest import Clock
from tests.unit.snapshot.making import (
    KERNEL,
    OTHER,
    a_manifest,
    generations,
    left,
    publish,
    rows,
    tree,
)
from tests.unit.snapshot.test_store import another

# Damage


def cut(snapshot: Snapshot) -> None:
    os.truncate(snapshot.image / "pages.img", 5)


def lose(snapshot: Snapshot) -> None:
    (snapshot.image / "checkpoint.img").unlink()


def add(snapshot: Snapshot) -> None:
    (snapshot.image / "more.img").write_bytes(b"")


def lose_all(snapshot: Snapshot) -> None:
    for path in snapshot.image.iterdir():
        path.unlink()
    snapshot.image.rmdir()


def link(snapshot: Snapshot) -> None:
    (snapshot.image / "pages.img").rename(snapshot.folder / "away")
    (snapshot.image / "pages.img").symlink_to(snapshot.folder / "away")


def scribble(snapshot: Snapshot) -> None:
    (snapshot.folder / "manifest.json").write_bytes(b"{}")


def later_version(snapshot: Snapshot) -> None:
    body = snapshot.manifest.to_json() | {"version": 3}
    (snapshot.folder / "manifest.json").write_bytes(sealed(body))


def of_another(snapshot: Snapshot) -> None:
    raw = snapshot_bytes(a_manifest(kernel_id=OTHER, files=snapshot.manifest.files))
    (snapshot.folder / "manifest.json").write_bytes(raw)


def open_image(snapshot: Snapshot) -> None:
    snapshot.image.chmod(0o755)


def open_folder(snapshot: Snapshot) -> None:
    snapshot.folder.chmod(0o770)


def link_folder(snapshot: Snapshot) -> None:
    away = snapshot.folder.parent / "away"
    snapshot.folder.rename(away)
    snapshot.folder.symlink_to(away)


def link_manifest(snapshot: Snapshot) -> None:
    (snapshot.folder / "manifest.json").rename(snapshot.folder / "away")
    (snapshot.folder / "manifest.json").symlink_to("away")


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (cut, "has 5 bytes, not 1000"),
        (lose, "is missing"),
        (add, "does not belong there"),
        (lose_all, "is missing"),
        (link, "is not a plain file"),
        (scribble, "has no version"),
        (later_version, "of version 3"),
        (of_another, "that of another snapshot"),
        (open_image, "open to other users"),
        (open_folder, "open to other users"),
        (link_folder, "is not a folder"),
        (link_manifest, "is not a plain file"),
    ],
)
def test_damage_is_told_and_nothing_else_given(
    store: SnapshotStore, root: Path, harm: Callable[[Snapshot], None], words: str
) -> None:
    whole, damaged = publish(store), publish(store, name="x")
    harm(damaged)
    for each in (store, another(root)):
        with pytest.raises(SnapshotUnusable, match=words):
            each.latest(KERNEL)
        with pytest.raises(SnapshotUnusable, match=words):
            each.get(KERNEL, 2)
        with pytest.raises(SnapshotUnusable, match=words):
            each.get(KERNEL, "x")
        assert each.get(KERNEL, 1) == whole
        assert each.list() == rows(whole)
        assert each.next_generation(KERNEL) == 3
        found = each.reconcile([], orphans_older_than_s=10**12)
        assert [path for path, _ in found.unusable] == [damaged.folder]
        assert words in found.unusable[0][1]
        assert found.removed == ()
    assert [gone.folder for gone in store.drop(KERNEL, 2)] == [damaged.folder]
    assert not os.path.lexists(damaged.folder)
    assert store.latest(KERNEL) == whole


def test_dropping_follows_no_link(store: SnapshotStore, tmp_path: Path) -> None:
    snapshot = publish(store)
    away = tmp_path / "away"
    snapshot.folder.rename(away)
    snapshot.folder.symlink_to(away)
    store.drop(KERNEL)
    assert (away / "manifest.json").exists()
    assert not snapshot.folder.parent.exists()


def test_a_file_where_a_snapshot_should_be(store: SnapshotStore, root: Path) -> None:
    publish(store)
    (root / KERNEL / "2").write_bytes(b"")
    with pytest.raises(SnapshotUnusable, match="is not a folder"):
        store.latest(KERNEL)
    store.drop(KERNEL, 2)
    assert generations(store) == [1]


def test_what_does_not_belong_to_it_is_left_alone(store: SnapshotStore, root: Path) -> None:
    publish(store)
    (root / KERNEL / "notes").write_bytes(b"")
    (root / KERNEL / "01").mkdir()
    (root / "not a kernel").mkdir()
    store.reconcile([])
    store.drop(KERNEL)
    assert left(root) == {KERNEL, f"{KERNEL}/notes", f"{KERNEL}/01", "not a kernel"}


def test_other_content(store: SnapshotStore, root: Path) -> None:
    snapshot = publish(store)
    path = snapshot.image / "pages.img"
    seen = path.stat()
    path.write_bytes(b"q" * 1000)
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    for each in (store, another(root)):
        assert each.latest(KERNEL) == snapshot
        words = each.verify(snapshot)
        assert words
        assert "another content" in words


def test_verifying_reads_once(
    store: SnapshotStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = publish(store)
    later = another(root)
    assert later.verify(snapshot) is None
    monkeypatch.setattr("hashlib.file_digest", None)
    assert store.verify(snapshot) is None
    assert later.verify(snapshot) is None


def test_an_image_open_to_others(store: SnapshotStore) -> None:
    snapshot = publish(store)
    open_image(snapshot)
    with pytest.raises(SnapshotUnusable, match="open to other users"):
        store.verify(snapshot)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_folders_of_somebody_else(store: SnapshotStore) -> None:
    snapshot = publish(store)
    os.chown(snapshot.folder, 12345, 12345)
    with pytest.raises(SnapshotUnusable, match="belongs to user 12345"):
        store.latest(KERNEL)


def test_a_kernel_open_to_others(store: SnapshotStore, root: Path) -> None:
    publish(store)
    other = publish(store, kernel_id=OTHER)
    (root / KERNEL).chmod(0o755)
    assert store.list() == rows(other)
    with pytest.raises(SnapshotUnusable, match="open to other users"):
        store.latest(KERNEL)
    with pytest.raises(SnapshotUnusable, match="open to other users"):
        store.drop(KERNEL)
    with pytest.raises(SnapshotUnusable, match="open to other users"):
        publish(store, generation=9)
    assert [path for path, _ in store.reconcile([]).unusable] == [root / KERNEL]


def test_a_root_open_to_others(store: SnapshotStore, root: Path) -> None:
    publish(store)
    root.chmod(0o755)
    for call in (store.list, store.draft, lambda: store.latest(KERNEL)):
        with pytest.raises(SnapshotUnusable, match="open to other users"):
            call()


def test_a_root_that_is_a_link(root: Path, tmp_path: Path) -> None:
    root.parent.mkdir()
    root.symlink_to(tmp_path)
    with pytest.raises(SnapshotUnusable, match="not a folder"):
        SnapshotStore(root, GIB).draft()


def test_a_disk_that_does_not_read(
    store: SnapshotStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(store)

    def fail(*args: object) -> bytes:
        raise OSError(5, "Input/output error", str(root / KERNEL))

    monkeypatch.setattr("torpor.snapshot.build.read_plain", fail)
    later = another(root)
    assert later.list() == ()
    with pytest.raises(OSError, match="Input/output"):
        later.latest(KERNEL)
    (folder, words), *_ = later.reconcile([], orphans_older_than_s=0).unusable
    assert folder == root / KERNEL / "1"
    assert "cannot be read" in words


def test_manifests_are_parsed_once(store: SnapshotStore, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = publish(store), publish(store)
    assert store.list() == rows(first, second)
    assert store.latest(KERNEL) == second
    with monkeypatch.context() as patch:
        patch.setattr("torpor.snapshot.build.parse_snapshot", None)
        assert store.list() == rows(first, second)
        assert store.latest(KERNEL) == second
    monkeypatch.setattr("torpor.snapshot.build._MANIFESTS_KNOWN", 1)
    third = publish(store)
    assert store.list() == rows(first, second, third)
    assert [store.get(KERNEL, n) for n in (1, 2, 3)] == [first, second, third]


# Removing


def test_dropped(store: SnapshotStore, root: Path) -> None:
    publish(store)
    publish(store, name="x")
    last, other = publish(store), publish(store, kernel_id=OTHER)
    gone = store.drop(KERNEL, 2)
    assert [(each.folder.name, each.reason) for each in gone] == [("2", "dropped")]
    assert store.drop(KERNEL, 2) == ()
    assert store.latest(KERNEL) == last
    assert len(store.drop(KERNEL)) == 2
    assert store.drop(KERNEL) == ()
    assert left(root) == tree(other)


def test_incomplete_ones(store: SnapshotStore, root: Path) -> None:
    whole, half = publish(store), publish(store)
    (half.folder / "manifest.json").unlink()
    assert store.latest(KERNEL) == whole
    assert store.get(KERNEL, 2) is None
    assert store.next_generation(KERNEL) == 3
    assert [gone.reason for gone in store.answered(KERNEL, 1)] == ["incomplete"]
    half = publish(store)
    (half.folder / "manifest.json").unlink()
    assert [gone.reason for gone in store.reconcile([KERNEL]).removed] == ["incomplete"]
    assert left(root) == tree(whole)


def test_orphans(store: SnapshotStore, root: Path, clock: Clock) -> None:
    made = clock.now
    known = publish(store, created_at="2000-01-01T00:00:00+00:00")
    times = {"created_at": "2096-10-02T07:06:40+00:00"}  # 4e9 s
    orphan, named = (
        publish(store, kernel_id=OTHER, **times),
        publish(store, kernel_id=OTHER, name="x", **times),
    )
    assert orphan.manifest.created_s == made
    clock.now = made + 100
    for older_than_s in (None, 100):
        found = store.reconcile({KERNEL}, orphans_older_than_s=older_than_s)
        assert found.orphans == rows(orphan, named)
        assert (found.removed, found.unusable) == ((), ())
    found = store.reconcile({KERNEL}, orphans_older_than_s=99)
    assert found.orphans == ()
    assert [gone.reason for gone in found.removed] == ["nobody knows its kernel, and it is old"] * 2
    assert left(root) == tree(known)


def test_what_the_disk_will_not_remove(
    store: SnapshotStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(store)
    publish(store)

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", fail)
        assert store.answered(KERNEL, 2) == ()
        with pytest.raises(OSError, match="Read-only"):
            store.drop(KERNEL)
    assert generations(store) == [1, 2]


def test_sizes_are_told_for_people() -> None:
    texts = [size_text(n) for n in (0, 1023, 3 << 20, 1 << 30, 1_600_000_000)]
    assert texts == ["0 bytes", "1023 bytes", "3 MiB", "1.0 GiB", "1.5 GiB"]
