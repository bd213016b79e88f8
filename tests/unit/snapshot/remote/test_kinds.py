"""Every promise of a remote store, on those kinds of stores that need no server."""

from __future__ import annotations

import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from torpor.snapshot.store import SnapshotStore

import tests.fakes.faulty_fs  # noqa: F401  makes the kind "faulty" known
from tests.contract.remote_losses import RemoteLossesContract
from tests.contract.remote_place import Place, publish
from tests.contract.remote_store import RemoteStoreContract


class TestFolder(RemoteStoreContract, RemoteLossesContract):
    @pytest.fixture
    def place(self, tmp_path: Path) -> Place:
        return Place(f"file://{tmp_path}/a/store")

    def test_everything_is_private(
        self, place: Place, tmp_path: Path, local: SnapshotStore
    ) -> None:
        place.store().push(publish(local))
        for path in (tmp_path / "a").rglob("*"):
            wanted = 0o700 if path.is_dir() else 0o600
            assert stat.S_IMODE(path.lstat().st_mode) == wanted, path

    def test_nothing_is_left_of_what_was_dropped(
        self, place: Place, tmp_path: Path, local: SnapshotStore
    ) -> None:
        snapshot = publish(local)
        place.store().push(snapshot)
        place.store().drop(snapshot.manifest.kernel_id)
        assert list((tmp_path / "a" / "store").iterdir()) == []


class TestMemory(RemoteStoreContract, RemoteLossesContract):
    @pytest.fixture
    def place(self) -> Iterator[Place]:
        name = secrets.token_hex(8)
        yield Place(f"memory://{name}/store")
        fs = fsspec.filesystem("memory")
        for path in fs.find(f"/{name}"):
            fs.rm_file(path)


class TestOther(RemoteStoreContract, RemoteLossesContract):
    """What fsspec calls a file system, has folders and is not on this machine: SFTP and the like."""

    @pytest.fixture
    def place(self, tmp_path: Path) -> Place:
        return Place(f"faulty://{tmp_path}/store", {"inner": fsspec.filesystem("file")})
