"""The snapshots of all kernels below one root: which there are, placing one, and removing one."""

from __future__ import annotations

import os
import re
import stat
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from torpor.golden.build import IMAGE, remove_build
from torpor.golden.disk import (
    locked,
    make_private,
    remove_empty,
    require_private,
    sync_folder,
)
from torpor.golden.image import Digests
from torpor.snapshot.build import Listed, Snapshot, Snapshots
from torpor.snapshot.errors import SnapshotUnusable
from torpor.snapshot.manifest import (
    SnapshotManifest,
    check_generation,
    check_kernel_id,
    is_kernel_id,
)

# No kernel's id has a + in it.
LOCK = "+lock"
DRAFTS = "+drafts"
_GENERATION = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True, slots=True)
class Look:
    """All folders of one kernel: whole ones by generation, and the others.

    ``unusable`` with what is wrong; they stay. ``incomplete`` have no manifest: somebody is
    removing them, or died over it.
    """

    listed: tuple[Listed, ...]
    unusable: tuple[tuple[Path, SnapshotUnusable], ...]
    incomplete: tuple[Path, ...]


class Shelf:
    """``<root>/<kernel_id>/<generation>/``. What changes names is called under ``lock``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.digests = Digests()
        self._snapshots = Snapshots()

    def lock(self) -> AbstractContextManager[None]:
        """Keep everybody else from changing names below the root. Held for moments only."""
        return locked(self.root / LOCK)

    def exists(self) -> bool:
        """Whether there is a root. Raises GoldenUnusable when it is not ours alone."""
        try:
            require_private(self.root)
        except FileNotFoundError:
            return False
        return True

    def kernel_ids(self) -> list[str]:
        """Give the kernels there is something of, sorted."""
        return sorted(name for name in os.listdir(self.root) if is_kernel_id(name))

    def folder(self, kernel_id: str, generation: int) -> Path:
        """Give where that snapshot is or would be."""
        return self.root / check_kernel_id(kernel_id) / str(check_generation(generation))

    def generations(self, kernel_id: str) -> list[int]:
        """Give the generations of a kernel there is anything of, ascending."""
        folder = self.root / check_kernel_id(kernel_id)
        try:
            require_private(self.root)
            require_private(folder)
            return sorted(int(name) for name in os.listdir(folder) if _GENERATION.fullmatch(name))
        except FileNotFoundError:
            return []

    def load(self, kernel_id: str, generation: int) -> Snapshot:
        """Give a snapshot. Raises as ``Snapshots``."""
        return self._snapshots.load(self.folder(kernel_id, generation))

    def manifest(self, folder: Path) -> SnapshotManifest | None:
        """Give the manifest in a folder, whatever is wrong with the image; None where it has none.

        Raises GoldenUnusable when it is damaged itself.
        """
        try:
            require_private(folder)
            return self._snapshots.manifest(folder)
        except FileNotFoundError:
            return None

    def newest(self, kernel_id: str) -> Snapshot | None:
        """Give the complete snapshot of the highest generation. Raises as ``load``.

        Needs no lock: looks again where others change names meanwhile, and so finds none only
        when there was a moment without any.
        """
        before: list[int] = []
        while (now := self.generations(kernel_id)) != before:
            for generation in reversed(now):
                with suppress(FileNotFoundError):
                    return self.load(kernel_id, generation)
            before = now
        return None

    def look(self, kernel_id: str) -> Look:
        """Give all there is of a kernel. Raises GoldenUnusable when its folder is not ours alone.

        Needs no lock, as ``newest``; but what is incomplete may only be removed under one.
        """
        while True:
            generations = self.generations(kernel_id)
            look = self._look(kernel_id, generations)
            if not look.incomplete or self.generations(kernel_id) == generations:
                return look

    def require_next(self, manifest: SnapshotManifest) -> None:
        """Raise SnapshotUnusable unless the generation rises and the name is new."""
        last = max(self.generations(manifest.kernel_id), default=0)
        if manifest.generation <= last:
            raise SnapshotUnusable(
                f"kernel {manifest.kernel_id} has generation {last} already: "
                f"{manifest.generation} does not follow",
                hint="ask for the next generation again",
            )
        self._require_new_name(manifest)

    def require_absent(self, manifest: SnapshotManifest) -> None:
        """Raise SnapshotUnusable when there is that generation, whole or not, or that name."""
        if manifest.generation in self.generations(manifest.kernel_id):
            raise SnapshotUnusable(
                f"kernel {manifest.kernel_id} has generation {manifest.generation} already",
                hint="use that one, or drop it first",
            )
        self._require_new_name(manifest)

    def _require_new_name(self, manifest: SnapshotManifest) -> None:
        for other in self.look(manifest.kernel_id).listed if manifest.name else ():
            if other.name == manifest.name:
                raise SnapshotUnusable(
                    f"kernel {manifest.kernel_id} has a checkpoint {manifest.name!r} already",
                    hint="choose another name, or drop that one first",
                )

    def place(self, draft: Path, manifest: SnapshotManifest) -> Snapshot:
        """Have ``draft``, complete and durable in itself, be the snapshot of ``manifest``.

        Whatever is raised, there is no new snapshot, unless the disk will not let it be taken back.
        """
        folder = self.folder(manifest.kernel_id, manifest.generation)
        make_private(folder.parent)
        with ExitStack() as undo:
            undo.callback(remove_empty, folder.parent)
            undo.callback(self._withdraw, draft, folder)
            os.rename(draft, folder)
            sync_folder(folder.parent)
            sync_folder(self.root)
            undo.pop_all()
        self.digests.moved(draft / IMAGE, folder / IMAGE, manifest.files)
        snapshot = Snapshot(manifest, folder)
        self._snapshots.learn(snapshot)
        return snapshot

    def forget(self, folder: Path) -> None:
        """Read again what is beside the image of that snapshot, as more is known of it now."""
        self._snapshots.forget(folder)

    def remove(self, folder: Path) -> bool:
        """Remove a snapshot, complete or not; False where it is held. Raises OSError."""
        if os.path.lexists(folder) and not stat.S_ISDIR(folder.lstat().st_mode):
            folder.unlink()
        if not remove_build(folder):
            return False
        self._snapshots.forget(folder)
        self.digests.forget(folder)
        return True

    def _look(self, kernel_id: str, generations: list[int]) -> Look:
        listed, unusable, incomplete = [], [], []
        for generation in generations:
            folder = self.folder(kernel_id, generation)
            try:
                listed.append(self._snapshots.list(folder))
            except FileNotFoundError:
                incomplete.append(folder)
            except SnapshotUnusable as exc:
                unusable.append((folder, exc))
            except OSError as exc:
                words = f"{exc.filename or folder} cannot be read: {exc.strerror}"
                unusable.append((folder, SnapshotUnusable(words, hint="is the disk all right?")))
        return Look(tuple(listed), tuple(unusable), tuple(incomplete))

    def _withdraw(self, draft: Path, folder: Path) -> None:
        if not draft.exists():
            with suppress(OSError):
                self.remove(folder)
