"""The objects of one store, through fsspec: the only module that reaches it."""

from __future__ import annotations

import errno
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torpor.snapshot.remote.calls import Calls, NoPlace
from torpor.snapshot.remote.extra import stores_extra
from torpor.snapshot.remote.folder import remove_below, write_private
from torpor.snapshot.remote.lines import Lines
from torpor.snapshot.remote.transfer import Stop

with stores_extra():
    from fsspec import AbstractFileSystem

_ANSWERS = (FileNotFoundError, NotADirectoryError)


@dataclass(frozen=True, slots=True)
class Entry:
    """What a listing says of an object; ``state`` changes when its content does."""

    name: str
    size_bytes: int
    state: str


@dataclass(frozen=True, slots=True)
class Objects:
    """Objects below ``root`` by their names, which have slashes in them. Safe from any thread.

    Every method raises as ``Calls.make``.
    """

    lines: Lines
    root: str
    calls: Calls

    @property
    def shown(self) -> str:
        return self.calls.shown

    @property
    def stop(self) -> Stop:
        return self.calls.stop

    def until(self, stop: Stop) -> Objects:
        """Give the same objects for a transfer that ``stop`` ends."""
        return replace(self, calls=replace(self.calls, stop=stop))

    def read(self, name: str, limit_bytes: int) -> bytes | None:
        """Give at most ``limit_bytes`` of an object; None when there is none."""
        path = self._path(name)

        def reading() -> bytes | None:
            with self.lines.lend() as fs:
                try:
                    return bytes(fs.cat_file(path, start=0, end=limit_bytes))
                except _ANSWERS:
                    return None
                except OSError as exc:  # S3 finds no range in what is empty
                    if exc.errno == errno.EINVAL and fs.size(path) == 0:
                        return b""
                    raise

        return self.calls.make(f"reading {name}", reading)

    def write(self, name: str, content: bytes) -> None:
        """Make an object, or replace it; nobody sees a part of it, unless the kind of store cannot.

        Raises NoRoom when the store is full.
        """
        path = self._path(name)
        put = write_private if self.lines.is_folder else self._put
        self.calls.make(f"writing {name}", lambda: put(path, content))

    def below(self, folder: str) -> list[Entry]:
        """Give the objects right in ``folder``; none when there is no such folder."""
        return [_entry(row) for row in self._list(folder) if row["type"] == "file"]

    def folders(self, folder: str = "") -> list[str]:
        """Give the names of the folders right in ``folder``."""
        return sorted(_last(row["name"]) for row in self._list(folder) if row["type"] != "file")

    def remove(self, name: str) -> None:
        """Remove an object. None is fine."""
        path = self._path(name)

        def removing() -> None:
            with self.lines.lend() as fs, _gone_is_fine(fs, path):
                fs.rm_file(path)

        self.calls.make(f"removing {name}", removing)

    def remove_all(self, folder: str) -> None:
        """Remove ``folder`` with all in it. None is fine."""
        path = self._path(folder)

        def removing() -> None:
            if self.lines.is_folder:
                remove_below(path, self.root)
                return
            with self.lines.lend() as fs, _gone_is_fine(fs, path):
                fs.invalidate_cache()
                fs.rm(path, recursive=True)

        self.calls.make(f"removing {folder}", removing)

    def _put(self, path: str, content: bytes) -> None:
        with self.lines.lend() as fs:
            if fs.async_impl:  # an object store: whole or not at all, and without folders
                try:
                    fs.pipe_file(path, content)
                except FileNotFoundError as exc:
                    raise NoPlace(str(exc)) from exc
                return
            draft = f"{path}.{secrets.token_hex(4)}"
            fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            fs.pipe_file(draft, content)
            fs.mv(draft, path)

    def _list(self, folder: str) -> list[dict[str, Any]]:
        path = self._path(folder).rstrip("/") or "/"

        def listing() -> list[dict[str, Any]]:
            with self.lines.lend() as fs:
                fs.invalidate_cache()
                try:
                    rows = fs.ls(path, detail=True)
                except _ANSWERS:
                    return []
            return [row for row in rows if row["name"].strip("/") != path.strip("/")]

        return self.calls.make(f"listing {folder or 'it'}", listing)

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}" if name else self.root


@contextmanager
def _gone_is_fine(fs: AbstractFileSystem, path: str) -> Iterator[None]:
    """Whatever a file system says when it is to remove what is not there."""
    try:
        yield
    except _ANSWERS:
        return
    except Exception:
        fs.invalidate_cache()
        if fs.exists(path):
            raise


def _entry(row: dict[str, Any]) -> Entry:
    state = [row.get(name) for name in ("ETag", "mtime", "LastModified", "created", "ino")]
    return Entry(_last(row["name"]), int(row["size"] or 0), repr(state))


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]
