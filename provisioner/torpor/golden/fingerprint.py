"""Whether the files a golden has in its memory are still the files on disk.

A file is the same while its size, its mtime and its inode are. That is more than Python itself asks
before it trusts a ``.pyc`` (size and mtime in seconds), and it sees what the usual tools do: an
editor changes the mtime, pip and ``mv`` bring a new inode even where they keep the mtime.

Not looked at: ctime, which changes without the content whenever uv or a backup makes a hard link to
the file or somebody runs chmod on it; and the device, whose number is another one after a reboot on
overlayfs, btrfs and NFS. So a write in place that keeps the size and puts the mtime back
(``rsync --inplace --times``, ``touch -r``) goes unseen.

A folder is the same while its inode and the names in it are, and the ``*.pth`` files that Python
reads from it. Its mtime only says that the names need not be read again: ``__pycache__`` appears in
it on a first import, and editors and pip leave and take away names that cannot be imported.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any

from torpor.golden.seen import (
    MISSING,
    Folder,
    Seen,
    as_int,
    as_text,
    digest,
    look_at,
    look_into,
    names_that_matter,
    parse_seen,
    seen_to_json,
    stat_or_none,
)

# The kernel's clock for files runs behind time.time_ns() by up to a tick, 10 ms at most.
_TICK_NS = 20_000_000


@dataclass(frozen=True, slots=True)
class Together:
    """Files in one folder: one look-up of the folder serves them all."""

    folder: str
    files: tuple[Seen, ...]


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Everything ``changed`` compares. Host paths, sorted, each once."""

    files: tuple[Together, ...] = ()
    folders: tuple[Folder, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Give the shape that ``parse_fingerprint`` reads: rows without names, paths by folder."""
        return {
            "files": [[group.folder, seen_to_json(group.files)] for group in self.files],
            "folders": [
                [seen.path, seen.mtime_ns, seen.inode, seen.names, seen_to_json(seen.path_files)]
                for seen in self.folders
            ],
        }


def take(files: Collection[str], folders: Collection[str]) -> Fingerprint:
    """Look at ``files`` and ``folders`` (absolute host paths); what is missing is kept as missing.

    A file among the folders (a zip archive on ``sys.path``) counts as a file. Says nothing about
    what happened before it was taken: see ``written_since``.
    """
    archives = {path for path in folders if os.path.isfile(path)}
    split = sorted({os.path.split(path.rstrip("/")) for path in archives.union(files)})
    return Fingerprint(
        tuple(
            Together(folder, tuple(look_at(folder, name) for _, name in pairs))
            for folder, pairs in groupby(split, key=itemgetter(0))
        ),
        tuple(look_into(path) for path in sorted(set(folders) - archives)),
    )


def changed(fingerprint: Fingerprint) -> str | None:
    """Give the first difference between then and now in words; None when there is none."""
    for group in fingerprint.files:
        if difference := _file_difference(group.folder, group.files):
            return difference
    for folder in fingerprint.folders:
        if difference := _folder_difference(folder):
            return difference
    return None


def written_since(fingerprint: Fingerprint, moment_ns: int) -> str | None:
    """Give the first file that somebody may have written since ``moment_ns`` (as time.time_ns()).

    For the builder, when it has taken the fingerprint: a file written after the kernel read it and
    before ``take`` would never look changed. By ctime, so it may err, but only towards "written".
    """
    for group in fingerprint.files:
        for seen in group.files:
            path = os.path.join(group.folder, seen.name)
            now = stat_or_none(path)
            if now and now.st_ctime_ns >= moment_ns - _TICK_NS:
                return f"{path} was written while the golden was being built"
    return None


def parse_fingerprint(body: Any) -> Fingerprint:
    """Read what ``to_json`` gave. Raises ValueError for anything else."""
    try:
        return Fingerprint(
            tuple(Together(as_text(folder), parse_seen(rows)) for folder, rows in body["files"]),
            tuple(
                Folder(
                    as_text(path), as_int(mtime), as_int(inode), as_text(names), parse_seen(rows)
                )
                for path, mtime, inode, names, rows in body["folders"]
            ),
        )
    except (KeyError, TypeError, ValueError) as exc:
        raise ValueError("the fingerprint of the environment is damaged") from exc


def _file_difference(folder: str, files: tuple[Seen, ...]) -> str | None:
    # The hot loop: 2 µs a file, nearly all of it in os.stat.
    folder_fd, stat = _open(folder), os.stat
    try:
        for seen in files:
            try:
                now = stat(seen.name, dir_fd=folder_fd)
            except (OSError, ValueError):
                if seen.inode == MISSING:
                    continue
                return f"{os.path.join(folder, seen.name)} is gone"
            if (
                now.st_mtime_ns != seen.mtime_ns
                or now.st_ino != seen.inode
                or now.st_size != seen.size_bytes
            ):
                word = "is new" if seen.inode == MISSING else "has changed since"
                return f"{os.path.join(folder, seen.name)} {word}"
    finally:
        if folder_fd >= 0:
            os.close(folder_fd)
    return None


def _folder_difference(seen: Folder) -> str | None:
    now = stat_or_none(seen.path)
    if not now:
        return None if seen.inode == MISSING else f"{seen.path} is gone"
    if seen.inode == MISSING:
        return f"{seen.path} is new"
    if now.st_ino != seen.inode:
        return f"{seen.path} has been replaced since"
    if now.st_mtime_ns != seen.mtime_ns and digest(names_that_matter(seen.path)) != seen.names:
        return f"something was added to {seen.path} or removed from it since"
    return _file_difference(seen.path, seen.path_files)


def _open(folder: str) -> int:
    # -1 makes every look-up in it fail, as if each file were missing.
    try:
        return os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except (OSError, ValueError):
        return -1
