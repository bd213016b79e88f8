"""The builds of all keys below one root: which there are, placing one, and removing one."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path

from torpor.golden.build import (
    IMAGE,
    MANIFEST,
    Builds,
    Damaged,
    Golden,
    make_newest,
    remove_build,
)
from torpor.golden.disk import (
    locked,
    make_private,
    remove_empty,
    require_private,
    sync_folder,
    write_plain,
)
from torpor.golden.image import Digests
from torpor.golden.manifest import GoldenUnusable, Manifest, is_build, is_key, sealed

INCOMPLETE = "incomplete"


class Shelf:
    """``<root>/<key>/<build>/``. What changes names is called under ``lock``; looking needs none."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.digests = Digests()
        self._builds = Builds()

    def lock(self) -> AbstractContextManager[None]:
        """Keep everybody else from changing names below the root. Held for moments only."""
        return locked(self.root / ".lock")

    def exists(self) -> bool:
        """Whether there is a root. Raises GoldenUnusable when it is not ours alone."""
        try:
            require_private(self.root)
        except FileNotFoundError:
            return False
        return True

    def keys_on_disk(self) -> list[str]:
        """Give the keys there are folders for, sorted."""
        return [name for name in _folder_names(self.root) if is_key(name)]

    def look(self, key: str) -> tuple[list[Golden], list[tuple[Path, str]]]:
        """Give the complete builds of ``key``, the newest first, and the others with what is wrong.

        That is INCOMPLETE for one without a manifest: somebody is removing it, or died over it.
        """
        goldens, others = [], []
        for folder in self.folders(key):
            try:
                goldens.append(self._builds.load(folder))
            except FileNotFoundError:
                others.append((folder, INCOMPLETE))
            except Damaged as exc:
                others.append((folder, exc.message))
        goldens.sort(key=lambda golden: golden.published_ns, reverse=True)
        return goldens, others

    def look_or_pass(self, key: str) -> tuple[list[Golden], list[tuple[Path, str]]]:
        """``look``, but pass over a key where something is open to others."""
        try:
            return self.look(key)
        except GoldenUnusable:
            return [], []

    def folders(self, key: str) -> list[Path]:
        """Give the folders of the builds of ``key``, complete or not."""
        try:
            require_private(self.root)
            require_private(self.root / key)
            names = _folder_names(self.root / key)
        except FileNotFoundError:
            return []
        return [self.root / key / name for name in names if is_build(name)]

    def place(self, draft: Path, manifest: Manifest) -> Golden:
        """Complete ``draft`` with its manifest, make it the newest build, and remove the older.

        Whatever is raised, the older builds are as they were, and there is no new one unless it
        cannot be taken back, for want of file descriptors say: it is complete then.
        """
        folder = self.root / manifest.key / manifest.build
        make_private(folder.parent)
        with ExitStack() as undo:
            undo.callback(remove_empty, folder.parent)
            older = self.folders(manifest.key)
            if os.path.lexists(folder):
                raise FileExistsError(f"there is a build in {folder} already")
            write_plain(draft / MANIFEST, sealed(manifest.to_json()))
            make_newest(draft, older)
            undo.callback(self._withdraw, draft, folder)
            os.rename(draft, folder)
            sync_folder(folder.parent)
            sync_folder(self.root)
            self.digests.moved(draft / IMAGE, folder / IMAGE, manifest.files)
            golden = self._builds.load(folder)
            undo.pop_all()
        for superseded in older:
            self.remove(superseded)
        return golden

    def remove(self, folder: Path) -> bool:
        """Remove a build; False where it is held, or the disk will not."""
        with suppress(OSError):
            if remove_build(folder):
                self._builds.forget(folder)
                self.digests.forget(folder)
                return True
        return False

    def _withdraw(self, draft: Path, folder: Path) -> None:
        if not draft.exists():
            self.remove(folder)


def _folder_names(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
