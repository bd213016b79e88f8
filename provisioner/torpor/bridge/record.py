"""What a bridge process leaves for the one that follows it after ``kill -9``.

Two small files per kernel in ``<runtime>/bridge``. The *marks* are memory shared with the file, so
a store survives the process: the number of the next message of each link channel that has not been
handed to libzmq yet. Acknowledgements that died on their way to the guest make it send such
messages again; the marks say which. The *state* is what the guest told once and will not repeat.

Marks file, native byte order (it never leaves the machine)::

    u64 magic | u64 device and inode of the FIFO from the guest | u64 next[5] | u64 subscribers | u64 busy
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torpor.link import Channel

_MAGIC = 0x544F52504D524B31
_FIFO, _NEXT, _SUBSCRIBERS = 1, 2, 2 + len(Channel)
_BUSY = _SUBSCRIBERS + 1
_WORDS = _BUSY + 1

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_FAILED = ctypes.c_void_p(-1).value


class Record:
    """The two files of one kernel. ``close`` keeps them, ``remove`` does not; both may repeat."""

    def __init__(self, folder: Path, kernel_id: str) -> None:
        """Open the files, creating what is missing.

        Raises:
            OSError: the folder is not writable.
        """
        self._marks_path, self._state_path = _paths(folder, kernel_id)
        fd = os.open(self._marks_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, _WORDS * 8)
            self._address = _map_shared(fd, _WORDS * 8)
        finally:
            os.close(fd)
        words = (ctypes.c_uint64 * _WORDS).from_address(self._address)
        self._words = memoryview(words).cast("B").cast("Q")

    def begin(self, fifo: os.stat_result, *, resume: bool, moved: bool = False) -> bool:
        """Bind the marks to a link; they start at zero unless ``resume`` finds its own.

        With ``moved`` whatever was there is its own: the same guest came back with other FIFOs.
        """
        identity = (fifo.st_dev << 40 ^ fifo.st_ino) & 0xFFFF_FFFF_FFFF_FFFF
        known = self._words[0] == _MAGIC and (moved or self._words[_FIFO] == identity)
        if resume and known:
            self._words[_FIFO] = identity
            return True
        for index in range(_WORDS):
            self._words[index] = 0
        self._words[_FIFO] = identity
        self._words[0] = _MAGIC
        return False

    def set_back(self, marks: Mapping[Channel, int]) -> None:
        """Have the next ``begin`` with ``moved`` find these."""
        for channel, number in marks.items():
            self._words[_NEXT + channel] = number
        self._words[0] = _MAGIC

    def handled(self, channel: int, next_seq: int) -> None:
        """Note that every message of ``channel`` before ``next_seq`` was handed to libzmq."""
        self._words[_NEXT + channel] = next_seq

    def remembered(self) -> dict[Channel, int]:
        """Give, per channel, the number last noted with ``handled``: what ``Link`` resumes from."""
        return {channel: self._words[_NEXT + channel] for channel in Channel}

    @property
    def subscribers(self) -> int:
        """How many iopub subscriptions there were last."""
        return self._words[_SUBSCRIBERS]

    @subscribers.setter
    def subscribers(self, count: int) -> None:
        self._words[_SUBSCRIBERS] = max(0, count)

    @property
    def busy(self) -> bool:
        """Whether the kernel last said that it was busy."""
        return bool(self._words[_BUSY])

    @busy.setter
    def busy(self, busy: bool) -> None:
        self._words[_BUSY] = busy

    def save_state(self, state: dict[str, Any]) -> None:
        """Replace the recorded state, whole or not at all."""
        fresh = self._state_path.with_suffix(".new")
        fresh.write_text(json.dumps(state))
        fresh.replace(self._state_path)

    def load_state(self) -> dict[str, Any]:
        """Give the recorded state, empty when there is none that can be read."""
        with contextlib.suppress(OSError, ValueError):
            state = json.loads(self._state_path.read_bytes())
            if isinstance(state, dict):
                return state
        return {}

    def close(self) -> None:
        """Release the memory; the files stay for a following process."""
        if self._address:
            self._words.release()  # whoever uses it from now on gets an error
            _libc.munmap(self._address, _WORDS * 8)
            self._address = 0

    def remove(self) -> None:
        """Close and delete."""
        self.close()
        _unlink(self._marks_path, self._state_path)


def remove_record(folder: Path, kernel_id: str) -> None:
    """Delete what a bridge process that is no more left of a kernel; fine when it left nothing."""
    _unlink(*_paths(folder, kernel_id))


def _map_shared(fd: int, size_bytes: int) -> int:
    """Give the address of the file's memory. Python's own ``mmap`` keeps a descriptor per map open."""
    prot, shared = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED
    address = _libc.mmap(None, size_bytes, prot, shared, fd, 0)
    if address is None or address == _FAILED:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(address)


def _paths(folder: Path, kernel_id: str) -> tuple[Path, Path]:
    return folder / f"{kernel_id}.marks", folder / f"{kernel_id}.json"


def _unlink(marks: Path, state: Path) -> None:
    for path in (marks, state, state.with_suffix(".new")):
        path.unlink(missing_ok=True)
