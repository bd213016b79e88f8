"""Goldens on disk that are damaged, not ours alone, or made by several at once."""

from __future__ import annotations

import os
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
    a_manifest,
    left,
    publish,
    tree,
)

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
