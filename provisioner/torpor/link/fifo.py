"""A byte stream over two FIFOs that both sides hold open read-write.

Because each side holds both ends, the death of the other side is silence and back-pressure, never EOF
or SIGPIPE, and what it had written stays readable by whoever opens the FIFOs next. Any stream with the
same five methods can carry a link.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Sequence

from .types import Buffer

_PIPE_BYTES = 1 << 20  # what an unprivileged user may ask for (fs.pipe-max-size)
_FLAGS = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC
_IOV_MAX = 1024


class FifoStream:
    """Non-blocking reads and writes on two descriptors, which it owns."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        """Take over two descriptors and make them non-blocking."""
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._room = bytearray()
        for fd in (read_fd, write_fd):
            os.set_blocking(fd, False)
            # not a pipe here (gVisor, a socket), or over the user's quota: only slower
            with contextlib.suppress(OSError):
                fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    @classmethod
    def open(
        cls, read_path: str | os.PathLike[str], write_path: str | os.PathLike[str]
    ) -> FifoStream:
        """Open two existing FIFOs.

        Raises:
            OSError: one cannot be opened, or is not a FIFO. Nothing stays open.
        """
        with contextlib.ExitStack() as undo:
            fds = []
            for path in (read_path, write_path):
                fd = os.open(path, _FLAGS)
                undo.callback(os.close, fd)
                if not stat.S_ISFIFO(os.fstat(fd).st_mode):
                    raise OSError(f"{os.fspath(path)} is not a FIFO")
                fds.append(fd)
            stream = cls(*fds)
            undo.pop_all()
        return stream

    def read(self, max_bytes: int = 1 << 18) -> bytes:
        """Give up to ``max_bytes``; ``b""`` means that nothing is there now.

        Raises:
            EOFError: nothing will come ever again (a pipe or socket that the other side has closed;
                never two FIFOs that are open as ``open`` does it).
        """
        # Not os.read: it would have that much memory mapped, cut to size and unmapped each time, which
        # costs a program in gVisor more than to read a message.
        if len(self._room) < max_bytes:
            self._room = bytearray(max_bytes)
        room = memoryview(self._room)[:max_bytes]
        try:
            count = os.readv(self._read_fd, [room])
        except BlockingIOError:
            return b""
        if not count:
            raise EOFError("the other side has closed the stream")
        return room[:count].tobytes()

    def write(self, buffers: Sequence[Buffer]) -> int:
        """Write what fits now, in order; give the number of bytes (0: full)."""
        try:
            return os.writev(self._write_fd, buffers[:_IOV_MAX])
        except BlockingIOError:
            return 0

    def read_fileno(self) -> int:
        """Give the descriptor to wait on for ``read``; -1 when closed."""
        return self._read_fd

    def write_fileno(self) -> int:
        """Give the descriptor to wait on for ``write``; -1 when closed."""
        return self._write_fd

    def close(self) -> None:
        """Close both descriptors; twice is fine."""
        self._room = bytearray()
        for fd in {self._read_fd, self._write_fd} - {-1}:
            os.close(fd)
        self._read_fd = self._write_fd = -1
