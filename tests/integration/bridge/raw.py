"""Clients made of bare ZMQ sockets, which can do what no good client does."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import zmq
from jupyter_client.session import Session

SUPPLIED = {"transport": "tcp", "ip": "127.0.0.1", "signature_scheme": "hmac-sha256"}
KEY = "a client's key"


def client_side(**changes: Any) -> dict[str, Any]:
    """Give the client part of an ``open`` request with free ports."""
    ports = dict.fromkeys(("shell", "iopub", "stdin", "control", "hb"), 0)
    return {**SUPPLIED, "ports": ports, "key": KEY, **changes}


class Raw:
    """Sockets to one kernel's endpoints; ``session`` signs as a good client would."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], ports: dict[str, int]) -> None:
        self.context = context
        self.ports = ports
        self.session = Session(key=KEY.encode())
        self.session.digest_history_size = 0

    def dealer(self, channel: str = "shell", identity: bytes = b"") -> zmq.Socket[bytes]:
        socket = self.context.socket(zmq.DEALER)
        socket.linger = 0
        socket.rcvtimeo = 5_000
        if identity:
            socket.identity = identity
        socket.connect(f"tcp://127.0.0.1:{self.ports[channel]}")
        return socket

    def listener(self, topic: bytes = b"", **options: int) -> zmq.Socket[bytes]:
        socket = self.context.socket(zmq.SUB)
        socket.linger = 0
        socket.rcvtimeo = 5_000
        for name, value in options.items():
            setattr(socket, name, value)
        socket.subscribe(topic)
        socket.connect(f"tcp://127.0.0.1:{self.ports['iopub']}")
        return socket

    def request(self, kind: str = "execute_request", **content: Any) -> list[bytes]:
        """Give a signed message, as a DEALER sends it."""
        return self.session.serialize(self.session.msg(kind, content))

    def read(self, parts: list[bytes]) -> dict[str, Any]:
        """Verify and parse a message as a good client does (topics and identities are dropped)."""
        _, rest = self.session.feed_identities(parts)
        return self.session.deserialize(rest)


def published(listener: zmq.Socket[bytes]) -> list[bytes]:
    """Give the next message that is no welcome: those for others come to everybody."""
    while b'"iopub_welcome"' in (parts := listener.recv_multipart())[-4]:
        pass
    return parts


def number_of(parts: list[bytes]) -> int:
    """Give the number that ``echo_guest.output`` put in."""
    return int(json.loads(parts[-1])["text"].rstrip("."))


@contextlib.contextmanager
def zmq_context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    """Give a context that takes its sockets with it."""
    context = zmq.Context()
    sockets = []
    make = context.socket

    def remembering(*args: Any) -> zmq.Socket[bytes]:
        sockets.append(make(*args))
        return sockets[-1]

    context.socket = remembering  # type: ignore[method-assign, assignment]
    try:
        yield context
    finally:
        for socket in sockets:
            socket.close(0)
        context.destroy(0)
