"""Stores that fail, hang, lie and fill up; disks that do; and processes that die at every step."""

from __future__ import annotations

import errno
import json
import os
import random
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from torpor.errors import BackendUnavailable, ConfigError, SandboxError
from torpor.snapshot.errors import NoRoom, SnapshotUnusable, StoreUnavailable, TransferCancelled
from torpor.snapshot.remote.calls import Patience
from torpor.snapshot.remote.chunks import pack
from torpor.snapshot.remote.header import split_header
from torpor.snapshot.remote.seal import PlainSeal
from torpor.snapshot.remote.store import RemoteStore
from torpor.snapshot.store import SnapshotStore

from tests.contract.remote_place import CHUNK_BYTES, QUICK, Key, Place, publish
from tests.fakes import faulty_fs
from tests.unit.snapshot.making import KERNEL, left

SOON = Patience(timeout_s=0.2, tries=2, pause_s=0.001)


@pytest.fixture
def place() -> Iterator[Place]:
    name = secrets.token_hex(8)
    yield Place(f"memory://{name}")
    fs = fsspec.filesystem("memory")
    for path in fs.find(f"/{name}"):
        fs.rm_file(path)


@pytest.fixture
def local(tmp_path: Path) -> SnapshotStore:
    return SnapshotStore(tmp_path / "local", 1 << 22)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "other"


@pytest.fixture
def other(root: Path) -> SnapshotStore:
    return SnapshotStore(root, 1 << 22)


def faulty(place: Place, patience: Patience = QUICK, **faults: Any) -> RemoteStore:
    """The same store, seen through a file system that goes wrong."""
    options = {"inner": fsspec.filesystem("memory"), **faults}
    url = place.url.replace("memory://", "faulty:///")
    return Place(url, options).store(Key(), patience=patience)


class Failing:
    """Fails at the calls ``which`` of all those that match."""

    def __init__(self, exc: Exception, what: str, part: str, which: range | None = None) -> None:
        self.exc, self.what, self.part, self.which = exc, what, part, which
        self.count = 0
        self._lock = threading.Lock()

    def __call__(self, what: str, path: str) -> None:
        if what != self.what or self.part not in path:
            return
        with self._lock:
            self.count += 1
            if self.which is None or self.count - 1 in self.which:
                raise self.exc


SOME_ERRORS = [
    OSError("connection reset"),
    TimeoutError(),
    ConnectionRefusedError(),
    RuntimeError("something of the file system's own"),
    ValueError("what"),
]


@pytest.mark.parametrize("exc", SOME_ERRORS, ids=lambda exc: type(exc).__name__)
def test_what_fails_is_repeated(
    place: Place, local: SnapshotStore, other: SnapshotStore, exc: Exception
) -> None:
    snapshot = publish(local)
    for what, part in (("list", ""), ("read", ""), ("write", "chunks"), ("write", "manifest")):
        faulty(place, before=Failing(exc, what, part, range(2))).push(snapshot)
        if part:
            place.store().drop(KERNEL)
    faulty(place).push(snapshot)
    reading = faulty(place, before=Failing(exc, "read", "chunks", range(2)))
    assert reading.fetch(KERNEL, 1, other).manifest == snapshot.manifest


@pytest.mark.parametrize("exc", SOME_ERRORS, ids=lambda exc: type(exc).__name__)
def test_not_for_ever(
    place: Place, local: SnapshotStore, other: SnapshotStore, root: Path, exc: Exception
) -> None:
    snapshot = publish(local)
    for what, part in (("list", ""), ("write", "header"), ("write", "-"), ("write", "manifest")):
        fault = Failing(exc, what, part)
        with pytest.raises(StoreUnavailable, match="failed 3 times at") as caught:
            faulty(place, before=fault).push(snapshot)
        assert fault.count >= 3
        assert caught.value.hint
        assert place.store(Key()).list() == ()
    faulty(place).push(snapshot)
    with pytest.raises(BackendUnavailable):
        faulty(place, before=Failing(exc, "read", "-")).fetch(KERNEL, 1, other)
    assert not root.exists() or left(root) == set()
    with pytest.raises(StoreUnavailable):
        faulty(place, before=Failing(exc, "list", "")).list()
    with pytest.raises(StoreUnavailable):
        faulty(place, before=Failing(exc, "remove", "")).drop(KERNEL)
    assert place.store(Key()).fetch(KERNEL, 1, other)


def test_what_is_refused_is_not_repeated(place: Place, local: SnapshotStore) -> None:
    fault = Failing(PermissionError("Forbidden"), "write", "")
    with pytest.raises(
        ConfigError, match=r"refuses writing .*: PermissionError Forbidden"
    ) as caught:
        faulty(place, before=fault).push(publish(local))
    assert fault.count == 1
    assert "credentials" in caught.value.hint


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_store(place: Place, local: SnapshotStore, number: int) -> None:
    snapshot = publish(local)
    fault = Failing(OSError(number, os.strerror(number)), "write", "", range(2, 100))
    with pytest.raises(NoRoom, match=r"the store .* is full"):
        faulty(place, before=fault).push(snapshot)
    assert place.store(Key()).list() == ()
    assert faulty(place).push(snapshot)


def hang_at(what: str, part: str, until: threading.Event) -> Callable[[str, str], None]:
    def before(now: str, path: str) -> None:
        if now == what and part in path:
            until.wait(30)

    return before


@pytest.mark.parametrize(("what", "part"), [("list", ""), ("read", ""), ("write", "-")])
def test_a_store_that_hangs(place: Place, local: SnapshotStore, what: str, part: str) -> None:
    end = threading.Event()
    began = time.monotonic()
    try:
        with pytest.raises(StoreUnavailable, match=r"no answer in 0\.2 s"):
            faulty(place, SOON, before=hang_at(what, part, end)).push(publish(local))
        assert time.monotonic() - began < 15, "nobody waits for what hangs"
    finally:
        end.set()


@pytest.mark.parametrize(("what", "part"), [("list", ""), ("read", ""), ("write", "-")])
def test_cancelled_while_it_hangs(place: Place, local: SnapshotStore, what: str, part: str) -> None:
    end, cancel = threading.Event(), threading.Event()
    timer = threading.Timer(0.05, cancel.set)
    timer.start()
    began = time.monotonic()
    try:
        with pytest.raises(TransferCancelled):
            faulty(place, before=hang_at(what, part, end)).push(
                publish(local), cancelled=cancel.is_set
            )
        assert time.monotonic() - began < 8, "the store's own patience is 10 s"
    finally:
        end.set()
        timer.join()


def test_a_store_that_loses_what_it_was_given(place: Place, local: SnapshotStore) -> None:
    snapshot = publish(local)

    def cut(path: str, content: bytes) -> bytes:
        return content[:-1] if "000-00000000-" in path else content

    with pytest.raises(StoreUnavailable, match="has lost 1 of 5 chunks"):
        faulty(place, change=cut).push(snapshot)
    assert place.store(Key()).list() == ()
    sent = []
    faulty(place).push(snapshot, lambda progress: sent.append(progress.wire_bytes))
    assert sent[-1] < 300


@pytest.mark.parametrize("at", ["pwrite", "fsync"])
def test_a_full_disk(
    place: Place,
    local: SnapshotStore,
    other: SnapshotStore,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    at: str,
) -> None:
    place.store().push(publish(local))
    other.discard(other.draft())

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, at, full)
        with pytest.raises(NoRoom, match="disk became full"):
            place.store().fetch(KERNEL, 1, other)
    assert left(root) == set()
    assert place.store().fetch(KERNEL, 1, other)


def test_somebody_elses(
    place: Place, local: SnapshotStore, other: SnapshotStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.store(Key()).push(publish(local))
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    with pytest.raises(SnapshotUnusable, match="belongs to user"):
        place.store(Key()).manifest(KERNEL, 1)


@pytest.mark.parametrize("key", [None, Key()])
def test_a_later_format(
    place: Place, local: SnapshotStore, other: SnapshotStore, key: Key | None
) -> None:
    place.store(key).push(publish(local))
    name = f"{KERNEL}/1/manifest"
    raw = place.objects()[name]
    place.put(name, raw.replace(b"snapshot 1\n", b"snapshot 2\n", 1))
    with pytest.raises(SnapshotUnusable, match="format b'2', this Torpor knows 1") as caught:
        place.store(key).fetch(KERNEL, 1, other)
    assert "kept" in caught.value.hint


def test_put_in_from_another_snapshot(
    place: Place, local: SnapshotStore, other: SnapshotStore
) -> None:
    """All of one generation in place of another; and the chunks of an upload in those of another."""
    place.store(Key()).push(publish(local))
    place.store(Key()).push(publish(local))
    good = place.objects()
    place.put(f"{KERNEL}/2/manifest", good[f"{KERNEL}/1/manifest"])
    with pytest.raises(SnapshotUnusable, match="is that of another snapshot"):
        place.store(Key()).fetch(KERNEL, 2, other)
    place.put(f"{KERNEL}/2/manifest", good[f"{KERNEL}/2/manifest"])
    first, second = (
        [name for name in sorted(place.chunks()) if name.startswith(f"{KERNEL}/{generation}/")]
        for generation in (1, 2)
    )
    for ours, theirs in zip(first, second, strict=True):
        place.put(theirs, good[ours])
        with pytest.raises(SnapshotUnusable, match="damaged in the store"):
            place.store(Key()).fetch(KERNEL, 2, other)
        place.put(theirs, good[theirs])
    assert other.list() == ()


def test_a_chunk_of_the_same_size(
    place: Place, local: SnapshotStore, other: SnapshotStore, root: Path
) -> None:
    """Without a key it still is known for what it is not, and by its place."""
    place.store().push(publish(local))
    name, raw = max(place.chunks().items(), key=lambda each: len(each[1]))
    swapped = pack(random.Random(1).randbytes(CHUNK_BYTES))
    assert len(swapped) == len(raw)
    place.put(name, swapped)
    with pytest.raises(SnapshotUnusable, match=r"chunk \d of 6 of pages.img .* content is another"):
        place.store().fetch(KERNEL, 1, other)
    assert left(root) == set()


@pytest.mark.parametrize("torn_reads", [1, 3])
def test_a_manifest_that_is_just_replaced(
    place: Place, local: SnapshotStore, torn_reads: int
) -> None:
    """A store that reads in steps gives parts of two, or one that is cut short: it is read again."""
    place.store(Key()).push(publish(local))
    name = f"{KERNEL}/1/manifest"
    whole, reads = place.objects()[name], []

    def before(what: str, path: str) -> None:
        if what == "read" and path.endswith("/manifest"):
            reads.append(path)
            cut = -len(reads) if len(reads) <= torn_reads else len(whole)
            place.put(name, whole[:cut])

    assert faulty(place, before=before).manifest(KERNEL, 1).generation == 1
    assert len(reads) == torn_reads + 1


def test_a_manifest_that_stays_damaged(place: Place, local: SnapshotStore) -> None:
    place.store(Key()).push(publish(local))
    name = f"{KERNEL}/1/manifest"
    place.put(name, place.objects()[name][:-1])
    count = Failing(OSError(), "read", "/manifest", range(0))
    with pytest.raises(SnapshotUnusable, match="is damaged"):
        faulty(place, before=count).manifest(KERNEL, 1)
    assert count.count == 2


def test_a_header_of_another_snapshot(
    place: Place, local: SnapshotStore, other: SnapshotStore
) -> None:
    """Though what follows it is right, and fits: chunks would be looked for elsewhere."""
    place.store().push(publish(local))
    name = f"{KERNEL}/1/manifest"
    header, head, closed = split_header(place.objects()[name], "it")
    moved = replace(header, generation=2).encoded()
    seal = PlainSeal()
    place.put(name, moved + seal.close_manifest(seal.open_manifest(closed, head), moved))
    with pytest.raises(SnapshotUnusable, match="is that of another snapshot"):
        place.store().fetch(KERNEL, 1, other)


def test_a_drop_that_is_interrupted(place: Place, local: SnapshotStore) -> None:
    """What it has begun to remove is never listed as whole."""
    snapshot = publish(local)
    faulty(place).push(snapshot)

    def before(what: str, path: str) -> None:
        if what == "remove" and path.endswith("/1"):
            raise OSError("gone away")

    with pytest.raises(StoreUnavailable):
        faulty(place, before=before).drop(KERNEL)
    assert faulty(place).list() == ()
    assert len(place.chunks()) == 5
    assert faulty(place).drop(KERNEL) == (1,)
    assert place.objects() == {}


def test_a_name_that_is_taken_here(
    place: Place, local: SnapshotStore, other: SnapshotStore, root: Path
) -> None:
    place.store().push(publish(local, name="x"))
    publish(other, generation=7, name="x")
    with pytest.raises(SnapshotUnusable, match="has a checkpoint 'x' already"):
        place.store().fetch(KERNEL, 1, other)
    other.drop(KERNEL)
    assert left(root) == set()


def test_an_older_one_comes_back_beside_newer_ones(
    place: Place, local: SnapshotStore, other: SnapshotStore
) -> None:
    snapshot = publish(local)
    place.store().push(snapshot)
    newer = publish(other, generation=7)
    place.store().fetch(KERNEL, 1, other)
    assert other.latest(KERNEL) == newer
    assert other.next_generation(KERNEL) == 8
    assert [row.generation for row in other.list()] == [1, 7]


def killed(act: str, folder: Path) -> list[dict[str, Any]]:
    ran = subprocess.run(
        [sys.executable, "-m", "tests.unit.snapshot.remote.killed", act, folder],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()]


def test_killed_while_pushing(tmp_path: Path) -> None:
    outcomes = killed("push", tmp_path)
    assert len(outcomes) > 8
    assert [each["listed"] for each in outcomes] == sorted(each["listed"] for each in outcomes)
    assert outcomes[0]["listed"] == 0
    assert all(each["fetched"] for each in outcomes)
    assert all(each["uploads"] == 1 for each in outcomes)
    assert outcomes[0]["wire_bytes"] > outcomes[-3]["wire_bytes"]


def test_killed_while_fetching(tmp_path: Path) -> None:
    outcomes = killed("fetch", tmp_path)
    assert len(outcomes) > 5
    assert [each["listed"] for each in outcomes] == sorted(each["listed"] for each in outcomes)
    assert all(each["left"] == [] for each in outcomes[:-1])
    assert all(each["fetched"] for each in outcomes)


def test_errors_have_a_code() -> None:
    assert issubclass(TransferCancelled, SandboxError)
    codes = {cls.code for cls in (TransferCancelled, StoreUnavailable, NoRoom, SnapshotUnusable)}
    assert len(codes) == 4
    assert faulty_fs.FaultyFileSystem.protocol == "faulty"
