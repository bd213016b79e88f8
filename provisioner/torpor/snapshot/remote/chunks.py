"""Images in chunks: which there are, what each is called in the store, and what the manifest keeps.

What is sealed in the object ``manifest`` is zstd of one JSON object::

    {"manifest": "<manifest.json as it was on disk>",
     "chunks": {"pages.img": [["<mark>", <bytes in the store>], null, ...], ...},
     "environment": {"/usr/lib/...": "<sha256>", ...}}

null is a chunk of zeros: it is not stored. For ``environment`` see torpor.snapshot.environment.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torpor.golden.manifest import ImageFile
from torpor.snapshot.build import MANIFEST_LIMIT_BYTES
from torpor.snapshot.environment import parse_digests
from torpor.snapshot.remote.extra import stores_extra
from torpor.snapshot.remote.seal import Place

with stores_extra():
    import zstandard

LEVEL = 3
_BODY_LIMIT_BYTES = 4 * MANIFEST_LIMIT_BYTES
_NAME = re.compile(r"(\d{3})-(\d{8})-([0-9a-f]{32})-(\d{1,12})")
_MARK = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Chunk:
    """A chunk that is in the store: its mark, and how many bytes it takes there."""

    mark: str
    stored_bytes: int


Table = Mapping[str, list[Chunk | None]]


def places(files: Mapping[str, ImageFile], chunk_bytes: int) -> Iterator[Place]:
    """Give the place of every chunk, file after file."""
    for number, name in enumerate(sorted(files)):
        size_bytes = files[name].size_bytes
        total = -(-size_bytes // chunk_bytes)
        for index in range(total):
            here_bytes = min(chunk_bytes, size_bytes - index * chunk_bytes)
            yield Place(name, number, index, total, here_bytes)


def chunk_name(place: Place, chunk: Chunk) -> str:
    """Give what the object is called: where it belongs, its mark, and how large it is when whole."""
    return f"{place.file_number:03}-{place.index:08}-{chunk.mark}-{chunk.stored_bytes}"


def parse_chunk_name(name: str) -> tuple[int, int, Chunk] | None:
    """Give the file's number, the index and the chunk; None for another name."""
    found = _NAME.fullmatch(name)
    if not found:
        return None
    return int(found[1]), int(found[2]), Chunk(found[3], int(found[4]))


def pack(raw: bytes) -> bytes:
    """Compress. Safe from any thread."""
    return zstandard.ZstdCompressor(level=LEVEL).compress(raw)


def unpack(packed: bytes, size_bytes: int) -> bytes:
    """Give the ``size_bytes`` that were compressed. Raises ValueError when it is anything else."""
    try:
        if zstandard.frame_content_size(packed) != size_bytes:
            raise ValueError("it is of another size")
        raw = zstandard.ZstdDecompressor().decompress(packed, max_output_size=size_bytes)
    except zstandard.ZstdError as exc:
        raise ValueError("it cannot be decompressed") from exc
    return raw


@dataclass(frozen=True, slots=True)
class Body:
    """What is sealed: the manifest, its chunks, and digests of what is mapped into the kernel."""

    manifest: bytes
    table: Table
    environment: Mapping[str, str] = field(default_factory=dict)


def body_bytes(body: Body) -> bytes:
    """Give what is to be sealed in the object ``manifest``."""
    chunks = {
        name: [each and [each.mark, each.stored_bytes] for each in row]
        for name, row in body.table.items()
    }
    whole = {
        "manifest": body.manifest.decode("ascii"),
        "chunks": chunks,
        "environment": dict(body.environment),
    }
    return pack(json.dumps(whole).encode())


def parse_body(packed: bytes) -> Body:
    """Read what ``body_bytes`` gave. Raises ValueError for anything else."""
    size_bytes = _frame_bytes(packed)
    if not 0 <= size_bytes <= _BODY_LIMIT_BYTES:
        raise ValueError("it is too large")
    body = json.loads(unpack(packed, size_bytes))
    if not isinstance(body, dict) or not isinstance(body.get("manifest"), str):
        raise ValueError("there is no manifest in it")
    rows = body.get("chunks")
    if not isinstance(rows, dict) or not all(isinstance(row, list) for row in rows.values()):
        raise ValueError("there are no chunks in it")
    table = {name: [_chunk(each) for each in row] for name, row in rows.items()}
    environment = parse_digests(body.get("environment", {}))
    return Body(body["manifest"].encode(), table, environment)


def check_table(table: Table, files: Mapping[str, ImageFile], chunk_bytes: int) -> None:
    """Raise ValueError unless ``table`` has exactly the chunks of ``files``."""
    totals = {name: -(-file.size_bytes // chunk_bytes) for name, file in files.items()}
    if {name: len(row) for name, row in table.items()} != totals:
        raise ValueError("its chunks are not those of its files")


def _frame_bytes(packed: bytes) -> int:
    try:
        return zstandard.frame_content_size(packed)
    except zstandard.ZstdError as exc:
        raise ValueError("it cannot be decompressed") from exc


def _chunk(row: Any) -> Chunk | None:
    if row is None:
        return None
    if not isinstance(row, list) or len(row) != 2 or type(row[1]) is not int or row[1] < 0:
        raise ValueError("the entry of a chunk is damaged")
    if not isinstance(row[0], str) or not _MARK.fullmatch(row[0]):
        raise ValueError("the mark of a chunk is damaged")
    return Chunk(row[0], row[1])
