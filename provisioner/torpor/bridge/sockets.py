"""ZMQ sockets of the client side: made, bound, and used with the least Python per frame.

pyzmq's own ``send_multipart`` and ``recv_multipart`` cost 10 and 7 µs for the seven small frames of
a Jupyter message; the backend methods they end in cost 1.5 and 4, so those are called directly
(measured with pyzmq 27 on Python 3.11).
"""

from __future__ import annotations

import errno
import socket as unix
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import zmq
from zmq.backend import Socket as BackendSocket

from torpor.bridge.protocol import ClientSide, RequestError
from torpor.bridge.signing import Part

MAX_SOCKETS = 8_192  # five per kernel: 300 kernels use 1,500
MAX_MESSAGE_BYTES = 1 << 30
SHARE_BYTES = 8_192  # below this a copy is cheaper than pyzmq's bookkeeping for a shared frame
QUEUED_MESSAGES = 10_000  # for each client and endpoint; ``inflight`` bounds the bytes
UNREAD_MESSAGES = 16  # from each client; more stay in the client, which is told by back-pressure
FREE_POLL_S = 0.000_5
FREE_LOOKS = 1000  # counted, not timed: libzmq's thread must have had the processor meanwhile
STUCK_AFTER_MS = 60_000  # a TCP client whose receive window stays shut this long is disconnected

_DONTWAIT = int(zmq.DONTWAIT)
_MORE = int(zmq.DONTWAIT | zmq.SNDMORE)
_POLLIN = int(zmq.POLLIN)
_EVENTS = zmq.SocketOption.EVENTS
_send: Any = BackendSocket.send
_recv: Any = BackendSocket.recv
_get: Any = BackendSocket.get

Socket = zmq.Socket[bytes]


def new_context() -> zmq.Context[Socket]:
    """Make the process's only context. Its one I/O thread also does CURVE's arithmetic."""
    context: zmq.Context[Socket] = zmq.Context(io_threads=1)
    context.set(zmq.MAX_SOCKETS, MAX_SOCKETS)
    return context


def open_sockets(
    context: zmq.Context[Socket], client: ClientSide
) -> tuple[dict[str, Socket], dict[str, int]]:
    """Bind the five endpoints and give them with their real ports: all or none.

    Raises:
        RequestError: ``bind``, with the address that was refused. Nothing stays bound.
    """
    sockets: dict[str, Socket] = {}
    ports: dict[str, int] = {}
    try:
        for channel, port in client.ports.items():
            sockets[channel] = _configured(context, channel, client)
            ports[channel] = _bind(sockets[channel], client, channel, port)
    except BaseException:
        close_sockets(sockets.values(), client, ports)
        raise
    return sockets, ports


def close_sockets(
    sockets: Iterable[Socket], client: ClientSide, ports: Mapping[str, int], linger_ms: int = 0
) -> None:
    """Close, giving libzmq ``linger_ms`` to send what it holds, and make the addresses free.

    libzmq stops listening in its own thread, within a millisecond or so; for tcp that is waited for,
    as somebody may bind the same ports at once. The files of ipc are ours to remove.
    """
    for socket in sockets:
        socket.close(linger_ms)
    left = FREE_LOOKS
    for channel, port in ports.items():
        if client.transport == "ipc":
            Path(client.address(channel, port).removeprefix("ipc://")).unlink(missing_ok=True)
            continue
        while not _is_free(client.ip, port) and left > 0:
            time.sleep(FREE_POLL_S)
            left -= 1


def _is_free(ip: str, port: int) -> bool:
    family = unix.AF_INET6 if ":" in ip else unix.AF_INET
    with unix.socket(family, unix.SOCK_STREAM) as probe:
        probe.setsockopt(unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
        try:
            probe.bind(("" if ip == "*" else ip, port))
        except OSError as exc:
            return exc.errno != errno.EADDRINUSE
    return True


def _configured(context: zmq.Context[Socket], channel: str, client: ClientSide) -> Socket:
    socket = context.socket(zmq.XPUB if channel == "iopub" else zmq.ROUTER)
    socket.linger = 0
    socket.copy_threshold = 0
    socket.set(zmq.SNDHWM, QUEUED_MESSAGES)
    socket.set(zmq.RCVHWM, UNREAD_MESSAGES)
    socket.set(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
    if client.transport == "tcp":
        socket.set(zmq.TCP_MAXRT, STUCK_AFTER_MS)
        if ":" in client.ip:
            socket.set(zmq.IPV6, 1)
    if channel == "iopub":
        socket.set(zmq.XPUB_VERBOSER, 1)  # tells of every subscriber, also of the second to a topic
        socket.set(zmq.XPUB_NODROP, 1)
    else:
        # A client that comes back with its identity takes over from its dead connection, as with
        # ipykernel. MANDATORY turns silent loss into an error that can be counted or waited for.
        socket.set(zmq.ROUTER_HANDOVER, 1)
        socket.set(zmq.ROUTER_MANDATORY, 1)
    if client.curve_publickey is not None and client.curve_secretkey is not None:
        socket.set(zmq.CURVE_SERVER, 1)
        socket.set(zmq.CURVE_PUBLICKEY, client.curve_publickey)
        socket.set(zmq.CURVE_SECRETKEY, client.curve_secretkey)
    return socket


def _bind(socket: Socket, client: ClientSide, channel: str, port: int) -> int:
    try:
        if client.transport == "ipc":
            port = port or _free_ipc_port(client)
            _unlink_dead(Path(f"{client.ip}-{port}"))
            socket.bind(client.address(channel, port))
            return port
        socket.bind(client.address(channel, port) if port else f"tcp://{client.ip}:*")
        bound = socket.get(zmq.LAST_ENDPOINT)
        return int(bytes(bound).decode().rsplit(":", 1)[1])
    except zmq.ZMQError as exc:
        address = client.address(channel, port)
        raise RequestError("bind", f"cannot bind {channel} to {address}: {exc.strerror}") from exc


def _free_ipc_port(client: ClientSide) -> int:
    port = 1
    while port in client.ports.values() or Path(f"{client.ip}-{port}").exists():
        port += 1
    return port


def _unlink_dead(path: Path) -> None:
    """Remove a socket file that nobody listens on: a killed bridge leaves its own behind.

    libzmq would silently unlink and replace a *live* one, so that is refused here.
    """
    if not path.is_socket():
        return
    with unix.socket(unix.AF_UNIX, unix.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except OSError:
            pass
    raise RequestError("bind", f"somebody else listens on {path}")


def readable(socket: Socket) -> bool:
    """Say whether a message waits. Also takes in what libzmq's threads have to tell: its file
    descriptor is edge-triggered, so this must be asked again after every send and receive.
    """
    return bool(_get(socket, _EVENTS) & _POLLIN)


def receive(socket: Socket) -> list[Part]:
    """Take one whole message: small frames as bytes, large ones as views of libzmq's memory.

    Raises:
        zmq.Again: none waits.
    """
    parts: list[Part] = []
    while True:
        frame = _recv(socket, _DONTWAIT, False)
        parts.append(frame.bytes if len(frame) < SHARE_BYTES else frame.buffer)
        if not frame.more:
            return parts


def send(socket: Socket, parts: Sequence[Part]) -> None:
    """Queue one whole message whose frames are all small.

    Raises:
        zmq.Again: the receiver's queue is full; nothing was queued.
        zmq.ZMQError: with EHOSTUNREACH, a ROUTER has no such client; nothing was queued.
    """
    for part in parts[:-1]:
        _send(socket, part, _MORE)
    _send(socket, parts[-1], _DONTWAIT)


def send_shared(socket: Socket, parts: Sequence[Part]) -> None:
    """Queue one whole message without copying its large frames, nor the last, whatever its size.

    They must not change afterwards. pyzmq keeps a reference to each, as an object, until no client's
    queue holds it any more.
    Raises as ``send`` does.
    """
    for part in parts[:-1]:
        _send(socket, part, _MORE, len(part) < SHARE_BYTES)
    _send(socket, parts[-1], _DONTWAIT, False)
