"""That a store in a folder is the one it was: a disk that is not mounted leaves an empty folder.

A file ``torpor-store`` in it has a random word, which this machine remembers. Stores that are
reached over a network need none: they do not answer when they are not there.
"""

from __future__ import annotations

import json
import re
import secrets
import threading
from contextlib import suppress
from pathlib import Path

from torpor.golden.disk import read_plain, write_plain
from torpor.golden.manifest import GoldenUnusable
from torpor.snapshot.errors import StoreUnavailable
from torpor.snapshot.remote.folder import write_new
from torpor.snapshot.remote.objects import Objects

NAME = "torpor-store"
_LIMIT_BYTES = 1 << 20
_WORD = re.compile(r"[0-9a-f]{32}")


class Marks:
    """The marks of the folders that were stores of this machine; they are kept in ``path``.

    Safe from any thread. A file that cannot be read is none: the next mark that is seen counts.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def of(self, root: str) -> str | None:
        """Give the mark of the store in ``root``; None for one that was never used."""
        with self._lock:
            return self._read().get(root)

    def keep(self, root: str, mark: str) -> None:
        """Remember it. Raises OSError."""
        with self._lock:
            write_plain(self._path, json.dumps(self._read() | {root: mark}).encode())

    def _read(self) -> dict[str, str]:
        with suppress(OSError, ValueError, GoldenUnusable):
            body = json.loads(read_plain(self._path, _LIMIT_BYTES))
            if isinstance(body, dict):
                return {str(root): str(mark) for root, mark in body.items()}
        return {}


def require_marked(objects: Objects, marks: Marks, *, writing: bool) -> None:
    """Raise StoreUnavailable unless the folder is the store that it was.

    One that was never used is marked before the first ``writing``, and made if need be. One that is
    marked already is another machine's, too.
    """
    root, wanted = objects.root, marks.of(objects.root)
    seen = _seen(objects)
    if wanted is None and seen is None and writing:
        fresh = secrets.token_hex(16)
        with suppress(FileExistsError):  # another machine was quicker
            objects.calls.make(
                f"writing {NAME}", lambda: write_new(f"{root}/{NAME}", fresh.encode())
            )
        seen = _seen(objects)
    if seen is None and (writing or wanted is not None):
        raise StoreUnavailable(
            f"the folder {root} is not the store it was: the file {NAME} is not in it",
            hint="is it mounted? If it was emptied on purpose and is to begin anew: "
            f"echo {wanted or secrets.token_hex(16)} > {root}/{NAME}",
        )
    if wanted is None and seen is not None:
        marks.keep(root, seen)
    elif seen != wanted:
        raise StoreUnavailable(
            f"the folder {root} is another store than it was: {NAME} in it is {seen}, not {wanted}",
            hint="is the right disk mounted there? If this is the one that is wanted: "
            f"echo {wanted} > {root}/{NAME}",
        )


def _seen(objects: Objects) -> str | None:
    raw = objects.read(NAME, 64)
    word = (raw or b"").decode(errors="replace").strip()
    return word if _WORD.fullmatch(word) else None
