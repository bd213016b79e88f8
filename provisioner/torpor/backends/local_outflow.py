"""Sends a file to the disk while it is still being written, so that a later fsync has little to wait for."""

from __future__ import annotations

import ctypes
import os
import threading
from pathlib import Path
from types import TracebackType

from torpor.golden.disk import open_plain
from torpor.golden.manifest import GoldenUnusable

_LOOK_S = 0.004
_SYNC_FILE_RANGE_WRITE = 2

_libc = ctypes.CDLL(None)


class Outflow:
    """Of one file, which need not be there yet, as long as the context lasts. What fails is left to fsync."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="outflow", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _exc: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._ended.set()

    def _run(self) -> None:
        fd = -1
        try:
            while not self._ended.wait(_LOOK_S):
                if fd < 0 and self._path.exists():
                    fd = open_plain(self._path, os.O_RDONLY)
                if fd >= 0:
                    _start_writing(fd)
        except (OSError, GoldenUnusable):
            pass
        finally:
            if fd >= 0:
                os.close(fd)


def _start_writing(fd: int) -> None:
    """sync_file_range(2) for all of a file: have what is dirty written, and do not wait for it."""
    _libc.sync_file_range(fd, ctypes.c_int64(0), ctypes.c_int64(0), _SYNC_FILE_RANGE_WRITE)
