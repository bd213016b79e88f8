"""What is looked at of one file or folder of the environment, and how it is written down."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass
from typing import Any

MISSING = -1
# In a folder younger than this a name may yet appear in the same tick: its mtime is not relied on.
_SETTLED_AFTER_NS = 2_000_000_000


@dataclass(frozen=True, slots=True)
class Seen:
    """One file as it was, links followed; all three are -1 where there was none."""

    name: str
    size_bytes: int
    mtime_ns: int
    inode: int


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that Python imports from; ``names`` is a digest of those that matter."""

    path: str
    mtime_ns: int
    inode: int
    names: str
    path_files: tuple[Seen, ...]


def stat_or_none(path: str) -> os.stat_result | None:
    """Give what is at ``path``, links followed; None where nothing can be seen."""
    try:
        return os.stat(path)
    except (OSError, ValueError):
        return None


def look_at(folder: str, name: str) -> Seen:
    """Give the file ``name`` in ``folder`` as it is now."""
    now = stat_or_none(os.path.join(folder, name))
    if not now:
        return Seen(name, MISSING, MISSING, MISSING)
    return Seen(name, now.st_size, now.st_mtime_ns, now.st_ino)


def look_into(path: str) -> Folder:
    """Give the folder ``path`` as it is now."""
    now, before_ns = stat_or_none(path), time.time_ns() - _SETTLED_AFTER_NS
    if not now:
        return Folder(path, MISSING, MISSING, "", ())
    names = names_that_matter(path)
    return Folder(
        path,
        now.st_mtime_ns if now.st_mtime_ns < before_ns else MISSING,
        now.st_ino,
        digest(names),
        tuple(look_at(path, name) for name in names if name.endswith(".pth")),
    )


def names_that_matter(path: str) -> list[str]:
    """Give the sorted names in a folder that Python may import or read from it."""
    try:
        names = sorted(os.listdir(path))
    except OSError:
        return []
    return [name for name in names if name.endswith(".pth") or _can_be_imported(name)]


def digest(names: list[str]) -> str:
    """Give a short digest of sorted names."""
    joined = "\0".join(names).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(joined, digest_size=8).hexdigest()


def seen_to_json(files: tuple[Seen, ...]) -> list[list[Any]]:
    """Give one row a file."""
    return [[seen.name, seen.size_bytes, seen.mtime_ns, seen.inode] for seen in files]


def parse_seen(rows: Any) -> tuple[Seen, ...]:
    """Read what ``seen_to_json`` gave. Raises TypeError or ValueError for anything else."""
    return tuple(
        Seen(as_text(name), as_int(size), as_int(mtime), as_int(inode))
        for name, size, mtime, inode in rows
    )


def as_text(value: Any) -> str:
    """Give a text back. Raises TypeError."""
    if not isinstance(value, str):
        raise TypeError
    return value


def as_int(value: Any) -> int:
    """Give a whole number back. Raises TypeError."""
    if type(value) is not int:
        raise TypeError
    return value


def _can_be_imported(name: str) -> bool:
    return name != "__pycache__" and not name.startswith((".", "~"))
