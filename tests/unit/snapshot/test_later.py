"""Digests that are computed after the snapshot was published: before that, by whom, and for what."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torpor.golden.manifest import GoldenUnusable, ImageFile, parse_manifest, sealed
from torpor.snapshot.build import Snapshot
from torpor.snapshot.errors import SnapshotUnusable
from torpor.snapshot.later import agree, is_complete
from torpor.snapshot.manifest import SnapshotManifest, parse_snapshot, snapshot_bytes
from torpor.snapshot.store import SnapshotStore

from tests.unit.golden.making import a_manifest as a_golden_manifest
from tests.unit.snapshot.making import (
    CONTENT,
    KERNEL,
    SIZE_BYTES,
    a_manifest,
    fill,
    left,
    publish,
    rows,
    tree,
)
from tests.unit.snapshot.test_store import another

LARGE_BYTES = len(CONTENT["checkpoint.img"])
LARGE = {"checkpoint.img", "pages.img"}
ALL = {name: hashlib.sha256(raw).hexdigest() for name, raw in CONTENT.items()}
AT_FIRST = ALL | dict.fromkeys(LARGE)
DIGESTS = f"{KERNEL}/1/digests.json"
FILES = {name: ImageFile(len(raw), ALL[name]) for name, raw in CONTENT.items()}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torpor.snapshot.image.LARGE_BYTES", LARGE_BYTES)


def publish_later(store: SnapshotStore, **changes: Any) -> Snapshot:
    """Publish as a daemon does, the digests of large files being left to later."""
    draft = store.draft()
    fill(draft)
    following = {"generation": store.next_generation(changes.get("kernel_id", KERNEL))}
    return store.publish(draft, a_manifest(**(following | changes)), later=True)


def sums(snapshot: Snapshot) -> dict[str, str | None]:
    return {name: file.sha256 for name, file in snapshot.manifest.files.items()}


def got(store: SnapshotStore, generation: int = 1) -> Snapshot:
    snapshot = store.get(KERNEL, generation)
    assert snapshot
    return snapshot


def completed(store: SnapshotStore, generation: int = 1) -> Snapshot:
    """Find it and compute what is missing, as whoever needs digests does."""
    return store.complete(got(store, generation))


def kept(snapshot: Snapshot) -> Any:
    return json.loads((snapshot.folder / "digests.json").read_bytes())


def flip(snapshot: Snapshot) -> None:
    """Change one bit, and of what ``stat`` gives nothing but when that was."""
    path = snapshot.image / "pages.img"
    seen, raw = path.stat(), path.read_bytes()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    restore_times(path, seen)


def restore_times(path: Path, seen: os.stat_result) -> None:
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    while path.stat().st_ctime_ns == seen.st_ctime_ns:  # a clock may be a coarse one
        os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))


# Before they are computed


def test_published_without_those_of_large_files(store: SnapshotStore, root: Path) -> None:
    snapshot = publish_later(store)
    assert sums(snapshot) == AT_FIRST
    written = json.loads((snapshot.folder / "manifest.json").read_bytes())["files"]
    assert {name: row["sha256"] for name, row in written.items()} == AT_FIRST
    assert {name: row["bytes"] for name, row in written.items()} == {
        name: len(raw) for name, raw in CONTENT.items()
    }
    assert left(root) == tree(snapshot)


def test_nobody_computes_them_unasked(
    store: SnapshotStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = publish_later(store, name="mine")
    monkeypatch.setattr("hashlib.file_digest", None)
    for each in (store, another(root)):
        assert each.get(KERNEL, 1) == each.get(KERNEL, "mine") == each.latest(KERNEL) == snapshot
        assert each.list() == rows(snapshot)
        assert each.unusable() == ()
        assert each.reconcile([KERNEL]).unusable == ()
    assert store.verify(snapshot) is None, "nobody has touched it here"
    assert left(root) == tree(snapshot)


def test_whoever_has_not_published_it_takes_it_as_it_is(store: SnapshotStore, root: Path) -> None:
    snapshot = publish_later(store)
    later = another(root)
    assert later.verify(got(later)) is None
    (snapshot.image / "pages_meta.img").write_bytes(b"n" * 10)
    words = later.verify(got(later))
    assert words
    assert "pages_meta.img has another content than was written" in words
    assert left(root) == tree(snapshot)


def test_small_files_leave_nothing_for_later(
    store: SnapshotStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torpor.snapshot.image.LARGE_BYTES", 1 << 20)
    snapshot = publish_later(store)
    assert sums(snapshot) == ALL
    assert got(store) == got(another(root)) == completed(store) == snapshot
    assert left(root) == tree(snapshot)


def touch(snapshot: Snapshot) -> None:
    path = snapshot.image / "pages.img"
    restore_times(path, path.stat())


def replace_one(snapshot: Snapshot) -> None:
    path, other = snapshot.image / "pages.img", snapshot.folder / "other"
    other.write_bytes(path.read_bytes())
    os.rename(other, path)


@pytest.mark.parametrize("harm", [flip, touch, replace_one])
def test_what_was_touched_before_does_not_count_as_sound(
    store: SnapshotStore, root: Path, harm: Callable[[Snapshot], None]
) -> None:
    snapshot = publish_later(store)
    harm(snapshot)
    for _ in range(2):
        words = store.verify(got(store))
        assert words
        assert "pages.img was changed after it was written" in words
        with pytest.raises(SnapshotUnusable, match=r"pages\.img was changed after it was written"):
            completed(store)
        assert sums(got(store)) == AT_FIRST
    assert left(root) == tree(snapshot), "what it held nobody knows"


# Computed


def test_computed_for_the_first_who_asks(store: SnapshotStore, root: Path) -> None:
    snapshot = publish_later(store)
    before = (snapshot.folder / "manifest.json").read_bytes()
    complete = completed(store)
    assert sums(complete) == ALL
    assert is_complete(complete.manifest.files)
    assert kept(snapshot) == ALL
    assert stat.S_IMODE((snapshot.folder / "digests.json").stat().st_mode) == 0o600
    assert (snapshot.folder / "manifest.json").read_bytes() == before
    assert left(root) == tree(snapshot) | {DIGESTS}
    for each in (store, another(root)):
        assert each.get(KERNEL, 1) == each.latest(KERNEL) == complete
        assert each.complete(snapshot) == each.complete(complete) == complete
        assert each.verify(complete) is each.verify(snapshot) is None


def test_kept_ones_are_not_computed_again(
    store: SnapshotStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_later(store)
    complete = completed(store)
    monkeypatch.setattr("hashlib.file_digest", None)
    assert got(store) == got(another(root)) == complete
    assert completed(store) == completed(another(root)) == complete
    assert store.verify(complete) is None


def test_another_process_computes_them(store: SnapshotStore, root: Path) -> None:
    snapshot = publish_later(store)
    complete = completed(another(root))
    assert sums(complete) == ALL
    assert kept(snapshot) == ALL
    assert got(store) == complete
    assert store.verify(complete) is store.verify(snapshot) is None


def test_what_is_kept_stays_when_the_rest_is_computed(store: SnapshotStore, root: Path) -> None:
    snapshot = publish_later(store)
    some = {"pages.img": ALL["pages.img"]}
    (snapshot.folder / "digests.json").write_text(json.dumps(some))
    assert sums(got(another(root))) == AT_FIRST | some
    assert sums(completed(another(root))) == ALL
    assert kept(snapshot) == ALL


def test_what_changes_afterwards_is_found(store: SnapshotStore, root: Path) -> None:
    publish_later(store)
    flip(completed(store))
    for each in (store, another(root)):
        words = each.verify(got(each))
        assert words
        assert "pages.img has another content than was written" in words


def test_several_ask_at_once(store: SnapshotStore, root: Path) -> None:
    stores = [store, another(root), another(root), another(root)]
    for generation in range(1, 11):
        snapshot = publish_later(store, generation=generation)
        start = threading.Barrier(len(stores))

        def ask(each: SnapshotStore, nth: int = generation, at: Any = start) -> Snapshot:
            at.wait(10)
            return completed(each, nth)

        with ThreadPoolExecutor(len(stores)) as pool:
            found = list(pool.map(ask, stores))
        assert all(sums(each) == ALL for each in found)
        assert kept(snapshot) == ALL
        assert not (snapshot.folder / "digests.json.new").exists()


def test_lists_show_sizes_and_what_is_known_by_now(store: SnapshotStore, root: Path) -> None:
    snapshot = publish_later(store)
    for each in (store, another(root)):
        assert each.list() == rows(snapshot)
    complete = completed(store)
    for each in (store, another(root)):
        assert each.list() == rows(complete)
        assert [row.size_bytes for row in each.list()] == [SIZE_BYTES]


# Copies of it


@pytest.mark.parametrize("known", [False, True])
def test_one_that_was_damaged_since_gives_way(
    store: SnapshotStore, root: Path, known: bool
) -> None:
    """For what a store has, whose manifest is complete; be ours so or not."""
    snapshot = publish_later(store)
    if known:
        completed(store)
    manifest = replace(snapshot.manifest, files=FILES)
    assert not store.damaged_copy_of(manifest)
    flip(snapshot)
    later = another(root)
    assert later.damaged_copy_of(manifest)
    assert left(root) == tree(snapshot) | ({DIGESTS} if known else set())
    draft = later.draft()
    fill(draft)
    mended = later.mend(draft, manifest)
    assert mended.manifest == manifest
    assert left(root) == tree(mended)
    for each in (store, later, another(root)):
        assert got(each) == mended
        assert each.verify(mended) is None


def test_another_one_does_not(store: SnapshotStore, root: Path) -> None:
    snapshot = publish_later(store)
    flip(snapshot)
    other = replace(snapshot.manifest, files=FILES, hostname="other")
    assert not store.damaged_copy_of(other)
    draft = store.draft()
    fill(draft)
    with pytest.raises(SnapshotUnusable, match="has generation 1 already"):
        store.mend(draft, other)
    assert left(root) == tree(snapshot)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"x": ImageFile(1, "0" * 64)}, {"x": ImageFile(1, "0" * 64)}, True),
        ({"x": ImageFile(1, "0" * 64)}, {"x": ImageFile(1, None)}, True),
        ({"x": ImageFile(1, None)}, {"x": ImageFile(1, None)}, True),
        ({"x": ImageFile(1, "0" * 64)}, {"x": ImageFile(1, "1" * 64)}, False),
        ({"x": ImageFile(1, None)}, {"x": ImageFile(2, None)}, False),
        ({"x": ImageFile(1, None)}, {"x": ImageFile(2, "0" * 64)}, False),
        ({"x": ImageFile(1, None)}, {"y": ImageFile(1, None)}, False),
        ({"x": ImageFile(1, None)}, {}, False),
        (
            {"x": ImageFile(1, None), "y": ImageFile(1, "0" * 64)},
            {"x": ImageFile(1, "0" * 64), "y": ImageFile(1, None)},
            True,
        ),
    ],
)
def test_an_unknown_one_agrees_with_any(
    one: dict[str, ImageFile], other: dict[str, ImageFile], same: bool
) -> None:
    this, that = a_manifest(files=one), a_manifest(files=other)
    assert agree(this, that) is agree(that, this) is same
    assert not agree(this, replace(that, name="another"))


def test_a_copy_must_say_what_is_in_it(store: SnapshotStore, root: Path) -> None:
    manifest = publish_later(store).manifest
    store.drop(KERNEL)
    for take in (store.adopt, store.mend, store.publish_copy):
        draft = store.draft()
        fill(draft)
        with pytest.raises(SnapshotUnusable, match="is not the one that was published"):
            take(draft, manifest)
    assert left(root) == set()


# What manifests may say


def of_version(version: int, manifest: SnapshotManifest) -> bytes:
    return sealed(manifest.to_json() | {"version": version})


def test_those_of_the_first_version_are_read(store: SnapshotStore, root: Path) -> None:
    manifest = a_manifest(files=FILES)
    assert json.loads(snapshot_bytes(manifest))["version"] == 2
    for version in (1, 2):
        assert parse_snapshot(of_version(version, manifest), owner_uid=os.geteuid()) == manifest
    for version in (0, 3):
        with pytest.raises(SnapshotUnusable, match=f"of version {version}, this Torpor knows"):
            parse_snapshot(of_version(version, manifest), owner_uid=os.geteuid())
    snapshot = publish(store)
    raw = of_version(1, snapshot.manifest)
    (snapshot.folder / "manifest.json").write_bytes(raw)
    for each in (store, another(root)):
        assert got(each) == completed(each) == snapshot
        assert each.verify(snapshot) is None
    assert (snapshot.folder / "manifest.json").read_bytes() == raw
    assert left(root) == tree(snapshot)


def test_a_snapshot_may_leave_one_out() -> None:
    manifest = a_manifest(files={"x": ImageFile(1, None), "y": ImageFile(2, "0" * 64)})
    raw = snapshot_bytes(manifest)
    assert json.loads(raw)["files"]["x"] == {"bytes": 1, "sha256": None}
    assert parse_snapshot(raw, owner_uid=os.geteuid()) == manifest


@pytest.mark.parametrize(
    "row",
    [
        {"bytes": 1},
        {"bytes": 1, "sha256": 7},
        {"bytes": 1, "sha256": 0},
        {"bytes": 1, "sha256": False},
        {"bytes": 1, "sha256": ""},
        {"bytes": 1, "sha256": "null"},
        {"bytes": 1, "sha256": []},
        {"bytes": None, "sha256": None},
        None,
    ],
)
def test_but_only_as_null(row: object) -> None:
    body = a_manifest(files={"x": ImageFile(1, None)}).to_json() | {"files": {"x": row}}
    with pytest.raises(SnapshotUnusable, match="manifest of the snapshot is damaged"):
        parse_snapshot(sealed(body), owner_uid=os.geteuid())


@pytest.mark.parametrize("row", [{"bytes": 1, "sha256": None}, {"bytes": 1}])
def test_a_golden_leaves_none_out(row: object) -> None:
    body = a_golden_manifest().to_json() | {"files": {"x": row}}
    with pytest.raises(GoldenUnusable, match="sha256 is not a text"):
        parse_manifest(sealed(body))
