"""One HTTP/1.1 exchange over a Unix socket.

Enough for the control API, whose answers are JSON of a stated length. A general HTTP library costs
every short-lived client 0.2 s of processor time to import, and keeps connections that would have
to be closed on the event loop that opened them; here closing is one system call, so that a cancel
at any point leaves nothing open.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MAX_HEAD_BYTES = 32 << 10
MAX_BODY_BYTES = 64 << 20
_RETRY_S = 0.01


class NobodyListens(OSError):
    """There is no server at the socket: the request was not sent."""


class BadAnswer(Exception):
    """What came back is not HTTP as the control API speaks it."""


@dataclass(frozen=True, slots=True)
class Response:
    """A status code and the whole body."""

    status: int
    body: bytes


async def exchange(
    path: Path, method: str, target: str, *, headers: Mapping[str, str], body: bytes
) -> Response:
    """Send one request over a new connection and give the answer. Cancelling hangs up.

    Raises:
        NobodyListens: no server there.
        OSError: the connection cannot be made, or broke before the answer was complete.
        BadAnswer: the answer cannot be understood.
    """
    fields = {"Host": "torpord", "Connection": "close", "Content-Length": str(len(body)), **headers}
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {text}" for name, text in fields.items())]
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
        await _connect(sock, path)
        await loop.sock_sendall(sock, "\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        received = bytearray()
        while (end := received.find(b"\r\n\r\n")) < 0:
            if len(received) > MAX_HEAD_BYTES:
                raise BadAnswer(f"the head of the answer is longer than {MAX_HEAD_BYTES} bytes")
            received += await _more(sock)
        status, length = parse_head(bytes(received[:end]))
        del received[: end + 4]
        while len(received) < length:
            received += await _more(sock)
        return Response(status, bytes(received[:length]))


def parse_head(head: bytes) -> tuple[int, int]:
    """Give status code and body length of an answer. Raises BadAnswer."""
    first, *lines = head.decode("latin-1").split("\r\n")
    version, _, rest = first.partition(" ")
    code = rest[:3]
    if version not in ("HTTP/1.1", "HTTP/1.0") or not (code.isdecimal() and len(code) == 3):
        raise BadAnswer(f"the answer does not begin like one of HTTP: {first[:60]!r}")
    fields = {
        name.strip().lower(): text.strip() for name, _, text in (s.partition(":") for s in lines)
    }
    length = fields.get("content-length", "0" if code == "204" else "")
    if "transfer-encoding" in fields or not length.isdecimal():
        raise BadAnswer("the answer does not state its length")
    if int(length) > MAX_BODY_BYTES:
        raise BadAnswer(f"the answer is longer than {MAX_BODY_BYTES} bytes")
    return int(code), int(length)


async def _connect(sock: socket.socket, path: Path) -> None:
    """Connect; waits while the server's queue is full, which asyncio would take for success."""
    while True:
        try:
            sock.connect(str(path))
        except BlockingIOError:
            await asyncio.sleep(_RETRY_S)
        except (FileNotFoundError, ConnectionRefusedError) as exc:
            raise NobodyListens(*exc.args) from exc
        else:
            return


async def _more(sock: socket.socket) -> bytes:
    chunk = await asyncio.get_running_loop().sock_recv(sock, 1 << 16)
    if not chunk:
        raise ConnectionResetError("the server hung up before its answer was complete")
    return chunk
