"""The file systems that one store is reached through: one for all calls, or one for each at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torpor.snapshot.remote.extra import stores_extra

with stores_extra():
    from fsspec import AbstractFileSystem
    from fsspec.implementations.local import LocalFileSystem
    from fsspec.implementations.memory import MemoryFileSystem


class Lines:
    """Gives file systems that ``make`` makes, the first of them at once. Raises as that.

    What fsspec calls synchronous (FTP, SFTP, SMB) often has one connection, which two threads cannot
    use at once, and which nobody can use after a call that failed half-way or hangs: each such call
    has one of its own, which serves the next one only if all went well.
    """

    def __init__(self, make: Callable[[], AbstractFileSystem]) -> None:
        self._make = make
        self._first = make()
        self._idle: list[AbstractFileSystem] = []
        self._lock = threading.Lock()
        self.is_folder = isinstance(self._first, LocalFileSystem)
        self.is_shared = self._first.async_impl or isinstance(
            self._first, (LocalFileSystem, MemoryFileSystem)
        )
        if not self.is_shared:
            self._idle.append(self._first)

    @contextmanager
    def lend(self) -> Iterator[AbstractFileSystem]:
        """Give one for a call; another one is made where all are in use. Raises as ``make``."""
        if self.is_shared:
            yield self._first
            return
        with self._lock:
            fs = self._idle.pop() if self._idle else None
        if fs is None:
            fs = self._make()
        yield fs  # nothing is undone where this raises: then it goes
        with self._lock:
            self._idle.append(fs)
