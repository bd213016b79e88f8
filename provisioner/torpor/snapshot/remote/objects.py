"""The objects of one store, through fsspec: the only module that reaches it.

Every call ends: it is given ``Patience.timeout_s`` in a thread of its own, which is left behind where
a file system hangs, and is repeated after a while when it fails. Whatever a file system raises is
translated here.
"""

from __future__ import annotations

import errno
import itertools
import queue
import random
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NoReturn, TypeVar

from torpor.errors import ConfigError
from torpor.snapshot.errors import NoRoom, StoreUnavailable
from torpor.snapshot.remote.extra import stores_extra
from torpor.snapshot.remote.folder import remove_below, write_private
from torpor.snapshot.remote.transfer import Stop

with stores_extra():
    from fsspec import AbstractFileSystem
    from fsspec.implementations.local import LocalFileSystem

T = TypeVar("T")
_POLL_S = 0.1
_LONGEST_PAUSE_S = 10.0
_FULL = (errno.ENOSPC, errno.EDQUOT)
_ANSWERS = (FileNotFoundError, NotADirectoryError)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long each call may take, how often it is made, and the first pause between two."""

    timeout_s: float = 60.0
    tries: int = 4
    pause_s: float = 0.5


@dataclass(frozen=True, slots=True)
class Entry:
    """What a listing says of an object; ``state`` changes when its content does."""

    name: str
    size_bytes: int
    state: str


@dataclass(frozen=True, slots=True)
class Objects:
    """Objects below ``root`` by their names, which have slashes in them. Safe from any thread.

    Every method raises TransferCancelled when ``stop`` says so, StoreUnavailable when the store did
    not answer in time or failed as often as it was asked, and ConfigError when it refuses. ``shown``
    is the store for people, without anything secret.
    """

    fs: AbstractFileSystem
    root: str
    shown: str
    patience: Patience
    stop: Stop

    def until(self, stop: Stop) -> Objects:
        """Give the same objects for a transfer that ``stop`` ends."""
        return replace(self, stop=stop)

    def read(self, name: str, limit_bytes: int) -> bytes | None:
        """Give at most ``limit_bytes`` of an object; None when there is none."""
        path = self._path(name)

        def reading() -> bytes | None:
            try:
                return bytes(self.fs.cat_file(path, start=0, end=limit_bytes))
            except _ANSWERS:
                return None
            except OSError as exc:  # S3 finds no range in what is empty
                if exc.errno == errno.EINVAL and self.fs.size(path) == 0:
                    return b""
                raise

        return self._call(f"reading {name}", reading)

    def write(self, name: str, content: bytes) -> None:
        """Make an object, or replace it; nobody sees a part of it, unless the kind of store cannot.

        Raises NoRoom when the store is full.
        """
        path = self._path(name)
        put = write_private if isinstance(self.fs, LocalFileSystem) else self._put
        self._call(f"writing {name}", lambda: put(path, content))

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
            try:
                self.fs.rm_file(path)
            except _ANSWERS:
                return

        self._call(f"removing {name}", removing)

    def remove_all(self, folder: str) -> None:
        """Remove ``folder`` with all in it. None is fine."""
        path = self._path(folder)

        def removing() -> None:
            self.fs.invalidate_cache()
            if isinstance(self.fs, LocalFileSystem):
                remove_below(path, self.root)
                return
            try:
                self.fs.rm(path, recursive=True)
            except _ANSWERS:
                return

        self._call(f"removing {folder}", removing)

    def _put(self, path: str, content: bytes) -> None:
        if self.fs.async_impl:  # an object store: whole or not at all, and without folders
            try:
                self.fs.pipe_file(path, content)
            except FileNotFoundError as exc:
                raise _NoPlace(str(exc)) from exc
            return
        draft = f"{path}.{secrets.token_hex(4)}"
        self.fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        self.fs.pipe_file(draft, content)
        self.fs.mv(draft, path)

    def _list(self, folder: str) -> list[dict[str, Any]]:
        path = self._path(folder).rstrip("/") or "/"

        def listing() -> list[dict[str, Any]]:
            self.fs.invalidate_cache()
            try:
                rows = self.fs.ls(path, detail=True)
            except _ANSWERS:
                return []
            return [row for row in rows if row["name"].strip("/") != path.strip("/")]

        return self._call(f"listing {folder or 'it'}", listing)

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}" if name else self.root

    def _call(self, what: str, call: Callable[[], T]) -> T:
        for attempt in itertools.count(1):
            try:
                return self._once(call)
            except PermissionError as exc:
                self._refused(what, exc)
            except _NoPlace as exc:
                raise ConfigError(
                    f"there is no such place as {self.shown}",
                    hint="make it first, or correct the URL",
                ) from exc
            except OSError as exc:
                if exc.errno in _FULL:
                    raise NoRoom(
                        f"the store {self.shown} is full", hint="make room there, or drop snapshots"
                    ) from exc
                self._again(what, attempt, exc)
            except _Failed as exc:
                self._again(what, attempt, exc.cause)
        raise AssertionError("unreachable")

    def _refused(self, what: str, exc: Exception) -> NoReturn:
        raise ConfigError(
            f"the store {self.shown} refuses {what}: {_words(exc)}",
            hint="check its credentials and rights",
        ) from exc

    def _again(self, what: str, attempt: int, exc: Exception) -> None:
        if attempt >= self.patience.tries:
            raise StoreUnavailable(
                f"the store {self.shown} failed {attempt} times at {what}: {_words(exc)}",
                hint="nothing is lost; try again when it can be reached",
            ) from exc
        pause_s = min(self.patience.pause_s * 2 ** (attempt - 1), _LONGEST_PAUSE_S)
        until = time.monotonic() + pause_s * random.uniform(0.5, 1)
        while (left_s := until - time.monotonic()) > 0:
            self.stop.check()
            time.sleep(min(left_s, _POLL_S))

    def _once(self, call: Callable[[], T]) -> T:
        """Give what ``call`` gives, in time and unless stopped."""
        results: queue.SimpleQueue[Callable[[], T]] = queue.SimpleQueue()

        def run() -> None:
            try:
                result = call()
            except Exception as exc:  # what a file system raises can be anything
                failure = exc if isinstance(exc, OSError) else _Failed(exc)
                results.put(lambda: _raise(failure))
            else:
                results.put(lambda: result)

        self.stop.check()
        threading.Thread(target=run, name="torpor-store", daemon=True).start()
        until = time.monotonic() + self.patience.timeout_s
        while (left_s := until - time.monotonic()) > 0:
            try:
                given = results.get(timeout=min(left_s, _POLL_S))
            except queue.Empty:
                self.stop.check()
            else:
                return given()
        raise TimeoutError(f"no answer in {self.patience.timeout_s:g} s")


class _NoPlace(OSError):
    """Not even what a store is in is there."""


class _Failed(Exception):
    """A file system's own kind of failure."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


def _raise(exc: Exception) -> NoReturn:
    raise exc


def _entry(row: dict[str, Any]) -> Entry:
    state = [row.get(name) for name in ("ETag", "mtime", "LastModified", "created", "ino")]
    return Entry(_last(row["name"]), int(row["size"] or 0), repr(state))


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def _words(exc: Exception) -> str:
    return f"{type(exc).__name__} {exc}"[:300]
