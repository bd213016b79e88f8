"""Digests that are computed later, where something comes between: damage, full disks, removals."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from torpor.errors import Busy
from torpor.golden.image import Digests
from torpor.snapshot.build import Snapshot
from torpor.snapshot.errors import SnapshotUnusable
from torpor.snapshot.later import is_complete
from torpor.snapshot.store import SnapshotStore

from tests.unit.golden.test_faults import Faults
from tests.unit.snapshot.making import CONTENT, KERNEL, SIZE_BYTES, left, publish, tree
from tests.unit.snapshot.test_later import (
    ALL,
    AT_FIRST,
    DIGESTS,
    LARGE,
    LARGE_BYTES,
    completed,
    flip,
    got,
    kept,
    publish_later,
    sums,
)
from tests.unit.snapshot.test_store import another

LATER = {name: ALL[name] for name in LARGE}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torpor.snapshot.image.LARGE_BYTES", LARGE_BYTES)


# What lies there is not what was kept


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"null",
        b"7",
        b'"pages.img"',
        b"[]",
        json.dumps(list(LATER.items())).encode(),
        b"[" * 100_000,
        b"{}",
        b" " * (1 << 20) + json.dumps(LATER).encode(),
        json.dumps(dict.fromkeys(LARGE, "0" * 63)).encode(),
        json.dumps(dict.fromkeys(LARGE, "0" * 65)).encode(),
        json.dumps({name: sha256.upper() for name, sha256 in LATER.items()}).encode(),
        json.dumps(dict.fromkeys(LARGE, 7)).encode(),
        json.dumps(dict.fromkeys(LARGE)).encode(),
        json.dumps({"other.img": "0" * 64, "../pages.img": "0" * 64}).encode(),
    ],
)
def test_kept_ones_that_cannot_be_read_do_not_count(
    store: SnapshotStore, root: Path, raw: bytes
) -> None:
    snapshot = publish_later(store)
    (snapshot.folder / "digests.json").write_bytes(raw)
    later = another(root)
    assert sums(got(later)) == AT_FIRST
    assert sums(completed(later)) == ALL
    assert later.verify(got(later)) is None
    assert kept(snapshot) == ALL


def test_they_are_for_large_files_only(store: SnapshotStore, root: Path) -> None:
    snapshot = publish_later(store)
    wrong = dict.fromkeys(CONTENT, "0" * 64) | {"other.img": "0" * 64}
    (snapshot.folder / "digests.json").write_text(json.dumps(wrong))
    later = another(root)
    found = got(later)
    assert sums(found) == ALL | dict.fromkeys(LARGE, "0" * 64)
    assert later.verify(found), "those of another snapshot are no proof of this one"


def link(path: Path, away: Path) -> None:
    away.write_text(json.dumps(LATER))
    path.symlink_to(away)


def link_of_draft(path: Path, away: Path) -> None:
    link(path.with_name(f"{path.name}.new"), away)


def folder(path: Path, away: Path) -> None:
    path.mkdir()


def pipe(path: Path, away: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("put", [link, link_of_draft, folder, pipe])
def test_what_is_no_file_does_not_count(
    store: SnapshotStore, root: Path, tmp_path: Path, put: Callable[[Path, Path], None]
) -> None:
    snapshot, away = publish_later(store), tmp_path / "away"
    put(snapshot.folder / "digests.json", away)
    before = away.read_bytes() if away.exists() else b""
    flip(snapshot)
    later = another(root)
    assert sums(got(later)) == AT_FIRST
    with suppress(SnapshotUnusable):  # of a link where it would be written
        found = completed(later)
        assert is_complete(found.manifest.files)
        assert sums(found)["pages.img"] != ALL["pages.img"], "it is of what is there"
    assert (away.read_bytes() if away.exists() else b"") == before
    assert store.drop(KERNEL, 1)
    assert left(root) == set()


# Disks that fail


def refuse(path: Path, content: bytes) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", str(path))


def test_a_disk_that_takes_nothing(
    store: SnapshotStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = publish_later(store)
    later = another(root)
    with monkeypatch.context() as patch:
        patch.setattr("torpor.snapshot.later.write_plain", refuse)
        for each in (store, store, later):
            assert sums(completed(each)) == ALL
            assert sums(got(each)) == AT_FIRST
            assert each.verify(got(each)) is None
    assert left(root) == tree(snapshot)
    assert sums(completed(later)) == ALL
    assert kept(snapshot) == ALL


def test_one_that_cannot_be_read(
    store: SnapshotStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = publish_later(store)

    def fail(self: Digests, path: Path) -> str:
        raise OSError(errno.EIO, "Input/output error", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Digests, "of", fail)
        words = r"checkpoint\.img cannot be read: Input/output error"
        with pytest.raises(SnapshotUnusable, match=words) as caught:
            completed(store)
    assert "backup" in caught.value.hint
    assert left(root) == tree(snapshot)
    assert sums(completed(store)) == ALL


@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("name", ["open", "fsync", "rename", "dup"])
def test_whatever_fails_meanwhile(
    root: Path, name: str, lasting: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for first in range(1, 100):
        at = root / str(first)
        publisher, store = another(at), another(at)
        snapshot = publish_later(publisher)
        faults = Faults(getattr(os, name), first, 10**6 if lasting else first)
        found = None
        with monkeypatch.context() as patch:
            patch.setattr(os, name, faults)
            with suppress(OSError, SnapshotUnusable):
                found = store.complete(snapshot)
        assert found is None or sums(found) == ALL
        assert publisher.verify(snapshot) is None
        assert left(at) - {DIGESTS} == tree(snapshot)
        assert sums(completed(store)) == sums(completed(another(at))) == ALL
        assert kept(snapshot) == ALL
        assert left(at) == tree(snapshot) | {DIGESTS}
        if faults.calls < first:
            break
    else:
        pytest.fail("it never ran through")


# Removed, held, freed


def test_removed_before(store: SnapshotStore, root: Path) -> None:
    snapshot = publish_later(store)
    another(root).drop(KERNEL, 1)
    assert store.get(KERNEL, 1) is None
    with pytest.raises(SnapshotUnusable, match="cannot be read: No such file"):
        store.complete(snapshot)
    assert left(root) == set()


class Blocked:
    """Digests wait, before a file is read or after that, until they may go on."""

    def __init__(self, patch: pytest.MonkeyPatch, name: str, *, read: bool) -> None:
        self.waits, self.go_on = threading.Event(), threading.Event()
        of = Digests.of

        def waiting(digests: Digests, path: Path) -> str:
            sha256 = of(digests, path) if read else ""
            if path.name == name:
                self.waits.set()
                assert self.go_on.wait(10)
            return sha256 or of(digests, path)

        patch.setattr(Digests, "of", waiting)

    @contextmanager
    def completing(self, store: SnapshotStore, snapshot: Snapshot) -> Iterator[Future[Snapshot]]:
        """Have it begun; it goes on at the end at the latest."""
        with ThreadPoolExecutor(1) as pool:
            try:
                future = pool.submit(store.complete, snapshot)
                assert self.waits.wait(10)
                yield future
            finally:
                self.go_on.set()


@pytest.mark.parametrize("publisher", [False, True])
@pytest.mark.parametrize("itself", [False, True])
@pytest.mark.parametrize(
    ("name", "read"), [("checkpoint.img", False), ("checkpoint.img", True), ("pages.img", False)]
)
def test_removed_while_they_are_computed(
    store: SnapshotStore,
    root: Path,
    name: str,
    read: bool,
    itself: bool,
    publisher: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the same process or another one; in that which has published it or another one."""
    snapshot = publish_later(store)
    computing = store if publisher else another(root)
    blocked = Blocked(monkeypatch, name, read=read)
    with blocked.completing(computing, snapshot) as future:
        [gone] = (computing if itself else another(root)).drop(KERNEL)
        assert gone.folder == snapshot.folder
        assert left(root) == set(), "nobody waits for digests"
        assert not future.done()
        blocked.go_on.set()
        with pytest.raises(SnapshotUnusable, match="cannot be read: No such file"):
            future.result(10)
    assert left(root) == set()
    assert computing.get(KERNEL, 1) is None


def test_removed_when_all_is_read(
    store: SnapshotStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = publish_later(store)
    blocked = Blocked(monkeypatch, "pages.img", read=True)
    with blocked.completing(store, snapshot):
        assert store.drop(KERNEL)
    assert left(root) == set()
    assert sums(publish_later(store)) == AT_FIRST
    assert sums(got(store)) == AT_FIRST, "nothing of it is taken for the next one"
    assert store.verify(got(store)) is None


def test_half_removed(store: SnapshotStore, root: Path) -> None:
    """As somebody leaves it who is removing it, or died over that."""
    snapshot = publish_later(store)
    (snapshot.folder / "manifest.json").unlink()
    before = left(root)
    with suppress(SnapshotUnusable):
        store.complete(snapshot)
    assert left(root) == before
    assert [gone.reason for gone in store.reconcile([KERNEL]).removed] == ["incomplete"]
    assert left(root) == set()


def test_held_and_dropped(store: SnapshotStore, root: Path) -> None:
    publish_later(store)
    with store.hold(got(store)):
        complete = completed(store)
        with pytest.raises(Busy):
            another(root).drop(KERNEL)
    assert kept(complete) == ALL
    [gone] = store.drop(KERNEL)
    assert gone.size_bytes > SIZE_BYTES
    assert left(root) == set()
    assert store.get(KERNEL, 1) is None
    assert sums(publish_later(store)) == sums(got(store)) == AT_FIRST
    assert store.verify(got(store)) is None, "nothing is known of the one before"


def test_freed_like_any_other(store: SnapshotStore, root: Path) -> None:
    publish_later(store)
    half, last = publish_later(store), publish_later(store)
    for generation in (1, 2, 3):
        completed(store, generation)
    (half.folder / "manifest.json").unlink()
    assert [gone.reason for gone in store.reconcile([KERNEL]).removed] == ["incomplete"]
    assert [gone.folder.name for gone in store.answered(KERNEL, 3)] == ["1"]
    assert left(root) == tree(last) | {f"{KERNEL}/3/digests.json"}


def test_beside_one_that_has_them_all(store: SnapshotStore, root: Path) -> None:
    whole, later = publish(store), publish_later(store)
    for generation in (1, 2):
        assert sums(completed(store, generation)) == ALL
    assert left(root) == tree(whole, later) | {f"{KERNEL}/2/digests.json"}
