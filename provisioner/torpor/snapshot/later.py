"""Digests of a snapshot's large files that are computed after it was published.

A kernel's memory is in use until its snapshot is safe: on the disk, under its name. Its digests are for
those who read it later, and computing one of a bare kernel's memory takes as long as saving it. So
the manifest says ``null`` for the digest of a large file, and it is put beside the manifest a moment
later, or by the first who needs it::

    digests.json     {"pages.img": "<sha256>", ...}

Until then the file counts as sound unless somebody has touched it since, as far as the process that
published it can tell.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torpor.golden.build import IMAGE
from torpor.golden.disk import read_plain, write_plain
from torpor.golden.image import Digests
from torpor.golden.manifest import GoldenUnusable, ImageFile, is_digest
from torpor.snapshot.manifest import SnapshotManifest

DIGESTS = "digests.json"
LARGE_BYTES = 1 << 20
"""What is smaller is read at once: that takes less than a millisecond."""
_LIMIT_BYTES = 1 << 20


def is_complete(files: Mapping[str, ImageFile]) -> bool:
    """Whether the digest of each is known."""
    return all(file.sha256 is not None for file in files.values())


def with_kept(manifest: SnapshotManifest, folder: Path) -> SnapshotManifest:
    """Give ``manifest``, of the snapshot in ``folder``, with the digests that lie beside it."""
    if is_complete(manifest.files):
        return manifest
    try:
        kept = json.loads(read_plain(folder / DIGESTS, _LIMIT_BYTES))
    except (OSError, ValueError, RecursionError, GoldenUnusable):
        return manifest
    return _filled(manifest, kept if isinstance(kept, dict) else {})


def completed(manifest: SnapshotManifest, folder: Path, digests: Digests) -> SnapshotManifest:
    """Give ``manifest``, of the snapshot in ``folder``, with all digests. Reads what has none yet.

    Raises:
        FileNotFoundError: a file is gone.
        GoldenUnusable: one was touched since it was published here: what it held nobody knows.
        OSError: one cannot be read.
    """
    found: dict[str, str] = {}
    for name, file in manifest.files.items():
        if file.sha256 is None:
            path = folder / IMAGE / name
            digest = digests.of(path)
            if digests.touched(path):
                raise GoldenUnusable(f"{path} was changed after it was written")
            found[name] = digest
    return _filled(manifest, found)


def keep(folder: Path, files: Mapping[str, ImageFile]) -> None:
    """Put the digests of a complete manifest beside it; for one writer at a time. Raises OSError."""
    kept = {name: file.sha256 for name, file in files.items()}
    write_plain(folder / DIGESTS, json.dumps(kept, sort_keys=True).encode())


def agree(one: SnapshotManifest, other: SnapshotManifest) -> bool:
    """Whether both are of the same snapshot; a digest that is not known agrees with any."""
    known = {name: file.sha256 for name, file in other.files.items()}
    files = {name: file.sha256 for name, file in one.files.items()}
    return _filled(one, known) == _filled(other, files)


def _filled(manifest: SnapshotManifest, found: Mapping[str, object]) -> SnapshotManifest:
    files = {
        name: replace(file, sha256=sha256)
        if file.sha256 is None and is_digest(sha256 := found.get(name))
        else file
        for name, file in manifest.files.items()
    }
    return replace(manifest, files=files)
