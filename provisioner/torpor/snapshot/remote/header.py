"""The part of a stored snapshot that everybody may read: what it is, and which key opens the rest.

The first two lines of the objects ``header`` and ``manifest``::

    torpor snapshot 1
    {"chunk_bytes": ..., "content": ..., "generation": ..., ...}

In ``manifest`` the sealed description follows, and is bound to these lines as they are.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from torpor.golden import fields as read
from torpor.snapshot.errors import SnapshotUnusable

FORMAT = 1
_WORDS = b"torpor snapshot "
_LINE_LIMIT_BYTES = 4096
_HEX = re.compile(r"[0-9a-f]*")
_LEAST_CHUNK_BYTES = 1 << 12
_MOST_CHUNK_BYTES = 1 << 28
_DAMAGED_HINT = (
    "if it is whole on a disk: remove it with `torpor snapshots rm --store` and push it again"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """One upload. ``upload``: its random name. ``touched_s``: when it began or went on last.

    ``content``: of what, as far as those who have the key can tell. ``key_id``: of the master key,
    "" where nothing is encrypted; ``salt`` and ``wrapped`` are what it opens to this upload's own
    key, in hex digits.
    """

    kernel_id: str
    generation: int
    upload: str
    touched_s: int
    content: str
    chunk_bytes: int
    key_id: str = ""
    salt: str = ""
    wrapped: str = ""

    def encoded(self) -> bytes:
        """Give the two lines."""
        body = {name: getattr(self, name) for name in sorted(self.__slots__)}
        line = json.dumps(body, separators=(",", ":")).encode()
        return b"%s%d\n%s\n" % (_WORDS, FORMAT, line)


def check_chunk_bytes(chunk_bytes: int) -> int:
    """Give ``chunk_bytes`` back. Raises ValueError for a size no chunk can have."""
    if not _LEAST_CHUNK_BYTES <= chunk_bytes <= _MOST_CHUNK_BYTES:
        raise ValueError(f"chunks cannot have {chunk_bytes} bytes")
    return chunk_bytes


def split_header(raw: bytes, where: str) -> tuple[Header, bytes, bytes]:
    """Give the header, its lines as they are, and what follows them.

    Raises SnapshotUnusable, naming ``where``: damaged, or written by another version.
    """
    lines = raw[:_LINE_LIMIT_BYTES].split(b"\n", 2)
    if len(lines) != 3 or not lines[0].startswith(_WORDS):
        raise damaged(f"{where} is no snapshot of Torpor, or damaged")
    if lines[0] != b"%s%d" % (_WORDS, FORMAT):
        raise SnapshotUnusable(
            f"{where} has the format {lines[0][len(_WORDS) :]!r:.20}, this Torpor knows {FORMAT}",
            hint="fetch it with the Torpor that pushed it; it is kept",
        )
    head_bytes = len(lines[0]) + len(lines[1]) + 2
    try:
        header = _header(json.loads(lines[1]))
    except (ValueError, RecursionError) as exc:
        raise damaged(f"the header of {where} is damaged: {exc}") from exc
    return header, raw[:head_bytes], raw[head_bytes:]


def damaged(message: str) -> SnapshotUnusable:
    """Give the error for what was changed or lost in the store."""
    return SnapshotUnusable(message, hint=_DAMAGED_HINT)


def _header(body: Any) -> Header:
    if not isinstance(body, dict):
        raise ValueError("it is no JSON object")
    return Header(
        kernel_id=read.text(body, "kernel_id"),
        generation=read.count(body, "generation"),
        upload=_hex(body, "upload"),
        touched_s=read.count(body, "touched_s"),
        content=_hex(body, "content"),
        chunk_bytes=check_chunk_bytes(read.count(body, "chunk_bytes")),
        key_id=_hex(body, "key_id"),
        salt=_hex(body, "salt"),
        wrapped=_hex(body, "wrapped"),
    )


def _hex(body: dict[str, Any], name: str) -> str:
    text = read.text(body, name)
    if not _HEX.fullmatch(text) or len(text) % 2 or len(text) > 256:
        raise ValueError(f"{name} has no hex digits")
    return text
