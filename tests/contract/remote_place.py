"""An empty object store of some kind, and snapshots to put there."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import pytest
from torpor.snapshot.build import Snapshot
from torpor.snapshot.remote.calls import Patience
from torpor.snapshot.remote.chunks import parse_chunk_name
from torpor.snapshot.remote.keys import KeySource, MasterKey
from torpor.snapshot.remote.store import RemoteStore
from torpor.snapshot.store import SnapshotStore

from tests.unit.snapshot.making import KERNEL, a_manifest

CHUNK_BYTES = 1 << 12
QUICK = Patience(timeout_s=10, tries=3, pause_s=0.001)
NOW_S = 1_800_000_000.0


@dataclass
class Key:
    """A key that is simply there."""

    raw: bytes = b"k" * 32

    def key(self) -> MasterKey:
        return MasterKey(self.raw)


@dataclass
class Place:
    """One empty store of some kind; ``raw`` is its file system as it is, below ``root``."""

    url: str
    options: dict[str, Any] = field(default_factory=dict)
    # A file is not a row of memory: some stores are too slow to have each chunk broken once.
    is_quick: bool = True

    def store(self, key: KeySource | None = None, **changes: Any) -> RemoteStore:
        given = {
            "options": self.options,
            "key_source": key,
            "chunk_bytes": CHUNK_BYTES,
            "patience": QUICK,
            "clock": lambda: NOW_S,
        }
        return RemoteStore(self.url, **(given | changes))

    def objects(self) -> dict[str, bytes]:
        fs, root = self._raw()
        fs.invalidate_cache()
        return {path[len(root) :].strip("/"): fs.cat_file(path) for path in fs.find(root)}

    def put(self, name: str, content: bytes) -> None:
        fs, root = self._raw()
        if not fs.async_impl:
            fs.makedirs(f"{root}/{name}".rpartition("/")[0], exist_ok=True)
        fs.pipe_file(f"{root}/{name}", content)

    def remove(self, name: str) -> None:
        fs, root = self._raw()
        fs.rm_file(f"{root}/{name}")

    def chunks(self) -> dict[str, bytes]:
        found = self.objects()
        return {
            name: found[name] for name in sorted(found) if parse_chunk_name(name.rpartition("/")[2])
        }

    def _raw(self) -> tuple[Any, str]:
        fs, root = fsspec.core.url_to_fs(self.url, **self.options)
        return fs, str(root).rstrip("/")


def an_image() -> dict[str, bytes]:
    """Two full chunks, a hole, the same chunk again, and a rest; and files with one and with none."""
    noise = random.Random(0).randbytes(CHUNK_BYTES)
    text = (b"torpor " * CHUNK_BYTES)[:CHUNK_BYTES]
    pages = noise + text + bytes(2 * CHUNK_BYTES) + noise + b"rest"
    return {"checkpoint.img": b"c" * 100, "pages.img": pages, "pages_meta.img": b""}


def publish(
    local: SnapshotStore, content: dict[str, bytes] | None = None, **changes: Any
) -> Snapshot:
    draft = local.draft()
    for name, raw in (an_image() if content is None else content).items():
        (draft / "image" / name).write_bytes(raw)
    kernel_id = changes.get("kernel_id", KERNEL)
    following = {"generation": local.next_generation(kernel_id)}
    return local.publish(draft, a_manifest(**(following | changes)))


def after(calls: int) -> Callable[[], bool]:
    """Say no so often, then yes."""
    asked = iter(range(calls))
    return lambda: next(asked, None) is None


def copy_of(local: SnapshotStore, snapshot: Snapshot) -> Path:
    """Make a draft with the same image."""
    draft = local.draft()
    shutil.copytree(snapshot.image, draft / "image", dirs_exist_ok=True)
    return draft


class RemoteFixtures:
    """A subclass gives the fixture ``place``."""

    @pytest.fixture(params=["sealed", "plain"])
    def key(self, request: pytest.FixtureRequest) -> Key | None:
        return Key() if request.param == "sealed" else None

    @pytest.fixture
    def store(self, place: Place, key: Key | None) -> RemoteStore:
        return place.store(key)

    @pytest.fixture
    def local(self, tmp_path: Path) -> SnapshotStore:
        return SnapshotStore(tmp_path / "local", 1 << 22)

    @pytest.fixture
    def other_root(self, tmp_path: Path) -> Path:
        return tmp_path / "other"

    @pytest.fixture
    def other(self, other_root: Path) -> SnapshotStore:
        """The snapshots of another machine."""
        return SnapshotStore(other_root, 1 << 22)
