"""Whether another snapshot fits: below the budget of all of them, and on the disk."""

from __future__ import annotations

import os
from pathlib import Path

from torpor.golden.disk import size_bytes_of
from torpor.template import GIB, MIB


class Room:
    """Counts what is on disk below ``root`` and what the drafts of this process may yet become."""

    def __init__(self, root: Path, budget_bytes: int, keep_free_bytes: int) -> None:
        self._root = root
        self._budget_bytes = budget_bytes
        self._keep_free_bytes = keep_free_bytes
        self._promised: dict[Path, int] = {}

    def promise(self, draft: Path, size_bytes: int) -> None:
        """Keep room for so much in ``draft``, what is in it already included."""
        self._promised[draft] = size_bytes

    def release(self, draft: Path) -> None:
        """Keep no more room for ``draft``. Twice is fine."""
        self._promised.pop(draft, None)

    def used_bytes(self) -> int:
        """Give what is on disk, with all that is unusable, half done or half removed."""
        return size_bytes_of(self._root)

    def lacking(self, size_bytes: int) -> str | None:
        """Give why there is no room for so much more, in words; else None. Raises OSError."""
        if why := self.over_budget(size_bytes):
            return why
        outstanding_bytes, free_bytes = self._outstanding_bytes(), _free_bytes(self._root)
        if outstanding_bytes + size_bytes + self._keep_free_bytes <= free_bytes:
            return None
        return (
            f"the disk of {self._root} has {size_text(free_bytes)} left"
            f"{_planned_text(outstanding_bytes)}, and {size_text(self._keep_free_bytes)} are to "
            f"stay free: {size_text(size_bytes)} more do not fit"
        )

    def over_budget(self, size_bytes: int) -> str | None:
        """Give why so much more exceeds the budget, in words; None when it does not."""
        used_bytes, outstanding_bytes = self.used_bytes(), self._outstanding_bytes()
        if used_bytes + outstanding_bytes + size_bytes <= self._budget_bytes:
            return None
        return (
            f"all snapshots together may have {size_text(self._budget_bytes)}, and there are "
            f"{size_text(used_bytes)}{_planned_text(outstanding_bytes)}: {size_text(size_bytes)} "
            "more do not fit"
        )

    def _outstanding_bytes(self) -> int:
        return sum(
            max(0, promised_bytes - size_bytes_of(draft))
            for draft, promised_bytes in tuple(self._promised.items())
        )


def size_text(size_bytes: int) -> str:
    """Give a size for people."""
    if size_bytes < MIB:
        return f"{size_bytes} bytes"
    if size_bytes < GIB:
        return f"{size_bytes / MIB:.0f} MiB"
    return f"{size_bytes / GIB:.1f} GiB"


def _planned_text(outstanding_bytes: int) -> str:
    return f" and {size_text(outstanding_bytes)} to be written" if outstanding_bytes else ""


def _free_bytes(folder: Path) -> int:
    """Give what an ordinary user can still write where ``folder`` is or will be."""
    while not folder.exists():
        folder = folder.parent
    seen = os.statvfs(folder)
    return seen.f_bavail * seen.f_frsize
