"""Whether the files that are mapped into a saved kernel are the same now, here or on another machine.

A golden never leaves its machine, so there an inode counts. A snapshot moves, and an environment is
copied or installed once more: then a file is the same when it has the size and the content it had.
Digests of the content are taken when a snapshot is pushed, not when a kernel falls asleep, and are
kept beside its manifest::

    environment.json     {"/usr/lib/.../libc.so.6": "<sha256>", ...}

Read back only where size, mtime and inode do not say it already. Without a digest (the snapshot was
never pushed) a file whose size and mtime are the same counts as a copy, and one with another mtime
as changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torpor.golden.disk import read_plain, write_plain
from torpor.golden.fingerprint import Fingerprint
from torpor.golden.image import Identity, identity
from torpor.golden.manifest import GoldenUnusable
from torpor.golden.seen import MISSING, Seen, stat_or_none
from torpor.snapshot.build import Snapshot

DIGESTS = "environment.json"
_LIMIT_BYTES = 16 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")
ContentOf = Callable[[str], str]


class Contents:
    """SHA-256 of files by path, each read once as long as it stays as it is. Safe from any thread."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Identity, str]] = {}

    def of(self, path: str) -> str:
        """Give the digest of the file at ``path``, links followed. Raises OSError."""
        with open(path, "rb") as file:
            now = identity(os.fstat(file.fileno()))
            known = self._known.get(path)
            if known and known[0] == now:
                return known[1]
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            if identity(os.fstat(file.fileno())) == now:
                self._known[path] = (now, sha256)
            return sha256


def changed(then: Fingerprint, digests: Mapping[str, str], content_of: ContentOf) -> str | None:
    """Give the first file of ``then`` that is another one now, in words; None when there is none."""
    for path, seen in _files(then):
        if why := _difference(seen, path, digests.get(path), content_of):
            return f"{path} {why}"
    return None


def take_digests(snapshot: Snapshot, content_of: ContentOf) -> dict[str, str]:
    """Give the digests of a snapshot's environment; take and keep them if that was not done yet.

    Only of files that are still those that were mapped. Hold the snapshot meanwhile. On a disk that
    takes nothing they are only given.
    """
    known = kept_digests(snapshot.folder)
    if known is not None:
        return known
    found = {}
    for path, seen in _files(snapshot.manifest.environment):
        with suppress(OSError):
            if _same_file(seen, path):
                sha256 = content_of(path)
                if _same_file(seen, path):
                    found[path] = sha256
    with suppress(OSError, GoldenUnusable):
        keep_digests(snapshot.folder, found)
    return found


def kept_digests(folder: Path) -> dict[str, str] | None:
    """Give what ``keep_digests`` left; None when there is nothing that can be read."""
    try:
        return parse_digests(json.loads(read_plain(folder / DIGESTS, _LIMIT_BYTES)))
    except (OSError, ValueError, RecursionError, GoldenUnusable):
        return None


def keep_digests(folder: Path, digests: Mapping[str, str]) -> None:
    """Write ``digests`` beside the manifest in ``folder``, whole or not at all; none: nothing."""
    if digests:
        write_plain(folder / DIGESTS, json.dumps(digests, sort_keys=True).encode())


def parse_digests(body: Any) -> dict[str, str]:
    """Give ``body`` back. Raises ValueError unless it maps full paths to digests."""
    if not isinstance(body, dict) or not all(
        path.startswith("/") and isinstance(sha256, str) and _SHA256.fullmatch(sha256)
        for path, sha256 in body.items()
    ):
        raise ValueError("the digests of the environment are damaged")
    return body


def _files(then: Fingerprint) -> Iterator[tuple[str, Seen]]:
    for group in then.files:
        for seen in group.files:
            yield os.path.join(group.folder, seen.name), seen


def _difference(seen: Seen, path: str, sha256: str | None, content_of: ContentOf) -> str | None:
    now = stat_or_none(path)
    if now is None:
        return None if seen.inode == MISSING else "is gone"
    if seen.inode == MISSING:
        return "is new"
    same_time = now.st_mtime_ns == seen.mtime_ns
    if now.st_size == seen.size_bytes and not (same_time and now.st_ino == seen.inode):
        if sha256 is None:
            return None if same_time else "has changed since"
        try:
            return None if content_of(path) == sha256 else "has another content now"
        except OSError as exc:
            return f"cannot be read: {exc.strerror}"
    return None if now.st_size == seen.size_bytes else "has changed since"


def _same_file(seen: Seen, path: str) -> bool:
    now = os.stat(path)
    return (now.st_size, now.st_mtime_ns, now.st_ino) == (
        seen.size_bytes,
        seen.mtime_ns,
        seen.inode,
    )
