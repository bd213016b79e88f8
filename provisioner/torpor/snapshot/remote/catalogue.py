"""What is in a store::

<url>/<kernel_id>/<generation>/
    manifest                         written last: with it the snapshot is whole
    chunks/<upload>/header           written first: what a later attempt goes on with
    chunks/<upload>/<name>           see chunks.py
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from functools import partial

from torpor.snapshot.build import MANIFEST_LIMIT_BYTES
from torpor.snapshot.errors import SnapshotUnusable
from torpor.snapshot.manifest import SnapshotManifest, is_kernel_id, parse_snapshot
from torpor.snapshot.remote.chunks import (
    Chunk,
    Table,
    check_table,
    parse_body,
    parse_chunk_name,
)
from torpor.snapshot.remote.header import Header, damaged, split_header
from torpor.snapshot.remote.keys import MasterKey
from torpor.snapshot.remote.objects import Entry, Objects
from torpor.snapshot.remote.retention import Stored
from torpor.snapshot.remote.seal import Seal, seal_of
from torpor.snapshot.remote.transfer import in_threads

MANIFEST = "manifest"
HEADER = "header"
_GENERATION = re.compile(r"[1-9][0-9]{0,8}")
_UPLOAD = re.compile(r"[0-9a-f]{32}")
_HEADER_LIMIT_BYTES = 1 << 16
_READS = 5
Known = MutableMapping[tuple[str, int], tuple[Entry, Stored]]


@dataclass(frozen=True, slots=True)
class Whole:
    """A snapshot that is all there, and what opens it."""

    header: Header
    manifest: SnapshotManifest
    table: Table
    seal: Seal
    environment: Mapping[str, str]

    @property
    def stored(self) -> Stored:
        """What lists show of it."""
        return stored(self.manifest, self.table)


@dataclass(frozen=True, slots=True)
class RemoteLook:
    """All that is whole, by kernel and generation; and what cannot be used, with the reason."""

    stored: tuple[Stored, ...]
    unusable: tuple[tuple[str, int, SnapshotUnusable], ...]


def stored(manifest: SnapshotManifest, table: Table) -> Stored:
    """Give what lists show. Pure."""
    return Stored(
        kernel_id=manifest.kernel_id,
        generation=manifest.generation,
        name=manifest.name,
        parent=manifest.parent,
        created_at=manifest.created_at,
        created_s=manifest.created_s,
        template=manifest.template,
        kernel_name=manifest.kernel_name,
        size_bytes=manifest.size_bytes,
        stored_bytes=sum(each.stored_bytes for row in table.values() for each in row if each),
    )


def folder_name(kernel_id: str, generation: int) -> str:
    """Give where that snapshot is or would be."""
    return f"{kernel_id}/{generation}"


def new_upload(now_s: float) -> str:
    """Give a new upload's name, which nobody else has, and which says when it began."""
    return f"{int(now_s):012x}{secrets.token_hex(10)}"


def upload_began_s(upload: str) -> int | None:
    """Give when an upload began, in seconds since 1970; None for what is none."""
    return int(upload[:12], 16) if _UPLOAD.fullmatch(upload) else None


def upload_name(header: Header) -> str:
    """Give where the chunks of that upload are."""
    return f"{folder_name(header.kernel_id, header.generation)}/chunks/{header.upload}"


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Reads what is in a store. Raises as ``Objects``, too."""

    objects: Objects
    key: MasterKey | None

    def kernel_ids(self) -> list[str]:
        """Give the kernels there is anything of, sorted."""
        return [name for name in self.objects.folders() if is_kernel_id(name)]

    def generations(self, kernel_id: str) -> list[int]:
        """Give the generations of a kernel there is anything of, ascending."""
        names = self.objects.folders(kernel_id)
        return sorted(int(name) for name in names if _GENERATION.fullmatch(name))

    def manifest_entry(self, kernel_id: str, generation: int) -> Entry | None:
        """Give what is listed of a manifest; None where the snapshot is not whole."""
        for entry in self.objects.below(folder_name(kernel_id, generation)):
            if entry.name == MANIFEST:
                return entry
        return None

    def whole(self, kernel_id: str, generation: int) -> Whole | None:
        """Give a snapshot; None when there is none that is whole.

        A manifest that somebody replaces is read in parts of both where a store reads in steps (FTP asks for
        the size first): what cannot be used counts only once it reads the same again.

        Raises SnapshotUnusable: tampered with, sealed with another key, not ours, too new.
        """
        name = f"{folder_name(kernel_id, generation)}/{MANIFEST}"
        limit_bytes = MANIFEST_LIMIT_BYTES + _HEADER_LIMIT_BYTES
        raw = self.objects.read(name, limit_bytes)
        for reads in range(_READS):
            if raw is None:
                return None
            try:
                return self._opened(kernel_id, generation, raw)
            except SnapshotUnusable:
                before, raw = raw, self.objects.read(name, limit_bytes)
                if raw == before or reads == _READS - 1:
                    raise
        return None

    def _opened(self, kernel_id: str, generation: int, raw: bytes) -> Whole:
        where = f"the manifest of generation {generation} of kernel {kernel_id} in the store"
        header, head, closed = split_header(raw, where)
        _require_identity(header, kernel_id, generation, where)
        seal = seal_of(header, self.key)
        try:
            body = parse_body(seal.open_manifest(closed, head))
            manifest = parse_snapshot(body.manifest, owner_uid=os.geteuid())
            check_table(body.table, manifest.files, header.chunk_bytes)
        except (ValueError, RecursionError) as exc:
            raise damaged(f"{where} is damaged: {exc}") from exc
        _require_identity(manifest, kernel_id, generation, where)
        return Whole(header, manifest, body.table, seal, body.environment)

    def chunks(self, header: Header) -> dict[tuple[int, int, str], Chunk]:
        """Give the chunks of an upload that are whole as lists have it, by file, index and mark."""
        found = {}
        for entry in self.objects.below(upload_name(header)):
            parsed = parse_chunk_name(entry.name)
            if parsed and parsed[2].stored_bytes == entry.size_bytes:
                found[parsed[0], parsed[1], parsed[2].mark] = parsed[2]
        return found

    def lacking(self, header: Header, table: Table) -> set[Chunk]:
        """Give the chunks of a snapshot that the store does not list, or not as large as they are."""
        wanted = {each for row in table.values() for each in row if each}
        return wanted.difference(self.chunks(header).values()) if wanted else wanted

    def uploads(self, kernel_id: str, generation: int) -> dict[str, Header | None]:
        """Give the uploads of a generation by name, whole or not; None without a usable header."""
        folder = f"{folder_name(kernel_id, generation)}/chunks"
        found: dict[str, Header | None] = {}
        for upload in self.objects.folders(folder):
            found[upload] = None
            raw = self.objects.read(f"{folder}/{upload}/{HEADER}", _HEADER_LIMIT_BYTES)
            try:
                header, _, _ = split_header(raw or b"", upload)
            except SnapshotUnusable:
                continue
            if (header.kernel_id, header.generation, header.upload) == (
                kernel_id,
                generation,
                upload,
            ):
                found[upload] = header
        return found

    def look_at(self, kernel_id: str) -> RemoteLook:
        """Give all there is of one kernel."""
        return self._look(kernel_id, {})

    def look(self, known: Known, threads: int) -> RemoteLook:
        """Give all there is. What is in ``known`` and has not changed is not read again."""

        def looking(kernel_id: str) -> Callable[[], RemoteLook]:
            return partial(self._look, kernel_id, known)

        looks = list(in_threads(map(looking, self.kernel_ids()), threads, self.objects.stop))
        found = RemoteLook(
            tuple(each for look in looks for each in look.stored),
            tuple(each for look in looks for each in look.unusable),
        )
        there = {(each.kernel_id, each.generation) for each in found.stored}
        for gone in [each for each in tuple(known) if each not in there]:
            known.pop(gone, None)
        return found

    def _look(self, kernel_id: str, known: Known) -> RemoteLook:
        found, unusable = [], []
        for generation in self.generations(kernel_id):
            entry = self.manifest_entry(kernel_id, generation)
            if entry is None:
                continue
            last = known.get((kernel_id, generation))
            if last and last[0] == entry:
                found.append(last[1])
                continue
            try:
                whole = self.whole(kernel_id, generation)
            except SnapshotUnusable as exc:
                unusable.append((kernel_id, generation, exc))
                continue
            if whole:
                known[kernel_id, generation] = (entry, whole.stored)
                found.append(whole.stored)
        return RemoteLook(tuple(found), tuple(unusable))


def _require_identity(
    it: Header | SnapshotManifest, kernel_id: str, generation: int, where: str
) -> None:
    if (it.kernel_id, it.generation) != (kernel_id, generation):
        raise damaged(f"{where} is that of another snapshot")
