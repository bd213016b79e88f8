"""The HTTP server on the Unix socket: every connection's user is checked before a byte is read."""

from __future__ import annotations

import logging
import os
import socket
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream

from torpor.daemon.logs import log
from torpor.daemon.processes import peer_of

MAX_BODY_BYTES = 8 << 20


class PeerCheckedServer(HTTPServer):
    """An HTTP server that serves its own user and root, and hangs up on everybody else."""

    def handle_stream(self, stream: IOStream, address: Any) -> None:
        try:
            peer = peer_of(stream.socket)
        except OSError:
            stream.close()
            return
        if peer.uid not in (os.geteuid(), 0):
            log("stranger refused", level=logging.WARNING, pid=peer.pid, uid=peer.uid)
            stream.close()
            return
        super().handle_stream(stream, address)


def serve(application: Any, sock: socket.socket) -> PeerCheckedServer:
    """Start answering on ``sock``; the caller stops the server."""
    server = PeerCheckedServer(application, max_body_size=MAX_BODY_BYTES)
    server.add_socket(sock)
    return server
