"""Goldens being built: ``<root>/.draft-<build>/``, locked while its builder lives."""

from __future__ import annotations

import fcntl
import os
from contextlib import ExitStack
from pathlib import Path

from torpor.golden.build import IMAGE
from torpor.golden.disk import locked, remove_folder, require_private, try_lock
from torpor.golden.manifest import GoldenUnusable, check_build

_PREFIX = ".draft-"
_LOCK = "lock"


class Drafts:
    """This process's drafts below ``root``. ``make`` and ``dead`` under the lock of ``root``."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._owned: dict[Path, ExitStack] = {}

    def make(self, build: str) -> Path:
        """Give a new draft with an empty ``image`` in it; nothing is left when that fails.

        Raises FileExistsError when there is one of that name.
        """
        folder = self._root / f"{_PREFIX}{check_build(build)}"
        folder.mkdir(mode=0o700)
        with ExitStack() as undo:
            undo.callback(remove_folder, folder)
            undo.enter_context(locked(folder / _LOCK))
            (folder / IMAGE).mkdir(mode=0o700)
            self._owned[folder] = undo.pop_all()
        return folder

    def check(self, draft: Path, build: str) -> None:
        """Raise GoldenUnusable unless ``draft`` is this process's draft of ``build``."""
        if draft not in self._owned or draft.name != f"{_PREFIX}{build}":
            raise GoldenUnusable(f"{draft} is not a draft of the build {build}")
        require_private(draft)
        require_private(draft / IMAGE)

    def unmark(self, draft: Path) -> None:
        """Take the lock's name out of ``draft``, which is about to become a build."""
        (draft / _LOCK).unlink()

    def discard(self, draft: Path) -> None:
        """Remove ``draft``, if it has not become a build, and give its lock back.

        One that is not ours, or not any more, is left alone.
        """
        owned = self._owned.pop(draft, None)
        if owned:
            owned.close()

    def dead(self) -> list[Path]:
        """Give the drafts of all processes that are no more."""
        return [folder for folder in sorted(self._root.glob(f"{_PREFIX}*")) if _is_dead(folder)]


def _is_dead(folder: Path) -> bool:
    try:
        require_private(folder)
    except GoldenUnusable:
        return False
    try:
        fd = try_lock(folder / _LOCK, os.O_RDWR, fcntl.LOCK_EX)
    except (FileNotFoundError, GoldenUnusable):
        return True
    if fd is None:
        return False
    os.close(fd)
    return True
