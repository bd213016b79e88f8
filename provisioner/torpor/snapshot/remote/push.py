"""Sending one snapshot: what is there already is not sent again, and the manifest goes last."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby

from torpor.golden.disk import open_plain
from torpor.snapshot.build import DAMAGED_HINT, Snapshot
from torpor.snapshot.environment import ContentOf, take_digests
from torpor.snapshot.errors import SnapshotUnusable, StoreUnavailable, as_unusable
from torpor.snapshot.manifest import SnapshotManifest, snapshot_bytes
from torpor.snapshot.remote.catalogue import (
    HEADER,
    MANIFEST,
    Catalogue,
    Whole,
    folder_name,
    new_upload,
    stored,
    upload_name,
)
from torpor.snapshot.remote.chunks import (
    Body,
    Chunk,
    body_bytes,
    chunk_name,
    pack,
    places,
)
from torpor.snapshot.remote.header import Header
from torpor.snapshot.remote.objects import Objects
from torpor.snapshot.remote.retention import Stored
from torpor.snapshot.remote.seal import Place, Seal, new_seal, seal_of
from torpor.snapshot.remote.transfer import Progress, in_threads

Sent = tuple[Place, Chunk | None, int]


@dataclass(slots=True)
class Push:
    """One attempt. Whatever is raised, lists show the store as it was; what was sent stays there."""

    catalogue: Catalogue
    snapshot: Snapshot
    chunk_bytes: int
    threads: int
    now_s: float
    content_of: ContentOf
    progress: Callable[[Progress], None] | None = None
    _there: dict[tuple[int, int, str], Chunk] = field(default_factory=dict)

    def run(self) -> Stored:
        """Send it; see ``RemoteStore.push``. The snapshot is held meanwhile."""
        manifest = self._manifest
        if known := self._same():
            if not self.catalogue.lacking(known.header, known.table):
                return known.stored
        else:
            self._require_newest()
        header, seal = self._mended(known) or self._resumed() or self._begun()
        self._objects.write(f"{upload_name(header)}/{HEADER}", header.encoded())
        table = self._send(header, seal)
        self._require_sent(header, table)
        other = self._same()  # our upload may be somebody else's, too: see sweep.py
        if other and not self.catalogue.lacking(other.header, other.table):
            return other.stored
        head = header.encoded()
        environment = take_digests(self.snapshot, self.content_of)
        whole = Body(snapshot_bytes(manifest), table, environment)
        body = seal.close_manifest(body_bytes(whole), head)
        folder = folder_name(manifest.kernel_id, manifest.generation)
        self._objects.write(f"{folder}/{MANIFEST}", head + body)
        return stored(manifest, table)

    @property
    def _manifest(self) -> SnapshotManifest:
        return self.snapshot.manifest

    @property
    def _objects(self) -> Objects:
        return self.catalogue.objects

    def _require_newest(self) -> None:
        """Raise SnapshotUnusable when somebody has gone on with this kernel elsewhere."""
        kernel_id, ours = self._manifest.kernel_id, self._manifest.generation
        for generation in reversed(self.catalogue.generations(kernel_id)):
            if generation <= ours or self._manifest.name:
                return
            if self.catalogue.manifest_entry(kernel_id, generation):
                raise SnapshotUnusable(
                    f"the store has generation {generation} of kernel {kernel_id} already, and "
                    f"{ours} is older",
                    hint="fetch the newer one, or drop it in the store first; only named "
                    "checkpoints may be pushed later",
                )

    def _resumed(self) -> tuple[Header, Seal] | None:
        """Give the upload that went on last, of those that are of the same snapshot."""
        raw = snapshot_bytes(self._manifest)
        found = self.catalogue.uploads(self._manifest.kernel_id, self._manifest.generation)
        headers = [each for each in found.values() if each and each.chunk_bytes == self.chunk_bytes]
        for header in sorted(headers, key=lambda it: it.touched_s, reverse=True):
            try:
                seal = seal_of(header, self.catalogue.key)
            except SnapshotUnusable:
                continue
            if seal.content(raw) == header.content:
                self._there = self.catalogue.chunks(header)
                return replace(header, touched_s=int(self.now_s)), seal
        return None

    def _begun(self) -> tuple[Header, Seal]:
        header = Header(
            kernel_id=self._manifest.kernel_id,
            generation=self._manifest.generation,
            upload=new_upload(self.now_s),
            touched_s=int(self.now_s),
            content="",
            chunk_bytes=self.chunk_bytes,
        )
        header, seal = new_seal(header, self.catalogue.key)
        return replace(header, content=seal.content(snapshot_bytes(self._manifest))), seal

    def _send(self, header: Header, seal: Seal) -> dict[str, list[Chunk | None]]:
        table: dict[str, list[Chunk | None]] = {name: [] for name in self._manifest.files}
        done_bytes = wire_bytes = 0
        for place, chunk, sent_bytes in in_threads(
            self._jobs(header, seal), self.threads, self._objects.stop
        ):
            table[place.file].append(chunk)
            done_bytes += place.size_bytes
            wire_bytes += sent_bytes
            if self.progress:
                self.progress(Progress(done_bytes, self._manifest.size_bytes, wire_bytes))
        return table

    def _jobs(self, header: Header, seal: Seal) -> Iterator[Callable[[], Sent]]:
        """Read the image once; raise SnapshotUnusable after a file that is not what was published."""
        zeros, folder = bytes(self.chunk_bytes), upload_name(header)
        every = places(self._manifest.files, self.chunk_bytes)
        for name, rows in groupby(every, key=lambda place: place.file):
            path = self.snapshot.image / name
            with as_unusable():
                fd = open_plain(path, os.O_RDONLY)
            digest = hashlib.sha256()
            with os.fdopen(fd, "rb", buffering=0) as file:
                for place in rows:
                    raw = file.read(place.size_bytes)
                    digest.update(raw)
                    empty = raw == (zeros if len(raw) == len(zeros) else bytes(len(raw)))
                    yield partial(self._sent, folder, seal, place, None if empty else raw)
                rest = file.read(1)
            if rest or digest.hexdigest() != self._manifest.files[name].sha256:
                raise SnapshotUnusable(
                    f"{path} has another content than was written",
                    hint=DAMAGED_HINT,
                )

    def _sent(self, folder: str, seal: Seal, place: Place, raw: bytes | None) -> Sent:
        if raw is None:
            return place, None, 0
        mark = seal.mark(place, hashlib.sha256(raw).digest())
        there = self._there.get((place.file_number, place.index, mark))
        if there:
            return place, there, 0
        closed = seal.close_chunk(pack(raw), place)
        chunk = Chunk(mark, len(closed))
        self._objects.write(f"{folder}/{chunk_name(place, chunk)}", closed)
        return place, chunk, len(closed)

    def _require_sent(self, header: Header, table: dict[str, list[Chunk | None]]) -> None:
        """Raise StoreUnavailable unless the store lists every chunk, as large as it is."""
        if lost := self.catalogue.lacking(header, table):
            sent = len({each for row in table.values() for each in row if each})
            raise StoreUnavailable(
                f"the store {self._objects.shown} has lost {len(lost)} of {sent} chunks",
                hint="push again: only these are sent",
            )

    def _same(self) -> Whole | None:
        """Give what the store has of that generation. Raises SnapshotUnusable for another one."""
        manifest = self._manifest
        known = self.catalogue.whole(manifest.kernel_id, manifest.generation)
        if known and known.manifest != manifest:
            raise SnapshotUnusable(
                f"the store has another generation {manifest.generation} of kernel "
                f"{manifest.kernel_id} already",
                hint="the kernel went on elsewhere: keep the one that is wanted, and remove the "
                "other with `torpor snapshots rm --disk` or `--store`",
            )
        return known

    def _mended(self, known: Whole | None) -> tuple[Header, Seal] | None:
        """Give the upload of a snapshot of which the store has lost chunks: only these are sent."""
        if known is None or known.header.chunk_bytes != self.chunk_bytes:
            return None
        self._there = self.catalogue.chunks(known.header)
        return replace(known.header, touched_s=int(self.now_s)), known.seal
