"""Making the files that runsc wrote durable and known, as fast as the disk and one core allow."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from torpor.golden.disk import open_plain, sync_folder
from torpor.golden.image import Digests
from torpor.golden.manifest import ImageFile
from torpor.snapshot.errors import SnapshotUnusable
from torpor.snapshot.later import LARGE_BYTES


def record(image: Path, digests: Digests, *, later: bool = False) -> dict[str, ImageFile]:
    """Make all files of ``image`` durable and private, and give what is in them.

    As ``Digests.record``, but the disk writes while the digests are computed: somebody's memory is
    freed only when both are done. With ``later`` those of large files are left out (``later``).

    Raises:
        SnapshotUnusable: there is none.
        GoldenUnusable: one is no plain file.
        OSError: the disk is full, for one.
    """
    with ExitStack() as stack:
        fds = {}
        for name in sorted(os.listdir(image)):
            fds[name] = open_plain(image / name, os.O_RDONLY)
            stack.callback(os.close, fds[name])
            os.fchmod(fds[name], 0o600)
        if not fds:
            raise SnapshotUnusable(f"there is no image in {image}")
        with ThreadPoolExecutor(1, thread_name_prefix="fsync") as pool:
            syncs = [pool.submit(os.fsync, fd) for fd in fds.values()]
            files = {}
            for name, fd in fds.items():
                size_bytes = os.fstat(fd).st_size
                if later and size_bytes >= LARGE_BYTES:
                    files[name] = ImageFile(size_bytes, None)
                else:
                    files[name] = ImageFile(size_bytes, digests.of(image / name))
        for sync in syncs:
            sync.result()
        for name, file in files.items():
            if file.sha256 is None:
                digests.note(image / name, fds[name])
    sync_folder(image)
    return files


def require_same(files: Mapping[str, ImageFile], wanted: Mapping[str, ImageFile]) -> None:
    """Raise SnapshotUnusable, naming one that differs, unless ``files`` are those ``wanted``."""
    for name in sorted(files.keys() | wanted.keys()):
        if files.get(name) != wanted.get(name):
            raise SnapshotUnusable(
                f"the file {name} of the image is not the one that was published",
                hint="fetch it again; if that gives the same, what is stored is damaged",
            )
