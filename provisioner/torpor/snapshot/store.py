"""The snapshots of one user on disk: made, found, checked, held, and dropped.

::

    <root>/                     0700, ours; anything else is refused, and links are never followed
        +lock                   flock: held while names below change, never while an image is read
        +drafts/.draft-*/       being made; locked while their maker lives
        <kernel_id>/<generation>/
            manifest.json       see manifest.py; its flock: shared by each restore in progress,
                                exclusive for whoever removes the snapshot
            image/              what runsc wrote

Snapshots are people's work: nothing here removes one to make room, or because it is damaged or too
new for this Torpor. Synchronous; safe from any thread and any number of processes. A crash leaves
the generations there were, and the new one whole or not at all.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from torpor.errors import Busy
from torpor.golden.build import IMAGE, MANIFEST, hold_build
from torpor.golden.collect import Removed
from torpor.golden.disk import (
    make_private,
    remove_empty,
    require_private,
    size_bytes_of,
    write_plain,
)
from torpor.golden.draft import Drafts
from torpor.golden.image import damage
from torpor.golden.manifest import GoldenUnusable, ImageFile
from torpor.snapshot.build import DAMAGED_HINT, MANIFEST_LIMIT_BYTES, Listed, Snapshot
from torpor.snapshot.errors import NoRoom, SnapshotUnusable, as_unusable
from torpor.snapshot.image import record, require_same
from torpor.snapshot.later import agree, completed, is_complete, keep
from torpor.snapshot.manifest import (
    SnapshotManifest,
    check_name,
    parse_snapshot,
    snapshot_bytes,
)
from torpor.snapshot.reconcile import (
    Reconciled,
    Reconciliation,
    older_automatic,
    remove_all,
)
from torpor.snapshot.room import Room
from torpor.snapshot.shelf import DRAFTS, Shelf

_NO_ROOM_HINT = "drop kernels or named checkpoints that are not needed, or raise the budget"


class SnapshotStore:
    """The snapshots below ``root``, of at most ``budget_bytes`` together.

    ``keep_free_bytes`` of the disk are left to everything else. Every method raises
    SnapshotUnusable when a folder it needs is not ours alone or an argument names nothing that can
    be, and OSError when the disk fails. Nothing is made before the first ``draft``.
    """

    def __init__(
        self,
        root: Path,
        budget_bytes: int,
        *,
        keep_free_bytes: int = 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._root = root
        self._clock = clock
        self._shelf = Shelf(root)
        self._drafts = Drafts(root / DRAFTS)
        self._room = Room(root, budget_bytes, keep_free_bytes)

    # Making

    @as_unusable()
    def draft(self, expected_bytes: int = 0) -> Path:
        """Give a new private folder with an empty ``image`` in it, for ``publish`` or ``discard``.

        Room for ``expected_bytes`` is kept until then. It is this process's: when that dies the
        next ``reconcile`` removes it.

        Raises NoRoom when so much does not fit.
        """
        self._root.parent.mkdir(parents=True, exist_ok=True)
        make_private(self._root)
        with self._shelf.lock():
            self._require(self._room.lacking(expected_bytes))
            make_private(self._root / DRAFTS)
            draft = self._drafts.make(secrets.token_hex(8))
            self._room.promise(draft, expected_bytes)
        return draft

    def discard(self, draft: Path) -> None:
        """Remove a draft. One that was published or discarded before is left alone."""
        self._room.release(draft)
        self._drafts.discard(draft)

    @as_unusable()
    def publish(self, draft: Path, manifest: SnapshotManifest, *, later: bool = False) -> Snapshot:
        """Make the draft the newest snapshot of its kernel; ``files`` are filled in here.

        All others stay. When it returns, the snapshot survives a loss of power. With ``later`` the
        digests of its large files are left to ``complete``. Whatever is raised,
        the draft is gone, there is no new snapshot, and the others are as they were.

        Raises:
            NoRoom: larger than what was expected, and does not fit.
            SnapshotUnusable: not a draft of this process; no image in it, or something that is no
                plain file; the generation does not rise, or the name is taken.
            OSError: the disk is full, for one.
        """
        return self._place(draft, manifest, self._shelf.require_next, later=later)

    @as_unusable()
    def publish_copy(self, draft: Path, manifest: SnapshotManifest) -> Snapshot:
        """Do as ``publish`` with a copy of another snapshot, whose ``files`` it must still hold.

        Raises as ``publish``, and SnapshotUnusable when what was copied is damaged.
        """
        return self._place(draft, manifest, self._shelf.require_next, manifest.files)

    @as_unusable()
    def adopt(self, draft: Path, manifest: SnapshotManifest) -> Snapshot:
        """Make the draft the snapshot of ``manifest``, which was published elsewhere, as it was.

        As ``publish``, but the draft must hold the files of ``manifest``, and its generation may be
        below those that are here: it only must not be here yet.

        Raises as ``publish``, and SnapshotUnusable when the files are not those of ``manifest``.
        """
        return self._place(draft, manifest, self._shelf.require_absent, manifest.files)

    @as_unusable()
    def mend(self, draft: Path, manifest: SnapshotManifest) -> Snapshot:
        """Put the draft in the place of that snapshot, whose image is damaged; else as ``adopt``.

        Only where the manifest that is there is the same: nothing but what is wrong is lost.

        Raises as ``adopt``, and Busy while something is being restored from what is there.
        """
        return self._place(draft, manifest, self._make_way, manifest.files, within=True)

    def _make_way(self, manifest: SnapshotManifest) -> None:
        """Remove what is there of exactly that manifest."""
        folder = self._shelf.folder(manifest.kernel_id, manifest.generation)
        here = self._shelf.manifest(folder)
        if here and agree(here, manifest) and not self._shelf.remove(folder):
            raise Busy(
                f"generation {manifest.generation} of kernel {manifest.kernel_id} is in use (restored, copied or sent)",
                hint="try again when that has ended",
            )
        self._shelf.require_absent(manifest)

    @as_unusable()
    def damaged_copy_of(self, manifest: SnapshotManifest) -> bool:
        """Whether what is here has that manifest, and an image that is damaged. Reads all of it."""
        folder = self._shelf.folder(manifest.kernel_id, manifest.generation)
        try:
            here = self._shelf.manifest(folder)
            if here is None or not agree(here, manifest):
                return False
        except GoldenUnusable:  # nobody can tell what it was
            return False
        return bool(self.verify(Snapshot(manifest, folder)))

    def _place(
        self,
        draft: Path,
        manifest: SnapshotManifest,
        require: Callable[[SnapshotManifest], None],
        wanted: Mapping[str, ImageFile] | None = None,
        *,
        within: bool = False,
        later: bool = False,
    ) -> Snapshot:
        """``require`` is asked under the lock, and before it unless it is only for ``within``."""
        try:
            self._drafts.check(draft, draft.name.rpartition("-")[2])
            if not within:
                require(manifest)
            files = record(draft / IMAGE, self._shelf.digests, later=later)
            if wanted is not None:
                require_same(files, wanted)
            manifest = _write_manifest(draft, replace(manifest, files=files))
            with self._shelf.lock():
                self._room.release(draft)
                self._require(self._room.over_budget(0))
                require(manifest)
                self._drafts.unmark(draft)
                return self._shelf.place(draft, manifest)
        finally:
            self._shelf.digests.forget(draft)
            self.discard(draft)

    def room(self, bytes_needed: int) -> str | None:
        """Give why a snapshot of so many bytes does not fit, in words; None when it does."""
        return self._room.lacking(bytes_needed)

    def lacking(self, size_bytes: int) -> str | None:
        """Give why what takes so much on this disk already cannot be kept; None when it can."""
        return self._room.over_budget(size_bytes) or self._room.lacking(0)

    def used_bytes(self) -> int:
        """Give what is on disk, drafts and unusable snapshots included."""
        return self._room.used_bytes()

    # Using

    @as_unusable()
    def next_generation(self, kernel_id: str) -> int:
        """Give the generation that ``publish`` would accept next.

        Of a kernel that has no snapshot (any more) that is 1.
        """
        return max(self._shelf.generations(kernel_id), default=0) + 1

    @as_unusable()
    def latest(self, kernel_id: str) -> Snapshot | None:
        """Give the newest snapshot, named or not; None when there is none.

        Raises SnapshotUnusable when it is damaged: an older one is never given in its place.
        """
        return self._shelf.newest(kernel_id)

    @as_unusable()
    def get(self, kernel_id: str, which: int | str) -> Snapshot | None:
        """Give the snapshot of that generation or name; None when there is none.

        Looks at the manifest and at names and sizes in the image; its content is for ``verify``.
        Digests that ``publish`` has left out are for ``complete``.

        Raises SnapshotUnusable when it is damaged, or for a name that a damaged one may have had.
        """
        if isinstance(which, int):
            with suppress(FileNotFoundError):
                return self._shelf.load(kernel_id, which)
            return None
        check_name(which)
        look = self._shelf.look(kernel_id)
        for listed in look.listed:
            if listed.name == which:
                return self.get(kernel_id, listed.generation)
        for _, why in look.unusable:  # one of them may have that name
            raise why
        return None

    @as_unusable()
    def complete(self, snapshot: Snapshot) -> Snapshot:
        """Give ``snapshot`` with the digests of all its files; computed and kept if need be.

        Whoever removes it is not held up. On a disk that takes nothing they are only given.

        Raises:
            SnapshotUnusable: it is gone, cannot be read, or was changed after it was published.
        """
        if is_complete(snapshot.manifest.files):
            return snapshot
        try:
            manifest = completed(snapshot.manifest, snapshot.folder, self._shelf.digests)
        except OSError as exc:
            why = exc.strerror or str(exc)
            raise SnapshotUnusable(
                f"{exc.filename or snapshot.folder} cannot be read: {why}", hint=DAMAGED_HINT
            ) from exc
        with self._shelf.lock():
            here = self._shelf.manifest(snapshot.folder)
            if here is None or not agree(here, manifest):  # it is removed, or even replaced
                raise SnapshotUnusable(f"{snapshot.folder} has been removed")
            with suppress(OSError, GoldenUnusable):
                keep(snapshot.folder, manifest.files)
            self._shelf.forget(snapshot.folder)
        return Snapshot(manifest, snapshot.folder)

    @contextmanager
    def hold(self, snapshot: Snapshot) -> Iterator[None]:
        """Keep ``snapshot`` from being removed while a kernel is restored from it.

        Raises SnapshotUnusable when it was removed already.
        """
        with as_unusable("look for the snapshot again"):
            fd = hold_build(snapshot.folder)
        try:
            yield
        finally:
            os.close(fd)

    @as_unusable()
    def verify(self, snapshot: Snapshot) -> str | None:
        """Give what is wrong with the image, its content included, in words; else None.

        Reads all of it once in this process, and after that, or when it was published here, only
        what was touched. Hold it meanwhile.
        """
        try:
            require_private(snapshot.folder)
            require_private(snapshot.image)
        except FileNotFoundError as exc:
            return f"{exc.filename} is missing"
        return damage(snapshot.image, snapshot.manifest.files, self._shelf.digests)

    @as_unusable()
    def answered(self, kernel_id: str, generation: int) -> tuple[Removed, ...]:
        """Free what the kernel no longer needs, as it has answered from ``generation`` on.

        That are all older snapshots without a name. What is held stays until the next time, and
        what is unusable for good: it may have had a name. Give what is gone. Twice is fine.

        Raises SnapshotUnusable when that generation is not whole itself; all stay then.
        """
        if self._shelf.exists():
            with self._shelf.lock(), suppress(FileNotFoundError):
                self._shelf.load(kernel_id, generation)
                look, why = self._shelf.look(kernel_id), f"generation {generation} has answered"
                removed = remove_all(self._shelf, look.incomplete, "incomplete")
                older = older_automatic(look.listed, generation)
                return (*removed, *remove_all(self._shelf, older, why))
        raise SnapshotUnusable(
            f"kernel {kernel_id} has no generation {generation}", hint="nothing was freed"
        )

    # Looking and removing

    @as_unusable()
    def list(self, kernel_id: str | None = None) -> tuple[Listed, ...]:
        """Give all whole snapshots (of one kernel) by kernel and generation.

        The others are for ``reconcile``.
        """
        if not self._shelf.exists():
            return ()
        found: list[Listed] = []
        for each in self._shelf.kernel_ids() if kernel_id is None else [kernel_id]:
            with suppress(GoldenUnusable):
                found += self._shelf.look(each).listed
        return tuple(found)

    @as_unusable()
    def drop(self, kernel_id: str, generation: int | None = None) -> tuple[Removed, ...]:
        """Remove one snapshot of a kernel, or all, be they named or damaged; give what is gone.

        None is fine.

        Raises:
            Busy: something is being restored from one; that one stays, the others are gone.
            OSError: the disk will not; those that are left are whole.
        """
        wanted = self._shelf.generations(kernel_id)
        if generation is not None:
            wanted = [each for each in wanted if each == generation]
        if not wanted:
            return ()
        removed, held = [], []
        with self._shelf.lock():
            for each in wanted:
                folder = self._shelf.folder(kernel_id, each)
                size_bytes = size_bytes_of(folder)
                if self._shelf.remove(folder):
                    removed.append(Removed(folder, "dropped", size_bytes))
                else:
                    held.append(str(each))
            remove_empty(self._root / kernel_id)
        if held:
            raise Busy(
                f"generation {', '.join(held)} of kernel {kernel_id} is in use (restored, copied or sent)",
                hint="try again when that has ended",
            )
        return tuple(removed)

    @as_unusable()
    def unusable(self, kernel_id: str | None = None) -> tuple[tuple[str, int, str], ...]:
        """Give all that cannot be used (of one kernel): its id, generation, and why, in words."""
        if not self._shelf.exists():
            return ()
        found: list[tuple[str, int, str]] = []
        for each in self._shelf.kernel_ids() if kernel_id is None else [kernel_id]:
            with suppress(GoldenUnusable):
                look = self._shelf.look(each)
                found += [(each, int(path.name), why.message) for path, why in look.unusable]
        return tuple(found)

    @as_unusable()
    def reconcile(
        self, known_kernel_ids: Collection[str], *, orphans_older_than_s: float | None = None
    ) -> Reconciled:
        """Remove what crashes left, and look for snapshots of kernels that are not known.

        Those are removed only when they were made longer ago than ``orphans_older_than_s``; None:
        never. Nothing else that is whole or unusable is touched.
        """
        if not self._shelf.exists():
            return Reconciled()
        return Reconciliation(
            self._shelf,
            lambda kernel_id: kernel_id in known_kernel_ids,
            lambda listed: self._is_old(listed, orphans_older_than_s),
        ).run(self._drafts)

    def _is_old(self, listed: Listed, than_s: float | None) -> bool:
        return than_s is not None and self._clock() - listed.created_s > than_s

    def _require(self, why_not: str | None) -> None:
        if why_not:
            raise NoRoom(why_not, hint=_NO_ROOM_HINT)


def _write_manifest(draft: Path, manifest: SnapshotManifest) -> SnapshotManifest:
    """Complete ``draft``; give the manifest as it will be read back."""
    raw = snapshot_bytes(manifest)
    if len(raw) > MANIFEST_LIMIT_BYTES:
        raise SnapshotUnusable(f"the manifest of the snapshot is too large: {len(raw)} bytes")
    manifest = parse_snapshot(raw, owner_uid=os.geteuid())
    write_plain(draft / MANIFEST, raw)
    return manifest
