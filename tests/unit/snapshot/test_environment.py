"""Whether files mapped into a saved kernel are the same: by content where they were copied."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from torpor.golden import fingerprint
from torpor.snapshot.build import Snapshot
from torpor.snapshot.environment import (
    Contents,
    changed,
    keep_digests,
    kept_digests,
    parse_digests,
    take_digests,
)
from torpor.snapshot.remote.store import RemoteStore
from torpor.snapshot.store import SnapshotStore

from tests.unit.snapshot.making import KERNEL, publish

GIB = 1 << 30


@pytest.fixture
def library(tmp_path: Path) -> Path:
    path = tmp_path / "lib" / "library.so"
    path.parent.mkdir()
    path.write_bytes(b"content of a library")
    return path


def published(tmp_path: Path, *files: Path) -> Snapshot:
    store = SnapshotStore(tmp_path / "local", GIB)
    return publish(store, environment=fingerprint.take([str(each) for each in files], ()))


def untouched(path: Path) -> None:
    pass


def copied(path: Path) -> None:
    shutil.copy2(path, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def installed_again(path: Path) -> None:
    shutil.copy(path, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)
    os.utime(path, (1, 1))


def other_content(path: Path) -> None:
    path.write_bytes(b"another of that size"[:20])
    os.utime(path, (1, 1))


def copied_with_other_content(path: Path) -> None:
    seen = path.stat()
    path.with_suffix(".new").write_bytes(b"another of that size")
    path.with_suffix(".new").replace(path)
    os.utime(path, ns=(seen.st_mtime_ns, seen.st_mtime_ns))


def longer(path: Path) -> None:
    path.write_bytes(b"a content that is longer than it was")


def gone(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("change", "with_digests", "without"),
    [
        (untouched, None, None),
        (copied, None, None),
        (installed_again, None, "has changed since"),
        (other_content, "has another content now", "has changed since"),
        (copied_with_other_content, "has another content now", None),
        (longer, "has changed since", "has changed since"),
        (gone, "is gone", "is gone"),
    ],
)
def test_a_file_that_is_or_is_not_the_same(
    tmp_path: Path,
    library: Path,
    change: Callable[[Path], None],
    with_digests: str | None,
    without: str | None,
) -> None:
    snapshot, contents = published(tmp_path, library), Contents()
    then, digests = snapshot.manifest.environment, take_digests(snapshot, contents.of)
    assert set(digests) == {str(library)}
    change(library)
    for given, said in ((digests, with_digests), ({}, without)):
        expected = None if said is None else f"{library} {said}"
        assert changed(then, given, contents.of) == expected


def test_a_file_that_was_not_there(tmp_path: Path, library: Path) -> None:
    missing = library.with_name("missing.so")
    snapshot, contents = published(tmp_path, missing), Contents()
    assert take_digests(snapshot, contents.of) == {}
    assert changed(snapshot.manifest.environment, {}, contents.of) is None
    missing.write_text("now")
    assert changed(snapshot.manifest.environment, {}, contents.of) == f"{missing} is new"


def test_what_has_changed_before_the_push_has_no_digest(tmp_path: Path, library: Path) -> None:
    snapshot = published(tmp_path, library)
    installed_again(library)
    assert take_digests(snapshot, Contents().of) == {}


def test_digests_are_taken_once_and_kept(tmp_path: Path, library: Path) -> None:
    snapshot, read = published(tmp_path, library), []

    def content_of(path: str) -> str:
        read.append(path)
        return Contents().of(path)

    first = take_digests(snapshot, content_of)
    installed_again(library)
    assert take_digests(snapshot, content_of) == first == kept_digests(snapshot.folder)
    assert read == [str(library)]
    assert ((snapshot.folder / "environment.json").stat().st_mode & 0o777) == 0o600


def test_a_content_is_read_once(library: Path) -> None:
    contents = Contents()
    first = contents.of(str(library))
    assert contents.of(str(library)) == first
    library.write_bytes(b"another of that size")
    assert contents.of(str(library)) != first
    with pytest.raises(OSError, match="No such file"):
        contents.of(str(library) + "x")


@pytest.mark.parametrize(
    "text", ["", "[]", '{"a": "b"}', '{"/a": "b"}', '{"/a": 1}', '{"a": "%s"}' % ("0" * 64)]
)
def test_damaged_digests_count_as_none(tmp_path: Path, library: Path, text: str) -> None:
    snapshot = published(tmp_path, library)
    (snapshot.folder / "environment.json").write_text(text)
    assert kept_digests(snapshot.folder) is None


def test_no_digests_leave_no_file(tmp_path: Path) -> None:
    keep_digests(tmp_path, {})
    assert list(tmp_path.iterdir()) == []
    assert parse_digests({}) == {}


def test_digests_go_to_the_store_and_come_back(tmp_path: Path, library: Path) -> None:
    snapshot = published(tmp_path, library)
    remote = RemoteStore(f"file://{tmp_path}/remote")
    remote.push(snapshot)
    installed_again(library)
    elsewhere = SnapshotStore(tmp_path / "elsewhere", GIB)
    fetched = remote.fetch(KERNEL, 1, elsewhere)
    assert kept_digests(fetched.folder) == kept_digests(snapshot.folder)
    digests = kept_digests(fetched.folder) or {}
    assert changed(fetched.manifest.environment, digests, Contents().of) is None
    library.write_bytes(b"another of that size")
    assert "another content" in str(changed(fetched.manifest.environment, digests, Contents().of))
    assert replace(fetched.manifest) == snapshot.manifest
