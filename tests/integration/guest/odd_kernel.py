"""A kernel of another kind: PUB instead of XPUB, and odd in the way that argv[2] says.

``plain``: publishes status, has no heartbeat. ``mute``: never publishes. ``deaf``: opens its ports, never
answers. ``liar``: its shell port speaks no ZMTP. Built on pyzmq alone.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import socket
import sys
import time
from typing import Any

import zmq


def signed(key: bytes, kind: str, parent: bytes, content: dict[str, Any]) -> list[bytes]:
    header = {"msg_id": str(time.monotonic()), "msg_type": kind, "version": "5.3"}
    body = [json.dumps(header).encode(), parent, b"{}", json.dumps(content).encode()]
    signature = hmac.new(key, b"".join(body), hashlib.sha256).hexdigest()
    return [b"<IDS|MSG>", signature.encode(), *body]


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        place = json.load(file)
    way, key = sys.argv[2], place["key"].encode()
    context = zmq.Context()
    if way == "liar":
        server = socket.create_server((place["ip"], place["shell_port"]))
        while True:
            server.accept()[0].sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(64))

    def bound(kind: int, name: str) -> zmq.Socket[bytes]:
        opened = context.socket(kind)
        opened.bind(f"tcp://{place['ip']}:{place[name + '_port']}")
        return opened

    iopub = bound(zmq.PUB, "iopub")
    others = [bound(zmq.ROUTER, "control"), bound(zmq.ROUTER, "stdin")]
    shell = bound(zmq.ROUTER, "shell")
    while others:
        parts = shell.recv_multipart()
        at = parts.index(b"<IDS|MSG>")
        parent = parts[at + 2]
        if way == "plain":
            iopub.send_multipart(
                [b"status", *signed(key, "status", parent, {"execution_state": "busy"})]
            )
        if way != "deaf":
            reply = signed(key, "kernel_info_reply", parent, {"implementation": way})
            shell.send_multipart([*parts[:at], *reply])


main()
