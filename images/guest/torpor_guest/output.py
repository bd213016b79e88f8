"""The last lines that a kernel process wrote to its stdout and stderr."""

import os

from torpor_guest.loop import READ, Loop

_READ_BYTES = 65536


class Output:
    """Drains one pipe for ever, so that nobody blocks on it, and keeps the last ``limit_bytes``.

    Owns ``fd`` and closes it when the last writer has gone, which may be long after the kernel.
    """

    def __init__(self, loop: Loop, fd: int, limit_bytes: int) -> None:
        self._loop = loop
        self._fd = fd
        self._limit = limit_bytes
        self._kept = b""
        loop.watch(fd, READ, self._ready)

    def tail(self) -> str:
        """Give the kept text, with what is in the pipe now; whole lines unless one is longer."""
        while self._fd >= 0 and self._read():
            pass
        text = self._kept
        if len(text) > self._limit:
            text = text.partition(b"\n")[2] or text[-self._limit :]
        return text.decode("utf-8", "replace")

    def _ready(self, _events: int) -> None:
        self._read()

    def _read(self) -> bool:
        try:
            chunk = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return False
        if not chunk:
            self._loop.forget(self._fd)
            os.close(self._fd)
            self._fd = -1
            return False
        # One byte more than shown tells whether the first line is cut.
        self._kept = (self._kept + chunk)[-self._limit - 1 :]
        return True
