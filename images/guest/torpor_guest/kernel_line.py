"""The guest's private line into a kernel that was started to be cloned (see ``kernel_claim``).

One JSON object a line, each answered by one, in order, over a socket pair.
"""

from __future__ import annotations

import _socket
import os
from collections import deque

from torpor_guest.lean_json import dumps, loads
from torpor_guest.loop import READ, Loop

TYPE_CHECKING = False  # as mypy knows it; typing itself takes 20 ms to import
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Answer = Callable[[dict[str, Any]], None]

_READ_BYTES = 1 << 16
_MAX_LINE_BYTES = 16 << 20


def line_pair() -> tuple[int, int]:
    """Give the two ends of a line: ours and the kernel's. Neither is inherited by itself."""
    ours, theirs = _socket.socketpair()
    return ours.detach(), theirs.detach()


class KernelLine:
    """Asks the code in the kernel. Answers come through callbacks; a kernel that has hung up, or
    says what is no JSON object, gives ``{"ok": False, "error": str}`` to whoever waits or asks."""

    def __init__(self, loop: Loop, fd: int) -> None:
        self._loop = loop
        self._fd = fd
        self._read = bytearray()
        self._waiting: deque[Answer] = deque()
        self._ended = ""
        loop.watch(fd, READ, self._readable)

    def ask(self, request: dict[str, Any], answer: Answer) -> None:
        """Send a request. Requests are small and the kernel reads: this does not wait."""
        if not self._ended:
            try:
                line = bytes(dumps(request)) + b"\n"
                while line:
                    line = line[os.write(self._fd, line) :]
            except OSError as exc:
                self._end(f"the kernel's line is broken: {exc.strerror}")
        if self._ended:
            answer({"ok": False, "error": self._ended})
        else:
            self._waiting.append(answer)

    def close(self) -> None:
        """Hang up. Twice is fine."""
        self._end("the line was closed")

    def _readable(self, _events: int) -> None:
        try:
            received = os.read(self._fd, _READ_BYTES)
        except OSError:
            received = b""
        if not received:
            self._end("the kernel has closed its line")
            return
        self._read += received
        if len(self._read) > _MAX_LINE_BYTES:
            self._end("the kernel said too much")
        while not self._ended and (at := self._read.find(b"\n")) >= 0:
            line = bytes(self._read[:at])
            del self._read[: at + 1]
            self._told(line)

    def _told(self, line: bytes) -> None:
        try:
            body = loads(line)
        except ValueError:
            body = None
        if not isinstance(body, dict) or not self._waiting:
            self._end("the kernel said what nobody asked for")
            return
        self._waiting.popleft()(body)

    def _end(self, why: str) -> None:
        if self._ended:
            return
        self._ended = why
        self._loop.forget(self._fd)
        os.close(self._fd)
        while self._waiting:
            self._waiting.popleft()({"ok": False, "error": why})
