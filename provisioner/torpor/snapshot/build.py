"""One snapshot on disk, whole: ``<root>/<kernel_id>/<generation>/``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torpor.golden.build import IMAGE, MANIFEST
from torpor.golden.disk import read_plain, require_private
from torpor.golden.image import Identity, identity, outward_damage
from torpor.golden.manifest import ImageFile
from torpor.snapshot.errors import SnapshotUnusable, as_unusable
from torpor.snapshot.later import is_complete, with_kept
from torpor.snapshot.manifest import Ancestor, SnapshotManifest, parse_snapshot

MANIFEST_LIMIT_BYTES = 64 << 20
_MANIFESTS_KNOWN = 16
DAMAGED_HINT = (
    "put it back from a backup; `torpor snapshots rm --disk` removes what is left of it on this "
    "disk only"
)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot to restore from."""

    manifest: SnapshotManifest
    folder: Path

    @property
    def image(self) -> Path:
        """What runsc restores from."""
        return self.folder / IMAGE


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """What lists show of a snapshot. The whole manifest takes a megabyte, its environment most."""

    kernel_id: str
    generation: int
    name: str
    parent: Ancestor | None
    created_at: str
    created_s: float
    template: str
    kernel_name: str
    files: Mapping[str, ImageFile]
    folder: Path

    @property
    def size_bytes(self) -> int:
        """The sizes of all files of the image together."""
        return sum(file.size_bytes for file in self.files.values())


class Snapshots:
    """Reads snapshots. What lists show is read once as long as the manifest stays as it is.

    All ways raise FileNotFoundError for one that is not complete (any more), and SnapshotUnusable
    for one that is not what was published, as far as can be seen without reading the image, or that
    is not ours alone.
    """

    def __init__(self) -> None:
        self._listed: dict[Path, tuple[Identity, Listed]] = {}
        self._manifests: dict[Path, tuple[Identity, SnapshotManifest]] = {}

    def load(self, folder: Path) -> Snapshot:
        """Give the snapshot in ``folder``."""
        with as_unusable():
            require_private(folder)
            manifest = self._manifest(folder, identity((folder / MANIFEST).lstat()))
            _require_image(folder, manifest.files)
        return Snapshot(manifest, folder)

    def list(self, folder: Path) -> Listed:
        """Give what lists show of the snapshot in ``folder``."""
        with as_unusable():
            require_private(folder)
            now = identity((folder / MANIFEST).lstat())
            known = self._listed.get(folder)
            if not known or known[0] != now or not is_complete(known[1].files):
                known = now, listed(self._manifest(folder, now), folder)
                self._listed[folder] = known
            _require_image(folder, known[1].files)
        return known[1]

    def manifest(self, folder: Path) -> SnapshotManifest:
        """Give the manifest in ``folder``, whatever is wrong with the image."""
        with as_unusable():
            return self._manifest(folder, identity((folder / MANIFEST).lstat()))

    def forget(self, folder: Path) -> None:
        """Forget what was read in ``folder``."""
        self._listed.pop(folder, None)
        self._manifests.pop(folder, None)

    def learn(self, snapshot: Snapshot) -> None:
        """Take note of one that was just published, as reading it takes some milliseconds."""
        with suppress(OSError):
            now = identity((snapshot.folder / MANIFEST).lstat())
            self._remember(snapshot.folder, now, snapshot.manifest)

    def _manifest(self, folder: Path, now: Identity) -> SnapshotManifest:
        known = self._manifests.get(folder)
        if known and known[0] == now and is_complete(known[1].files):
            return known[1]
        manifest = known[1] if known and known[0] == now else _read(folder)
        manifest = with_kept(manifest, folder)
        self._remember(folder, now, manifest)
        return manifest

    def _remember(self, folder: Path, now: Identity, manifest: SnapshotManifest) -> None:
        if len(self._manifests) >= _MANIFESTS_KNOWN and folder not in self._manifests:
            self._manifests.clear()
        self._manifests[folder] = (now, manifest)


def _read(folder: Path) -> SnapshotManifest:
    raw = read_plain(folder / MANIFEST, MANIFEST_LIMIT_BYTES)
    manifest = parse_snapshot(raw, owner_uid=os.geteuid())
    if (manifest.kernel_id, str(manifest.generation)) != (folder.parent.name, folder.name):
        raise SnapshotUnusable(
            f"the manifest in {folder} is that of another snapshot", hint="move it back"
        )
    return manifest


def listed(manifest: SnapshotManifest, folder: Path) -> Listed:
    """Give what lists show. Pure."""
    return Listed(
        kernel_id=manifest.kernel_id,
        generation=manifest.generation,
        name=manifest.name,
        parent=manifest.parent,
        created_at=manifest.created_at,
        created_s=manifest.created_s,
        template=manifest.template,
        kernel_name=manifest.kernel_name,
        files=manifest.files,
        folder=folder,
    )


def _require_image(folder: Path, files: Mapping[str, ImageFile]) -> None:
    image = folder / IMAGE
    try:
        require_private(image)
    except FileNotFoundError:
        damage: str | None = f"{image} is missing"
    else:
        damage = outward_damage(image, files)
    if damage:
        (folder / MANIFEST).lstat()  # it goes first where a snapshot is being removed
        raise SnapshotUnusable(damage, hint=DAMAGED_HINT)
