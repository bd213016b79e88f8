"""The control socket: JSON lines from the daemon (``protocol``), served by the same loop.

Only processes of the same user, or root, get an answer (``SO_PEERCRED``). Input and output of a
connection are bounded; one that does not read its events loses events first and is cut off after
that.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torpor.bridge.protocol import MAX_LINE_BYTES
from torpor.bridge.reactor import READ, WRITE, Reactor

READ_BYTES = 65_536
EVENTS_BELOW_BYTES = 4 << 20  # with more than this unread, a connection gets no further events
CUT_OFF_BYTES = 32 << 20
MAX_CONNECTIONS = 64

Answer = Callable[[dict[str, Any]], None]
Serve = Callable[[Mapping[str, Any], Answer], None]
logger = logging.getLogger(__name__)


class Connection:
    """One peer. ``closed`` is final; answers that come later are dropped."""

    def __init__(self, reactor: Reactor, sock: socket.socket, serve: Serve) -> None:
        self._reactor = reactor
        self._sock = sock
        self._serve = serve
        self._in = bytearray()
        self._out = bytearray()
        self._writing = False
        self.closed = False
        self.on_close: Callable[[], None] | None = None
        reactor.watch(sock.fileno(), READ, self, self._readable)

    def crashed(self, exc: Exception) -> None:
        self.close()

    def publish(self, line: bytes) -> None:
        """Send an event, unless the peer is far behind."""
        if len(self._out) < EVENTS_BELOW_BYTES:
            self._write(line)

    def close(self) -> None:
        """Hang up; idempotent."""
        if self.closed:
            return
        self.closed = True
        self._reactor.unwatch(self._sock.fileno())
        self._sock.close()
        if self.on_close is not None:
            self.on_close()

    def _readable(self) -> None:
        try:
            chunk = self._sock.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if not chunk:
            self.close()
            return
        self._in += chunk
        if b"\n" not in chunk:
            if len(self._in) > MAX_LINE_BYTES:
                self.close()
            return
        *lines, rest = bytes(self._in).split(b"\n")
        self._in = bytearray(rest)
        for line in lines:
            if not self.closed:
                self._request(line)

    def _request(self, line: bytes) -> None:
        try:
            request = json.loads(line)
            ident = request["id"]
        except (ValueError, KeyError, TypeError, RecursionError):
            self.close()  # whoever does not speak the protocol cannot be answered in it
            return

        def answer(body: dict[str, Any]) -> None:
            self._write(json.dumps({"id": ident, **body}).encode() + b"\n")

        self._serve(request, answer)

    def _write(self, line: bytes) -> None:
        if self.closed:
            return
        self._out += line
        if len(self._out) > CUT_OFF_BYTES:
            self.close()
        elif not self._writing:
            self._flush()

    def _flush(self) -> None:
        try:
            sent = self._sock.send(self._out)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return
        del self._out[:sent]
        if bool(self._out) != self._writing:
            self._writing = bool(self._out)
            fd = self._sock.fileno()
            self._reactor.unwatch(fd)
            callback = self._writable if self._writing else self._readable
            events = READ | WRITE if self._writing else READ
            self._reactor.watch(fd, events, self, callback)

    def _writable(self) -> None:
        self._flush()
        if not self.closed:
            self._readable()


class ControlSocket:
    """The listening socket and its connections."""

    def __init__(self, reactor: Reactor, path: Path, serve: Serve) -> None:
        """Listen at ``path``, replacing a file there; the caller holds the lock that makes it ours.

        Raises:
            OSError: the folder is missing or not writable, or the path too long.
        """
        self._reactor = reactor
        self._path = path
        self._serve = serve
        self.connections: set[Connection] = set()
        self.on_change: Callable[[], None] = lambda: None
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        with contextlib.ExitStack() as undo:
            undo.callback(self._sock.close)
            path.unlink(missing_ok=True)
            previous = os.umask(0o177)
            try:
                self._sock.bind(str(path))
            finally:
                os.umask(previous)
            self._sock.listen(MAX_CONNECTIONS)
            reactor.watch(self._sock.fileno(), READ, self, self._accept)
            undo.pop_all()

    def publish(self, event: Mapping[str, Any]) -> None:
        """Send an event to every connection."""
        if not self.connections:
            return
        line = json.dumps(event).encode() + b"\n"
        for connection in list(self.connections):
            connection.publish(line)

    def close(self) -> None:
        """Stop listening, hang up on everybody, remove the file; idempotent."""
        if self._sock.fileno() < 0:
            return
        self._reactor.unwatch(self._sock.fileno())
        self._sock.close()
        self._path.unlink(missing_ok=True)
        for connection in list(self.connections):
            connection.close()

    def crashed(self, exc: Exception) -> None:
        """Part of ``Owner``: accepting failed once; the next peer may fare better."""

    def _accept(self) -> None:
        try:
            peer, _ = self._sock.accept()
        except OSError:
            return
        if len(self.connections) >= MAX_CONNECTIONS or not _is_ours(peer):
            peer.close()
            return
        peer.setblocking(False)
        connection = Connection(self._reactor, peer, self._serve)
        self.connections.add(connection)
        connection.on_close = lambda: self._gone(connection)
        self.on_change()

    def _gone(self, connection: Connection) -> None:
        self.connections.discard(connection)
        self.on_change()


def _is_ours(peer: socket.socket) -> bool:
    size = struct.calcsize("3i")
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    _, uid, _ = struct.unpack("3i", credentials)
    return uid in (0, os.getuid())
