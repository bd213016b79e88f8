"""A store that is a folder of this machine: private, and durable before it is said to be there."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from torpor.golden.disk import remove_empty, remove_folder, sync_folder


def write_private(path: str, content: bytes) -> None:
    """Put ``content`` at ``path`` whole or not at all, with the folders it needs. Raises OSError.

    Any number of writers may write the same at once.
    """
    target = Path(path)
    target = target.parent.resolve() / target.name
    _make_folders(target.parent)
    draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb", buffering=0) as file:
            rest = memoryview(content)
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(fd)
        os.rename(draft, target)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def write_new(path: str, content: bytes) -> None:
    """Put ``content`` at ``path``, with the folders it needs, unless something is there.

    Raises FileExistsError, and OSError: nothing is there then.
    """
    target = Path(path)
    _make_folders(target.parent)
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb", buffering=0) as file:
            file.write(content)
            os.fsync(fd)
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def remove_below(path: str, root: str) -> None:
    """Remove the folder ``path`` and what becomes empty above it, up to ``root``. None is fine.

    Raises OSError when something is left.
    """
    folder = Path(path)
    remove_folder(folder)
    if folder.exists():
        raise OSError(f"{folder} cannot be removed")
    for parent in folder.parents:
        if not parent.is_relative_to(root) or str(parent) == root:
            break
        remove_empty(parent)


def _make_folders(folder: Path) -> None:
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for each in reversed(missing):
        with suppress(FileExistsError):
            each.mkdir(mode=0o700)
            sync_folder(each.parent)
