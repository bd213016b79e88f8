"""Bringing one snapshot back: checked chunk by chunk, then adopted as it was, or not there at all."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torpor.golden.build import IMAGE
from torpor.golden.disk import open_plain
from torpor.snapshot.build import Snapshot
from torpor.snapshot.environment import keep_digests
from torpor.snapshot.errors import NoRoom, SnapshotUnusable
from torpor.snapshot.manifest import SnapshotManifest, snapshot_bytes
from torpor.snapshot.remote.catalogue import Whole, upload_name
from torpor.snapshot.remote.chunks import Chunk, chunk_name, places, unpack
from torpor.snapshot.remote.header import damaged
from torpor.snapshot.remote.objects import Objects
from torpor.snapshot.remote.seal import Place
from torpor.snapshot.remote.transfer import Progress, in_threads
from torpor.snapshot.store import SnapshotStore


@dataclass(frozen=True, slots=True)
class Fetch:
    """One attempt. Whatever is raised, nothing of it is left in ``local``.

    ``mend``: what is there already is damaged and gives way.
    """

    objects: Objects
    whole: Whole
    local: SnapshotStore
    threads: int
    progress: Callable[[Progress], None] | None = None
    mend: bool = False

    def run(self) -> Snapshot:
        """Fetch it; see ``RemoteStore.fetch``."""
        if not self.mend and (there := self._there()):
            return there
        manifest = self.whole.manifest
        with _room_on_disk(), ExitStack() as undo:
            draft = self.local.draft(manifest.size_bytes + len(snapshot_bytes(manifest)))
            undo.callback(self.local.discard, draft)
            self._fill(draft / IMAGE)
            keep_digests(draft, self.whole.environment)
            self.objects.stop.check()
            if self.mend:
                return self.local.mend(draft, manifest)
            try:
                return self.local.adopt(draft, manifest)
            except SnapshotUnusable:
                if there := self._there():  # somebody else has fetched it meanwhile
                    return there
                raise

    def _there(self) -> Snapshot | None:
        """Give the snapshot where it is here already. Raises SnapshotUnusable for another one."""
        manifest = self.whole.manifest
        there = self.local.get(manifest.kernel_id, manifest.generation)
        if there and there.manifest != manifest:
            raise SnapshotUnusable(
                f"there is another generation {manifest.generation} of kernel "
                f"{manifest.kernel_id} here already",
                hint="keep the one that is wanted, and remove the other with `torpor snapshots rm "
                "--disk` or `--store`",
            )
        return there

    def _fill(self, image: Path) -> None:
        manifest, done_bytes, wire_bytes = self.whole.manifest, 0, 0
        with ExitStack() as stack:
            fds = {}
            for name, file in manifest.files.items():
                fds[name] = open_plain(image / name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
                stack.callback(os.close, fds[name])
                os.truncate(fds[name], file.size_bytes)
            for place, got_bytes in in_threads(self._jobs(fds), self.threads, self.objects.stop):
                done_bytes += place.size_bytes
                wire_bytes += got_bytes
                if self.progress:
                    self.progress(Progress(done_bytes, manifest.size_bytes, wire_bytes))

    def _jobs(self, fds: dict[str, int]) -> Iterator[Callable[[], tuple[Place, int]]]:
        chunk_bytes = self.whole.header.chunk_bytes
        for place in places(self.whole.manifest.files, chunk_bytes):
            chunk = self.whole.table[place.file][place.index]
            offset = place.index * chunk_bytes
            yield partial(self._got, place, chunk, fds[place.file], offset)

    def _got(self, place: Place, chunk: Chunk | None, fd: int, offset: int) -> tuple[Place, int]:
        if chunk is None:
            return place, 0  # the file has a hole there
        rest = memoryview(self._raw(place, chunk))
        while rest:
            written = os.pwrite(fd, rest, offset)
            rest, offset = rest[written:], offset + written
        return place, chunk.stored_bytes

    def _raw(self, place: Place, chunk: Chunk) -> bytes:
        name = f"{upload_name(self.whole.header)}/{chunk_name(place, chunk)}"
        words = f"chunk {place.index + 1} of {place.total} of {_words(self.whole.manifest, place)}"
        closed = self.objects.read(name, chunk.stored_bytes + 1)
        if closed is None:
            raise damaged(f"{words} is missing in the store")
        try:
            if len(closed) != chunk.stored_bytes:
                raise ValueError(f"it has not the {chunk.stored_bytes} bytes it had")
            raw = unpack(self.whole.seal.open_chunk(closed, place), place.size_bytes)
            if self.whole.seal.mark(place, hashlib.sha256(raw).digest()) != chunk.mark:
                raise ValueError("its content is another")
        except ValueError as exc:
            raise damaged(f"{words} is damaged in the store: {exc}") from exc
        return raw


@contextmanager
def _room_on_disk() -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise NoRoom(
            "the disk became full while a snapshot was fetched",
            hint="make room on it, or drop snapshots that are not needed",
        ) from exc


def _words(manifest: SnapshotManifest, place: Place) -> str:
    return f"{place.file} of generation {manifest.generation} of kernel {manifest.kernel_id}"
