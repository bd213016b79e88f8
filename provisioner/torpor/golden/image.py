"""The files of an image: what they hold, and whether they still do."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from torpor.golden.disk import open_plain, sync_folder
from torpor.golden.manifest import GoldenUnusable, ImageFile

Identity = tuple[int, int, int, int]


def identity(seen: os.stat_result) -> Identity:
    """Give what cannot stay the same when the content changes without root's doing.

    With ctime, other than in a fingerprint: nobody has a reason to touch these files at all.
    """
    return (seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino)


class Digests:
    """SHA-256 of files, each computed once as long as its file stays as it is."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[Identity, str]] = {}
        self._noted: dict[Path, Identity] = {}

    def of(self, path: Path) -> str:
        """Give the digest of the file at ``path``. Raises OSError or GoldenUnusable."""
        known = self._known.get(path)
        if known and known[0] == identity(path.lstat()):
            return known[1]
        with os.fdopen(open_plain(path, os.O_RDONLY), "rb") as file:
            return self._compute(path, file.fileno())

    def record(self, image: Path) -> dict[str, ImageFile]:
        """Make all files of ``image`` durable and private, and give what is in them.

        Raises:
            GoldenUnusable: there is none, or one that is no plain file.
            OSError: the disk is full, for one.
        """
        files = {}
        with ThreadPoolExecutor(1) as disk:  # which is busy while we compute
            for name in sorted(os.listdir(image)):
                fd = open_plain(image / name, os.O_RDONLY)
                try:
                    os.fchmod(fd, 0o600)
                    durable = disk.submit(os.fsync, fd)
                    try:
                        sha256 = self._compute(image / name, fd)
                    finally:
                        wait([durable])
                    durable.result()
                    files[name] = ImageFile(os.fstat(fd).st_size, sha256)
                finally:
                    os.close(fd)
        if not files:
            raise GoldenUnusable(f"there is no image in {image}")
        sync_folder(image)
        return files

    def note(self, path: Path, fd: int) -> None:
        """Remember how the file at ``path``, open as ``fd``, looks now: for ``touched``."""
        self._noted[path] = identity(os.fstat(fd))

    def touched(self, path: Path) -> bool:
        """Whether the file looks otherwise than when it was noted here. Raises OSError."""
        noted = self._noted.get(path)
        return noted is not None and noted != identity(path.lstat())

    def moved(self, old: Path, new: Path, names: Mapping[str, object]) -> None:
        """Know the files of the folder ``old`` as those of ``new``."""
        for name in names:
            if known := self._known.pop(old / name, None):
                self._known[new / name] = known
            if noted := self._noted.pop(old / name, None):
                self._noted[new / name] = noted

    def forget(self, folder: Path) -> None:
        """Forget all files below ``folder``."""
        for path in (*self._known, *self._noted):
            if path.is_relative_to(folder):
                self._known.pop(path, None)
                self._noted.pop(path, None)

    def _compute(self, path: Path, fd: int) -> str:
        before = identity(os.fstat(fd))
        with os.fdopen(os.dup(fd), "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if identity(os.fstat(fd)) == before:
            self._known[path] = (before, sha256)
        return sha256


def outward_damage(image: Path, files: Mapping[str, ImageFile]) -> str | None:
    """Give what can be seen to be wrong without reading the files, in words; else None."""
    try:
        present = set(os.listdir(image))
    except OSError as exc:
        return f"{image} cannot be read: {exc.strerror}"
    for name in sorted(present - files.keys()):
        return f"{image / name} does not belong there"
    for name, file in files.items():
        if name not in present:
            return f"{image / name} is missing"
        seen = (image / name).lstat()
        if not stat.S_ISREG(seen.st_mode):
            return f"{image / name} is not a plain file"
        if seen.st_size != file.size_bytes:
            return f"{image / name} has {seen.st_size} bytes, not {file.size_bytes}"
    return None


def damage(image: Path, files: Mapping[str, ImageFile], digests: Digests) -> str | None:
    """Give what is wrong with the files, their content included, in words; else None."""
    try:
        if found := outward_damage(image, files):
            return found
        for name, file in files.items():
            if file.sha256 is None:
                if digests.touched(image / name):
                    return f"{image / name} was changed after it was written"
            elif digests.of(image / name) != file.sha256:
                return f"{image / name} has another content than was written"
    except OSError as exc:
        return f"{exc.filename or image} cannot be read: {exc.strerror}"
    return None
