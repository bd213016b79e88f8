"""Removing snapshots, and bringing what is on disk together with the kernels that are known."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from torpor.golden.collect import Removed, remove_dead
from torpor.golden.disk import remove_empty, size_bytes_of
from torpor.golden.draft import Drafts
from torpor.golden.manifest import GoldenUnusable
from torpor.snapshot.build import Listed
from torpor.snapshot.shelf import Shelf


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What ``SnapshotStore.reconcile`` found and did.

    ``orphans`` are whole snapshots of kernels that nobody knows, still there. ``unusable`` are
    folders that cannot be restored from, and why; they are still there, too.
    """

    orphans: tuple[Listed, ...] = ()
    unusable: tuple[tuple[Path, str], ...] = ()
    removed: tuple[Removed, ...] = ()


@dataclass(slots=True)
class Reconciliation:
    """One pass over all kernels; it takes the lock of the shelf for one kernel at a time."""

    shelf: Shelf
    is_known: Callable[[str], bool]
    is_old: Callable[[Listed], bool]
    orphans: list[Listed] = field(default_factory=list)
    unusable: list[tuple[Path, str]] = field(default_factory=list)
    removed: list[Removed] = field(default_factory=list)

    def run(self, drafts: Drafts) -> Reconciled:
        """Remove dead drafts, half removed snapshots, and the old among those of no kernel."""
        with self.shelf.lock():
            self.removed += remove_dead(drafts.dead())
        for kernel_id in self.shelf.kernel_ids():
            with self.shelf.lock():
                try:
                    self._kernel(kernel_id)
                except (GoldenUnusable, OSError) as exc:
                    self.unusable.append((self.shelf.root / kernel_id, str(exc)))
        return Reconciled(tuple(self.orphans), tuple(self.unusable), tuple(self.removed))

    def _kernel(self, kernel_id: str) -> None:
        look = self.shelf.look(kernel_id)
        self.unusable += [(folder, str(why)) for folder, why in look.unusable]
        self.removed += remove_all(self.shelf, look.incomplete, "incomplete")
        if not self.is_known(kernel_id):
            old = [each.folder for each in look.listed if self.is_old(each)]
            self.removed += remove_all(self.shelf, old, "nobody knows its kernel, and it is old")
            self.orphans += [each for each in look.listed if each.folder.exists()]
        remove_empty(self.shelf.root / kernel_id)


def remove_all(shelf: Shelf, folders: Iterable[Path], why: str) -> list[Removed]:
    """Remove what nobody holds and the disk lets go of; give it. Under the lock of the shelf."""
    removed = []
    for folder in folders:
        size_bytes = size_bytes_of(folder)
        with suppress(OSError):
            if shelf.remove(folder):
                removed.append(Removed(folder, why, size_bytes))
    return removed


def older_automatic(listed: Iterable[Listed], generation: int) -> list[Path]:
    """Give the folders of the snapshots before ``generation`` that nobody has named."""
    return [each.folder for each in listed if each.generation < generation and not each.name]
