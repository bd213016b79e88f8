"""A byte stream over two FIFOs that both sides hold open read-write.

Because each side holds both ends, the death of the other side is silence and back-pressure, never EOF
or SIGPIPE, and what it had written stays readable by whoever opens the FIFOs next. Any stream with the
same five methods can carry a link.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Sequence
from pathlib import Path

from .types import Buffer

_PIPE_BYTES = 1 << 20  # what an unprivileged user may ask for (fs.pipe-max-size)
_FLAGS = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC
_IOV_MAX = 1024


class FifoStream:
    """Non-blocking reads and writes on two descriptors, which it owns."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._read_fd = read_fd
        self._write_fd = write_fd
        for fd in (read_fd, write_fd):
            os.set_blocking(fd, False)
            # not a pipe here (gVisor, a socket), or over the user's quota: only slower
            with contextlib.suppress(OSError):
                fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    @classmethod
    def open(cls, read_path: str | Path, write_path: str | Path) -> FifoStream:
        """Open two existing FIFOs; on failure nothing stays open."""
        read_fd = os.open(read_path, _FLAGS)
        try:
            write_fd = os.open(write_path, _FLAGS)
        except BaseException:
            os.close(read_fd)
            raise
        return cls(read_fd, write_fd)

    def read(self, max_bytes: int = 1 << 18) -> bytes:
        """Give up to ``max_bytes``; ``b""`` means that nothing is there now."""
        try:
            return os.read(self._read_fd, max_bytes)
        except BlockingIOError:
            return b""

    def write(self, buffers: Sequence[Buffer]) -> int:
        """Write what fits now, in order; give the number of bytes (0: full)."""
        try:
            return os.writev(self._write_fd, buffers[:_IOV_MAX])
        except BlockingIOError:
            return 0

    def read_fileno(self) -> int:
        return self._read_fd

    def write_fileno(self) -> int:
        return self._write_fd

    def close(self) -> None:
        """Close both descriptors; twice is fine."""
        for fd in {self._read_fd, self._write_fd} - {-1}:
            os.close(fd)
        self._read_fd = self._write_fd = -1
