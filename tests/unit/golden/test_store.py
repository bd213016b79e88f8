"""Drafts, publishing, finding, verifying, holding."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
from pathlib import Path

import pytest
from torpor.golden import image
from torpor.golden.fingerprint import take
from torpor.golden.manifest import GoldenUnusable, sealed
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


# What is damaged


def test_the_content_is_read_once(store: GoldenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = publish(store)
    other = GoldenStore(golden.folder.parent.parent, 10_000)
    assert other.verify(golden) is None

    def refuse(*_: object) -> object:
        raise AssertionError("read again")

    monkeypatch.setattr(image.hashlib, "file_digest", refuse)
    assert other.verify(golden) is None
    assert store.verify(golden) is None
    os.utime(golden.image / "pages.img", (1, 1))
    with pytest.raises(AssertionError):
        store.verify(golden)


def test_a_flipped_bit(store: GoldenStore) -> None:
    golden = publish(store)
    pages = golden.image / "pages.img"
    kept = pages.stat()
    with pages.open("r+b") as file:
        file.write(b"q")
    os.utime(pages, ns=(kept.st_mtime_ns, kept.st_mtime_ns + 1))
    assert store.verify(golden) == f"{pages} has another content than was written"
    assert store.find(KEY) == golden


def test_truncated(store: GoldenStore, root: Path) -> None:
    golden = publish(store)
    pages = golden.image / "pages.img"
    os.truncate(pages, 999)
    assert store.verify(golden) == f"{pages} has 999 bytes, not 1000"
    assert store.find(KEY) is None
    assert left(root) == {KEY, f"{KEY}/last-failure.json"}
    failure = store.failures()[KEY]
    assert failure.reason == f"{pages} has 999 bytes, not 1000"
    assert failure.in_a_row == 1


def test_missing(store: GoldenStore) -> None:
    golden = publish(store)
    (golden.image / "pages_meta.img").unlink()
    assert store.verify(golden) == f"{golden.image}/pages_meta.img is missing"
    assert store.find(KEY) is None


def test_extra(store: GoldenStore) -> None:
    golden = publish(store)
    (golden.image / "more").touch()
    assert store.verify(golden) == f"{golden.image}/more does not belong there"
    assert store.find(KEY) is None


def test_a_link_in_the_place_of_a_file(store: GoldenStore, tmp_path: Path) -> None:
    golden = publish(store)
    pages = golden.image / "pages.img"
    pages.rename(tmp_path / "elsewhere")
    pages.symlink_to(tmp_path / "elsewhere")
    assert store.verify(golden) == f"{pages} is not a plain file"
    assert store.find(KEY) is None
    assert (tmp_path / "elsewhere").exists()


def test_no_image_at_all(store: GoldenStore) -> None:
    golden = publish(store)
    for path in golden.image.iterdir():
        path.unlink()
    golden.image.rmdir()
    assert store.verify(golden) == f"{golden.image} is missing"
    assert store.find(KEY) is None


def test_removed_meanwhile(store: GoldenStore) -> None:
    golden = publish(store)
    assert store.remove(KEY) == 1
    assert store.verify(golden) == f"{golden.folder} is missing"
    store.used(golden)


def test_unreadable(store: GoldenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = publish(store)
    os.utime(golden.image / "pages.img", (1, 1))

    def fail(*_: object) -> object:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(image.hashlib, "file_digest", fail)
    assert store.verify(golden) == f"{golden.image} cannot be read: Input/output error"
    monkeypatch.setattr(image.os, "listdir", fail)
    assert store.verify(golden) == f"{golden.image} cannot be read: Input/output error"


def test_changed_while_it_is_read(store: GoldenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    real = image.hashlib.file_digest

    def read_and_touch(file: object, name: str) -> object:
        digest = real(file, name)  # type: ignore[type-var]
        os.utime(file.fileno(), (7, 7))  # type: ignore[attr-defined]
        return digest

    monkeypatch.setattr(image.hashlib, "file_digest", read_and_touch)
    golden = publish(store)
    monkeypatch.undo()
    read = []
    monkeypatch.setattr(
        image.hashlib, "file_digest", lambda *given: read.append(given) or real(*given)
    )
    assert store.verify(golden) is None
    assert len(read) == len(CONTENT)


@pytest.mark.parametrize("raw", [b"", b"{}", sealed(a_manifest().to_json())])
def test_a_manifest_that_does_not_belong(store: GoldenStore, root: Path, raw: bytes) -> None:
    golden = publish(store)
    (golden.folder / "manifest.json").write_bytes(raw)
    assert store.list() == ()
    assert store.find(KEY) is None
    assert left(root) == {KEY, f"{KEY}/last-failure.json"}


def test_a_manifest_that_is_a_link(store: GoldenStore, root: Path) -> None:
    golden = publish(store)
    manifest = golden.folder / "manifest.json"
    manifest.rename(root / "elsewhere")
    manifest.symlink_to(root / "elsewhere")
    assert store.find(KEY) is None
    assert left(root) == {KEY, f"{KEY}/last-failure.json", "elsewhere"}


def test_an_incomplete_build(store: GoldenStore, root: Path) -> None:
    golden = publish(store)
    (golden.folder / "manifest.json").unlink()
    assert store.find(KEY) is None
    assert store.failures() == {}
    assert left(root) == {KEY}


def test_behind_a_damaged_one_is_the_older_that_was_held(store: GoldenStore) -> None:
    older = publish(store)
    with store.hold(older):
        newer = publish(store)
        os.truncate(newer.image / "pages.img", 1)
        assert store.find(KEY) == older


def test_a_damaged_one_that_is_held_is_left_but_not_given(store: GoldenStore) -> None:
    golden = publish(store)
    with store.hold(golden):
        os.truncate(golden.image / "pages.img", 1)
        assert store.find(KEY) is None
        assert golden.folder.exists()
        assert store.failures() == {}
    assert store.find(KEY) is None
    assert not golden.folder.exists()


def test_condemned(store: GoldenStore, root: Path) -> None:
    golden = publish(store)
    store.condemn(golden, "the clone did not answer")
    assert left(root) == {KEY, f"{KEY}/last-failure.json"}
    assert store.failures()[KEY].reason == "the clone did not answer"


def test_stale(store: GoldenStore, tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.touch()
    golden = publish(store, environment=take([str(file)], []))
    assert store.stale(golden) is None
    file.write_text("changed")
    assert store.stale(golden) == f"{file} has changed since"


# Not ours alone


@pytest.mark.parametrize("level", ["root", "key", "build", "image"])
@pytest.mark.parametrize("wrong", ["group", "world", "owner", "link", "file"])
def test_folders_that_are_not_ours_alone(
    store: GoldenStore, root: Path, level: str, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden = publish(store)
    folder = {
        "root": root,
        "key": root / KEY,
        "build": golden.folder,
        "image": golden.image,
    }[level]
    if wrong in ("group", "world"):
        folder.chmod(0o710 if wrong == "group" else 0o701)
    elif wrong == "owner":
        real = Path.lstat

        def lstat(path: Path) -> os.stat_result:
            seen = real(path)
            if path != folder:
                return seen
            fields = list(seen)
            fields[4] += 1
            return os.stat_result(fields)

        monkeypatch.setattr(Path, "lstat", lstat)
    else:
        folder.rename(root.parent / "moved")
        if wrong == "link":
            folder.symlink_to(root.parent / "moved")
        else:
            folder.touch()
    if level == "root":
        for refused in (store.list, store.collect, store.failures, lambda: store.draft("b9")):
            with pytest.raises(GoldenUnusable):
                refused()
    else:
        assert store.list() == ()
        assert store.collect() == ()
    if wrong in ("link", "file") and level == "build":
        assert store.find(KEY) is None  # not even looked at
    else:
        with pytest.raises(GoldenUnusable):
            store.find(KEY)
    if level in ("build", "image"):
        with pytest.raises(GoldenUnusable):
            store.verify(golden)
    if level == "build":
        with pytest.raises(GoldenUnusable), store.hold(golden):
            pass
    if wrong in ("link", "file"):
        assert (root.parent / "moved").exists()


# At once


def test_two_publishers_of_one_key(root: Path) -> None:
    stores = [GoldenStore(root, 10_000) for _ in range(2)]
    errors: list[BaseException] = []
    done = threading.Event()

    def build(store: GoldenStore) -> None:
        try:
            for _ in range(15):
                publish(store)
        except BaseException as exc:
            errors.append(exc)

    def look() -> None:
        store, found = GoldenStore(root, 10_000), False
        try:
            while not done.is_set():
                golden = store.find(KEY)
                assert golden or not found, "there was one, and then none"
                found = golden is not None
        except BaseException as exc:
            errors.append(exc)

    builders = [threading.Thread(target=build, args=[store]) for store in stores]
    looker = threading.Thread(target=look)
    for thread in (*builders, looker):
        thread.start()
    for thread in builders:
        thread.join()
    done.set()
    looker.join()
    assert errors == []
    golden = stores[0].find(KEY)
    assert golden
    assert left(root) == tree(golden)
    assert stores[0].verify(golden) is None
    assert stores[0].failures() == {}


def test_a_publisher_in_a_thread_of_the_same_store(store: GoldenStore, root: Path) -> None:
    threads = [threading.Thread(target=publish, args=[store]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    golden = store.find(KEY)
    assert golden
    assert left(root) == tree(golden)
