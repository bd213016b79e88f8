"""One build of a golden on disk: ``<root>/<key>/<build>/``.

::

    manifest.json    written last: with it the build is complete. Its flock: shared by each restore
                     in progress, exclusive for whoever removes the build
    image/           what runsc wrote
    used             its mtime is when a clone was made last
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torpor.golden.disk import open_plain, read_plain, remove_folder, require_private, try_lock
from torpor.golden.image import Identity, identity, outward_damage
from torpor.golden.manifest import GoldenUnusable, Manifest, parse_manifest

MANIFEST = "manifest.json"
IMAGE = "image"
_USED = "used"
_MANIFEST_LIMIT_BYTES = 64 << 20


class Damaged(GoldenUnusable):
    """A build is not what was published: remove it, and build anew."""


@dataclass(frozen=True, slots=True)
class Golden:
    """A complete build. ``last_used`` is in seconds since 1970; its making counts as a use.

    Of several with one key the one with the highest ``published_ns`` counts.
    """

    manifest: Manifest
    folder: Path
    size_bytes: int
    last_used: float
    published_ns: int

    @property
    def image(self) -> Path:
        return self.folder / IMAGE


class Builds:
    """Reads builds; a manifest is parsed once as long as its file stays as it is."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[Identity, Manifest]] = {}

    def load(self, folder: Path) -> Golden:
        """Give the build in ``folder``.

        Raises:
            FileNotFoundError: it is not complete (any more).
            Damaged: as far as can be seen without reading the image.
            GoldenUnusable: others could have written to it.
        """
        require_private(folder)
        seen = (folder / MANIFEST).lstat()
        manifest = self._manifest(folder, identity(seen))
        image = folder / IMAGE
        try:
            require_private(image)
        except FileNotFoundError as exc:
            raise Damaged(f"{image} is missing") from exc
        if reason := outward_damage(image, manifest.files):
            raise Damaged(reason)
        size_bytes = sum(file.size_bytes for file in manifest.files.values())
        last_used = _last_used(folder, seen.st_mtime)
        return Golden(manifest, folder, size_bytes, last_used, seen.st_mtime_ns)

    def forget(self, folder: Path) -> None:
        """Forget the manifest in ``folder``."""
        self._known.pop(folder, None)

    def _manifest(self, folder: Path, now: Identity) -> Manifest:
        known = self._known.get(folder)
        if known and known[0] == now:
            return known[1]
        try:
            manifest = parse_manifest(read_plain(folder / MANIFEST, _MANIFEST_LIMIT_BYTES))
        except GoldenUnusable as exc:
            raise Damaged(exc.message) from exc
        if (manifest.key, manifest.build) != (folder.parent.name, folder.name):
            raise Damaged(f"the manifest in {folder} is that of another build")
        self._known[folder] = (now, manifest)
        return manifest


def hold_build(folder: Path) -> int:
    """Keep the build in ``folder`` from being removed until the descriptor given is closed.

    Raises GoldenUnusable when it has been removed, or is about to be.
    """
    fd = None
    with suppress(FileNotFoundError):
        require_private(folder)
        fd = try_lock(folder / MANIFEST, os.O_RDONLY, fcntl.LOCK_SH)
    if fd is None:
        raise GoldenUnusable(f"{folder} has been removed", hint="look for the golden again")
    if os.fstat(fd).st_nlink:
        return fd
    os.close(fd)
    raise GoldenUnusable(f"{folder} was just removed", hint="look for the golden again")


def remove_build(folder: Path) -> bool:
    """Remove a build, complete or not; False, and all is as before, while somebody holds it.

    Its manifest goes first: from then on it is incomplete, and whatever is left is removed by the
    next collection. Raises OSError when it cannot be removed.
    """
    try:
        fd = try_lock(folder / MANIFEST, os.O_RDWR, fcntl.LOCK_EX)
    except (FileNotFoundError, GoldenUnusable):
        remove_folder(folder)
        return not folder.exists()
    if fd is None:
        return False
    try:
        (folder / MANIFEST).unlink()
        remove_folder(folder)
    finally:
        os.close(fd)
    return True


def make_newest(folder: Path, others: list[Path]) -> None:
    """Have the manifest in ``folder`` be younger than all others, even if the clock was set back."""
    newest_ns = max((_published_ns(other) for other in others), default=0)
    if _published_ns(folder) <= newest_ns:
        os.utime(folder / MANIFEST, ns=(newest_ns + 1, newest_ns + 1), follow_symlinks=False)


def mark_used(folder: Path, now: float) -> None:
    """Note that a clone is being made. On a full disk nothing is noted: it only orders removals."""
    with suppress(OSError, GoldenUnusable):
        fd = open_plain(folder / _USED, os.O_WRONLY | os.O_CREAT)
        try:
            os.utime(fd, (now, now))
        finally:
            os.close(fd)


def _last_used(folder: Path, made: float) -> float:
    try:
        return max(made, (folder / _USED).lstat().st_mtime)
    except FileNotFoundError:
        return made


def _published_ns(folder: Path) -> int:
    try:
        return (folder / MANIFEST).lstat().st_mtime_ns
    except FileNotFoundError:
        return 0
