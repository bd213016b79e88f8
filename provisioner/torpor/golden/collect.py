"""What a collection removes, in which order, and why. All under the lock of the shelf."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torpor.golden.build import Golden
from torpor.golden.disk import remove_folder, size_bytes_of
from torpor.golden.shelf import Shelf


@dataclass(frozen=True, slots=True)
class Removed:
    """A folder that is no more, and why."""

    folder: Path
    reason: str
    size_bytes: int


def remove_dead(drafts: Iterable[Path]) -> list[Removed]:
    """Remove drafts whose builders are no more."""
    removed = []
    for draft in drafts:
        removed.append(Removed(draft, "its builder is no more", size_bytes_of(draft)))
        remove_folder(draft)
    return removed


def remove_broken(shelf: Shelf, broken: Iterable[tuple[Path, str]]) -> list[Removed]:
    """Remove what ``Shelf.look`` found to be no complete build."""
    removed = []
    for folder, reason in broken:
        size_bytes = size_bytes_of(folder)
        if shelf.remove(folder):
            removed.append(Removed(folder, reason, size_bytes))
    return removed


def remove_superseded(shelf: Shelf, newest_first: list[Golden]) -> list[Removed]:
    """Remove all builds of one key but the newest, and those that are held."""
    return [
        Removed(golden.folder, "superseded by a newer build", golden.size_bytes)
        for golden in newest_first[1:]
        if shelf.remove(golden.folder)
    ]


def remove_over_budget(shelf: Shelf, goldens: Iterable[Golden], budget_bytes: int) -> list[Removed]:
    """Remove goldens, the longest unused first, until the rest fits; never one that is held."""
    by_use = sorted(goldens, key=lambda golden: golden.last_used)
    total_bytes = sum(golden.size_bytes for golden in by_use)
    removed = []
    for golden in by_use:
        if total_bytes <= budget_bytes:
            break
        if shelf.remove(golden.folder):
            total_bytes -= golden.size_bytes
            reason = f"longest unused, and all goldens together exceed {budget_bytes} bytes"
            removed.append(Removed(golden.folder, reason, golden.size_bytes))
    return removed
