"""Drafts, publishing, finding, verifying, holding."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path

import pytest
from torpor.golden.manifest import GoldenUnusable
from torpor.golden.store import GoldenStore

from tests.unit.golden.making import (
    CONTENT,
    KEY,
    OTHER,
    SIZE_BYTES,
    a_manifest,
    fill,
    left,
    publish,
    tree,
)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_nothing_is_made_by_looking(store: GoldenStore, root: Path) -> None:
    assert store.find(KEY) is None
    assert store.list() == ()
    assert store.collect() == ()
    assert store.remove(KEY) == 0
    assert store.failures() == {}
    assert store.may_build(KEY, 0.0) == (True, "")
    store.succeeded(KEY)
    assert not root.exists()


def test_a_draft_is_private(store: GoldenStore, root: Path) -> None:
    draft = store.draft("b1")
    assert draft == root / ".draft-b1"
    assert left(root) == {".draft-b1", ".draft-b1/image", ".draft-b1/lock"}
    assert {mode(path) for path in (root, draft, draft / "image")} == {0o700}
    with pytest.raises(FileExistsError):
        store.draft("b1")
    store.discard(draft)
    store.discard(draft)
    assert left(root) == set()


def test_a_draft_that_cannot_be_made(
    store: GoldenStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(GoldenUnusable):
        store.draft("../b1")
    real = os.mkdir

    def mkdir(path: Path, mode: int = 0o777) -> None:
        if Path(path).name == "image":
            raise OSError(28, "No space left on device")
        real(path, mode)

    monkeypatch.setattr(os, "mkdir", mkdir)
    with pytest.raises(OSError, match="No space"):
        store.draft("b1")
    assert left(root) == set()


def test_published_is_found(store: GoldenStore, root: Path) -> None:
    golden = publish(store)
    assert store.find(KEY) == golden
    assert store.list() == (golden,)
    assert golden.size_bytes == SIZE_BYTES
    assert golden.folder == root / KEY / golden.manifest.build
    assert {name: golden.image.joinpath(name).read_bytes() for name in CONTENT} == CONTENT
    assert left(root) == tree(golden)
    assert {mode(path) for path in golden.image.iterdir()} == {0o600}
    assert mode(golden.folder / "manifest.json") == 0o600
    assert mode(root / KEY) == 0o700
    assert store.verify(golden) is None
    assert store.find(OTHER) is None
    assert GoldenStore(root, 0).find(KEY) == golden


def test_a_newer_build_replaces_the_older(store: GoldenStore, root: Path) -> None:
    publish(store)
    newer = publish(store)
    assert store.find(KEY) == newer
    assert left(root) == tree(newer)


def test_two_keys(store: GoldenStore, root: Path) -> None:
    one, two = publish(store), publish(store, key=OTHER)
    assert (store.find(KEY), store.find(OTHER)) == (one, two)
    assert left(root) == tree(one) | tree(two)


def test_a_held_build_is_left(store: GoldenStore, root: Path) -> None:
    older = publish(store)
    with store.hold(older), store.hold(older):
        newer = publish(store)
        assert store.find(KEY) == newer
        assert left(root) == tree(older) | tree(newer)
        assert store.verify(older) is None
        assert {golden.folder for golden in store.list()} == {older.folder, newer.folder}
        assert store.collect() == ()
    assert [(gone.folder, gone.reason) for gone in store.collect()] == [
        (older.folder, "superseded by a newer build")
    ]
    assert left(root) == tree(newer)
    with pytest.raises(GoldenUnusable, match="has been removed"), store.hold(older):
        pass


def test_the_newer_counts_though_the_clock_was_set_back(store: GoldenStore) -> None:
    older = publish(store)
    os.utime(older.folder / "manifest.json", (5e9, 5e9))
    with store.hold(older):
        newer = publish(store)
        assert store.find(KEY) == newer


def test_a_build_that_goes_while_it_is_being_held(
    store: GoldenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden = publish(store)
    real = fcntl.flock

    def flock(fd: int, operation: int) -> None:
        (golden.folder / "manifest.json").unlink(missing_ok=True)
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(GoldenUnusable, match="was just removed"), store.hold(golden):
        pass


def test_a_disk_without_locks(
    store: GoldenStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden = publish(store)
    open_files = len(os.listdir("/proc/self/fd"))

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="No locks"), store.hold(golden):
        pass
    with pytest.raises(OSError, match="No locks"):
        store.draft("b9")
    assert len(os.listdir("/proc/self/fd")) == open_files
    assert left(root) == tree(golden)


def test_a_build_that_is_being_removed_cannot_be_held(store: GoldenStore) -> None:
    golden = publish(store)
    with (golden.folder / "manifest.json").open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(GoldenUnusable, match="has been removed"), store.hold(golden):
            pass


@pytest.mark.parametrize("content", [{}, {"pages.img": b"x" * 10_001}])
def test_an_image_that_cannot_be(store: GoldenStore, root: Path, content: dict[str, bytes]) -> None:
    older = publish(store)
    draft = store.draft("b1")
    fill(draft, content)
    with pytest.raises(GoldenUnusable, match=r"no image|more than"):
        store.publish(draft, a_manifest(build="b1"))
    assert left(root) == tree(older)


@pytest.mark.parametrize("kind", ["link", "folder", "fifo", "socket"])
def test_an_image_with_something_else_in_it(store: GoldenStore, root: Path, kind: str) -> None:
    draft = store.draft("b1")
    fill(draft)
    odd = draft / "image" / "odd"
    if kind == "link":
        odd.symlink_to("pages.img")
    elif kind == "folder":
        odd.mkdir()
    elif kind == "fifo":
        os.mkfifo(odd)
    else:
        os.mknod(odd, stat.S_IFSOCK | 0o600)
    with pytest.raises(GoldenUnusable, match="not a plain file"):
        store.publish(draft, a_manifest(build="b1"))
    assert left(root) == set()


def test_only_an_own_draft_is_published(store: GoldenStore, root: Path) -> None:
    draft = store.draft("b1")
    fill(draft)
    with pytest.raises(GoldenUnusable, match="not a draft"):
        GoldenStore(root, 10_000).publish(draft, a_manifest(build="b1"))
    assert (draft / "image" / "pages.img").exists()
    with pytest.raises(GoldenUnusable, match="not a draft"):
        store.publish(draft, a_manifest(build="b2"))
    assert left(root) == set()


def test_beside_an_incomplete_build(store: GoldenStore, root: Path) -> None:
    incomplete = publish(store)
    (incomplete.folder / "manifest.json").unlink()
    golden = publish(store)
    assert left(root) == tree(golden)


def test_a_build_is_published_once(store: GoldenStore, root: Path) -> None:
    golden = publish(store, build="b1")
    with pytest.raises(FileExistsError):
        publish(store, build="b1")
    assert left(root) == tree(golden)
    assert store.find(KEY) == golden


def test_what_is_not_json_is_not_published(store: GoldenStore, root: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        publish(store, kernel_info={"n": float("nan")})
    assert left(root) == set()
