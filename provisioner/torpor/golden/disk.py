"""Files in folders that are ours alone: never through a link, written whole or not at all.

Locks are flock's: the kernel drops them with their last file descriptor, so a dead process holds none.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from torpor.golden.manifest import GoldenUnusable


def require_private(folder: Path) -> None:
    """Refuse a folder that somebody else may have written to.

    Raises:
        FileNotFoundError: there is none.
        GoldenUnusable: no folder (a link is none), not ours, or open to others.
    """
    seen = folder.lstat()
    if not stat.S_ISDIR(seen.st_mode):
        raise GoldenUnusable(f"{folder} is not a folder", hint="remove it")
    if seen.st_uid != os.geteuid():
        raise GoldenUnusable(f"{folder} belongs to user {seen.st_uid}", hint="remove it")
    if seen.st_mode & 0o077:
        raise GoldenUnusable(
            f"{folder} is open to other users (mode {stat.S_IMODE(seen.st_mode):04o})",
            hint="remove it; what is in it can no longer be trusted",
        )


def make_private(folder: Path) -> None:
    """Make ``folder`` unless it exists, and ``require_private``. Its parent must exist."""
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    require_private(folder)


def open_plain(path: Path, flags: int) -> int:
    """Open a plain file and give its descriptor. Raises GoldenUnusable for a link and the like."""
    try:
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        if exc.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise GoldenUnusable(f"{path} is not a plain file", hint="remove it") from exc
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise GoldenUnusable(f"{path} is not a plain file", hint="remove it")
    return fd


def read_plain(path: Path, limit_bytes: int) -> bytes:
    """Give the content of a plain file, at most ``limit_bytes`` of it."""
    with os.fdopen(open_plain(path, os.O_RDONLY), "rb") as file:
        return file.read(limit_bytes)


def write_plain(path: Path, content: bytes) -> None:
    """Put ``content`` at ``path`` for good: after a crash there is the old file or the new one.

    For one writer at a time. Raises OSError: either of the two is in place then, and nothing else.
    """
    draft = path.with_name(path.name + ".new")
    fd = open_plain(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(fd)
        os.rename(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` survive a loss of power. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove_folder(folder: Path) -> None:
    """Remove ``folder`` and all in it as far as it goes; never raises OSError, twice is fine."""
    shutil.rmtree(folder, ignore_errors=True)


def size_bytes_of(folder: Path) -> int:
    """Give the sizes of all files below ``folder`` together, as far as they can be seen."""
    total_bytes = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total_bytes += os.lstat(os.path.join(parent, name)).st_size
    return total_bytes


def remove_empty(folder: Path) -> None:
    """Remove ``folder`` if nothing is in it."""
    with suppress(OSError):
        folder.rmdir()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock at ``path`` (made if need be), alone in this process and in all others."""
    fd = open_plain(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def try_lock(path: Path, flags: int, kind: int) -> int | None:
    """Open ``path`` and lock it without waiting; None when somebody else has it.

    Whoever closes the descriptor gives the lock back. Raises FileNotFoundError.
    """
    fd = open_plain(path, flags)
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except BaseException:
        os.close(fd)
        raise
    return fd
