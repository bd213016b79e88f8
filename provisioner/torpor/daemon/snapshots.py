"""The snapshots of this daemon's kernels: made from what a backend saved, found, checked, freed.

The store works with threads of its own; everything here may be cancelled and leaves whole snapshots.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from torpor.backends.base import Build, Handle, Saved
from torpor.daemon.logs import log
from torpor.daemon.records import KernelRow
from torpor.errors import Busy, SandboxError, SnapshotUnusable
from torpor.golden import fingerprint
from torpor.lifecycle import run_to_end
from torpor.python_prefix import within
from torpor.snapshot import outside
from torpor.snapshot.build import Listed, Snapshot
from torpor.snapshot.environment import Contents, changed, keep_digests, kept_digests
from torpor.snapshot.later import is_complete
from torpor.snapshot.manifest import Ancestor, SnapshotManifest, check_name
from torpor.snapshot.mismatch import MachineFacts, mismatch
from torpor.snapshot.shape import template_digest, template_fields
from torpor.snapshot.store import SnapshotStore
from torpor.template import Template, WorkspaceMode

_MAKING_S = 600.0
_FORGET_TRIES, _FORGET_PAUSE_S = 10, 0.5


class Snapshots:
    """What the daemon asks of a ``SnapshotStore``."""

    def __init__(self, store: SnapshotStore) -> None:
        self.store = store
        self._contents = Contents()
        self.incomplete: dict[tuple[str, int], float] = {}
        """Snapshots whose digests are not all known, and since when (``time.monotonic``)."""

    async def publish(
        self,
        row: KernelRow,
        saved: Saved,
        *,
        handle: Handle,
        template: Template,
        build: Build,
        memory: Mapping[str, Any],
        mapped: list[str],
        opened: list[Any],
        peers: list[Any],
        kernel_generation: int,
        name: str = "",
    ) -> Snapshot:
        """Make what was saved the newest snapshot of its kernel; its folder is gone afterwards.

        Raises:
            NoRoom: it does not fit; SnapshotUnusable, OSError: it cannot be kept.
        """

        def work() -> Snapshot:
            draft = self.store.draft(0)
            try:
                image = draft / "image"
                image.rmdir()
                saved.folder.rename(image)
                seen = [path for path in mapped if any(within(path, top) for top in saved.shown)]
                others = sorted(set(mapped).difference(seen))
                manifest = SnapshotManifest(
                    kernel_id=row.kernel_id,
                    name=name,
                    generation=max(
                        self.store.next_generation(row.kernel_id),
                        row.generation + 1,
                        row.highest + 1,
                    ),
                    parent=Ancestor(row.kernel_id, row.generation) if row.generation else None,
                    created_at=datetime.now(UTC).isoformat(),
                    owner_uid=os.geteuid(),
                    template=row.template,
                    template_digest=template_digest(template),
                    template_fields=template_fields(template),
                    runsc_build=handle.runsc_build,
                    cpu_features=build.processor,
                    plan_digest=saved.plan_digest,
                    workspace=handle.workspace,
                    workspace_mode=WorkspaceMode(handle.workspace_mode),
                    read_only=handle.workspace_mode == WorkspaceMode.READ_ONLY,
                    argv=row.argv,
                    kernel_name=row.kernel_name,
                    hostname="",
                    guest_key=row.guest_key,
                    kernel_generation=kernel_generation,
                    memory=memory,
                    environment=fingerprint.take(seen, ()),
                    outside=outside.take(handle.workspace, [*opened, *others], peers),
                )
                return self.store.publish(draft, manifest, later=True)
            except BaseException:
                self.store.discard(draft)
                raise

        snapshot = await self._made(work)
        if not is_complete(snapshot.manifest.files):
            self.incomplete[row.kernel_id, snapshot.manifest.generation] = time.monotonic()
        return snapshot

    async def complete(self, kernel_id: str, generation: int) -> None:
        """Compute the digests that ``publish`` has left to later; of one that is gone: none."""
        self.incomplete.pop((kernel_id, generation), None)

        def work() -> None:
            if snapshot := self.store.get(kernel_id, generation):
                self.store.complete(snapshot)

        try:
            await asyncio.to_thread(work)
        except (SandboxError, OSError) as exc:
            with contextlib.suppress(SandboxError, OSError):
                if await asyncio.to_thread(self.store.get, kernel_id, generation) is None:
                    return  # it was removed meanwhile
            log("digests not computed", level=logging.WARNING, error=exc)

    async def _made(self, work: Callable[[], Snapshot]) -> Snapshot:
        """Make a snapshot in a thread, which cannot be stopped; nothing stays if the caller leaves."""
        making = asyncio.ensure_future(asyncio.to_thread(work))
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            await run_to_end(self._undo(making), within_s=_MAKING_S, name="no snapshot")
            raise

    async def _undo(self, making: asyncio.Future[Snapshot]) -> None:
        with contextlib.suppress(SandboxError, OSError):
            manifest = (await making).manifest
            await self.drop(manifest.kernel_id, manifest.generation)

    async def require_usable(
        self, snapshot: Snapshot, template: Template | None, build: Build
    ) -> None:
        """Compare a snapshot, its content included, with what was written and with this machine.

        Raises:
            SnapshotUnusable: it is damaged, or does not fit this machine as it is now.
        """

        def work() -> None:
            manifest = snapshot.manifest
            if why := mismatch(manifest, self._facts(snapshot, template, build)):
                raise SnapshotUnusable(why)
            if why := self.store.verify(snapshot):
                raise SnapshotUnusable(f"its snapshot is damaged: {why}")

        await asyncio.to_thread(work)

    async def copy(self, snapshot: Snapshot, kernel_id: str) -> Snapshot:
        """Make a copy the first snapshot of another kernel. All or nothing.

        Raises NoRoom, OSError, and SnapshotUnusable when what is copied is damaged.
        """

        def work() -> Snapshot:
            draft = self.store.draft(snapshot.manifest.size_bytes)
            try:
                manifest = self.store.complete(snapshot).manifest
                for path in snapshot.image.iterdir():
                    shutil.copyfile(path, draft / "image" / path.name, follow_symlinks=False)
                keep_digests(draft, kept_digests(snapshot.folder) or {})
                copied = replace(
                    manifest,
                    kernel_id=kernel_id,
                    generation=1,
                    name="",
                    parent=Ancestor(manifest.kernel_id, manifest.generation),
                    created_at=datetime.now(UTC).isoformat(),
                )
                return self.store.publish_copy(draft, copied)
            except BaseException:
                self.store.discard(draft)
                raise

        return await self._made(work)

    async def drop(self, kernel_id: str, generation: int) -> None:
        """Remove one snapshot; what cannot be removed now goes with the next that is made."""
        try:
            await asyncio.to_thread(self.store.drop, kernel_id, generation)
        except (SandboxError, OSError) as exc:
            log("snapshot stays", level=logging.WARNING, error=exc)

    async def require_free(self, kernel_id: str, name: str) -> None:
        """Raise SnapshotUnusable for a name that cannot be, or is that of a snapshot already."""
        if await asyncio.to_thread(self.store.get, kernel_id, check_name(name)) is not None:
            raise SnapshotUnusable(f"kernel {kernel_id} has a checkpoint {name!r} already")

    @contextmanager
    def held(self, snapshot: Snapshot) -> Iterator[None]:
        """Keep a snapshot from being removed. Raises SnapshotUnusable: it is gone."""
        with self.store.hold(snapshot):
            yield

    async def answered(self, row: KernelRow) -> None:
        """Free what is older than the snapshot that the kernel has answered from."""
        try:
            await asyncio.to_thread(self.store.answered, row.kernel_id, row.generation)
        except (SandboxError, OSError) as exc:
            log("old snapshots stay", level=logging.WARNING, error=exc)

    async def memory(self, row: KernelRow) -> Mapping[str, Any]:
        """Give what the bridge knew of a sleeping kernel; nothing when that cannot be read here.

        Then the bridge's own record decides, and without one the guest's.
        """
        try:
            snapshot = await asyncio.to_thread(self.store.get, row.kernel_id, row.generation)
        except (SandboxError, OSError):
            return {}
        return snapshot.manifest.memory if snapshot is not None else {}

    async def missing(self, row: KernelRow) -> str | None:
        """Give why a sleeping kernel could not be woken with what lies here; None when it may be.

        Its content is not looked at.
        """
        try:
            await asyncio.to_thread(self._present, row)
        except (SandboxError, OSError) as exc:
            return str(exc)
        return None

    def _present(self, row: KernelRow) -> Snapshot:
        snapshot = self.store.get(row.kernel_id, row.generation)
        if snapshot is None:
            raise SnapshotUnusable(f"generation {row.generation} of its snapshot is gone")
        return snapshot

    async def list(self) -> list[Listed]:
        """Give all that are whole. Raises SnapshotUnusable, OSError."""
        return list(await asyncio.to_thread(self.store.list))

    async def forget(self, kernel_id: str) -> None:
        """Remove what a kernel that is no more had; what somebody has named stays."""

        def work() -> None:
            for listed in self.store.list(kernel_id):
                if not listed.name:
                    self.store.drop(kernel_id, listed.generation)

        for tries_left in reversed(range(_FORGET_TRIES)):
            try:
                await asyncio.to_thread(work)
                return
            except (SandboxError, OSError) as exc:
                if not (isinstance(exc, Busy) and tries_left):
                    log("snapshots stay", level=logging.WARNING, error=exc)
                    return
            await asyncio.sleep(_FORGET_PAUSE_S)  # a push has just begun, and is being ended

    async def reconcile(self, known: frozenset[str]) -> None:
        """Remove what crashes have left, and say what there is besides."""
        try:
            found = await asyncio.to_thread(self.store.reconcile, known)
        except (SandboxError, OSError) as exc:
            log("snapshots not reconciled", level=logging.ERROR, error=exc)
            return
        for removed in found.removed:
            log("snapshot removed", path=removed.folder, reason=removed.reason)
        for folder, why in found.unusable:
            log("snapshot unusable", level=logging.WARNING, path=folder, reason=why)
        with contextlib.suppress(SandboxError, OSError):  # then whoever needs them computes them
            for each in await self.list():
                if not is_complete(each.files):
                    self.incomplete[each.kernel_id, each.generation] = time.monotonic()
        for orphan in found.orphans:
            log("snapshot of no kernel", kernel_id=orphan.kernel_id, generation=orphan.generation)

    def _facts(self, snapshot: Snapshot, template: Template | None, build: Build) -> MachineFacts:
        manifest = snapshot.manifest
        workspace = manifest.workspace
        return MachineFacts(
            owner_uid=os.geteuid(),
            runsc_build=build.runtime,
            cpu_features=frozenset(build.processor),
            template_digest=None if template is None else template_digest(template),
            template_fields={} if template is None else template_fields(template),
            workspace_there=workspace is None or os.path.isdir(workspace),
            environment_change=changed(
                manifest.environment, kept_digests(snapshot.folder) or {}, self._contents.of
            ),
        )
