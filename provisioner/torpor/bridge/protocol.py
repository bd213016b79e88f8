"""What is said on the bridge's control socket, parsed once into values.

JSON lines both ways. A request, its two possible answers, and what comes unasked::

    {"id": 7, "op": "open", "kernel_id": "…", …}
    {"id": 7, "ok": true, "result": {…}}
    {"id": 7, "ok": false, "error": {"code": "bind", "message": "…"}}
    {"event": "guest", "kernel_id": "…", "body": {…}}

Codes: ``bad_request unknown_op unknown_kernel exists bind fifo link timeout busy finishing state
internal``, and those of the guest, passed on as they are. An operation that fails has changed nothing.
All but ``hello``, ``list`` and ``shutdown`` name a ``kernel_id``:

``hello {starter?} -> {version, pid, kernels}``, ``list {} -> {kernels}``, ``shutdown {force}``
    ``starter {argv, env, lock}``: the bridge may start the daemon with that when nobody is connected
    and intent waits for a kernel that is held or asleep; null: it may not, the daemon ends on purpose.
``open {client, guest_key, fifo_in, fifo_out, fifo_err?, resume?} -> {ports}``
``open {client, guest_key, resume: true, asleep: true, memory?} -> {ports}``
    ``resume``: as a bridge process before this one had it. Asleep there are no FIFOs; what is
    known comes from the record or, if that is lost or of another hold, from ``memory``.
``close {}``, ``unlink {}``, ``relink {fifo_in, fifo_out, fifo_err?}``
    The kernel is awake after ``unlink`` and ``relink``; what waited goes to the new sandbox.
``rpc {method, params, timeout_s?}`` -> the guest's result; also while held
``status {} -> {state: "awake|held|asleep", waiting: n, link, guest, execution_state, …}``
    ``busy_reason``: why it should not be put to sleep now, a text as ``hold`` gives, else null.
    ``idle_since``: when it was last asked for something, ran, or said something, in seconds since
    1970 (now while it runs). Looking (below) does not count, nor do statuses that it causes;
    ``last_activity`` is what jupyter_server would say.

Hibernation (``asleep``)::

    hold {timeout_s?}  -> {memory}     nothing is in flight, and nothing is passed to the guest.
        busy: readable, and temporary: a cell is running or asks for input, a debugger has stopped
        it, a request has no reply, it or a client keeps talking. finishing: it is busy, though all it
        was asked has its reply: it should be idle in a moment. link: it has no open link.
        Held already: the memory as of now; busy also if something waits. It is held either way.
    release {notice?, prove_s?} -> {}  undo hold; what waited is passed
        With prove_s, after wake with held: true: answered only when the kernel has said that it takes
        up something of what was passed on shell. link: it did not, and is awake. What was passed is
        kept then, and answered with an error by wake_failed, sleep, unlink or relink.
        The notice, if the kernel was restored and not released since, is shown on stderr of the next
        cell, once, before it runs.
    sleep {memory?}    -> {waiting}    after hold: the link is given up
        After wake with held: true and before release, and while waking: undo wake. The kernel is
        as asleep as before, and the same snapshot can be restored again.
        With memory: from any state, as if it had slept since that was given. For the restore of an
        older snapshot. What the kernel was doing is lost, what waits is kept.
    wake {fifo_in, fifo_out, fifo_err?, timeout_s?, held?} -> {waiting, asked}
        asked: something of what waits is for the kernel's shell.
        The link to the restored guest is open, and what waited is being passed; with held: true only
        after release. fifo, link: still asleep, everything still waits.
    wake_failed {reason, memory?} -> {failed, dropped}
        Every waiting request got an error reply; the kernel is still asleep. With memory: from any
        state, and what was passed in vain after release with prove_s got one, too.

    {"event": "intent", "kernel_id", "msg_type"}           once until awake, or wake_failed
    {"event": "shutdown_wanted", "kernel_id", "restart"}   was answered; the daemon is to do it
    {"event": "looked_at", "kernel_id"}                    somebody has just come who may want more soon;
                                                           at most every ten seconds

Held and asleep, ``kernel_info``, ``comm_info``, ``interrupt`` and ``shutdown`` requests, heartbeats
and subscriptions are answered by the bridge, and so is the debugger's ``debugInfo``, which JupyterLab
asks for each notebook it opens, if the kernel has answered it since the debugger last did something.
Everything else is intent: up to 64 MiB or 10,000 messages wait in memory, the rest in the clients'
sockets. Those in memory die with the bridge process, like what libzmq holds; a kernel that was held is
awake in the next one. Events are not repeated to a daemon that comes later: ``status`` tells that
something waits.

Freezing needs no more than ``hold``: the processor may be taken from a held kernel for as long as one
likes, intent is told as above, and after it was given back comes ``release``, or a snapshot and ``sleep``.
After the death of the bridge process that held it, it must be given back before the next one is used.

``memory`` (``memory``) goes with the snapshot made next. It says where the link stood: the guest in an
older snapshot knows less of the link than the bridge, and opens it only with a host that knows no more.
So ``open`` with ``asleep`` and the memory of another kernel's snapshot makes a fork of that kernel.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torpor._version import __version__

VERSION = __version__
CHANNELS = ("shell", "iopub", "stdin", "control", "hb")
MAX_LINE_BYTES = 4 << 20
EXIT_ALREADY_RUNNING = 3
MAX_REASON_CHARS = 4_096
_KERNEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_CURVE_KEY_CHARS = 40  # a Z85 key
_MAX_IPC_PATH = 100  # a socket address holds 107 bytes; "-NNNNN" comes on top


class RequestError(Exception):
    """A request that cannot be served; becomes an ``ok: false`` answer and changes nothing."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class ClientSide:
    """The connection file of a kernel's clients. A port of 0 means "choose one"."""

    transport: Literal["tcp", "ipc"]
    ip: str
    ports: Mapping[str, int]
    signature_scheme: str
    key: bytes = field(repr=False)
    curve_publickey: bytes | None = None
    curve_secretkey: bytes | None = field(default=None, repr=False)

    def address(self, channel: str, port: int) -> str:
        """Give the ZMQ address of one endpoint, as jupyter_client forms it."""
        separator = ":" if self.transport == "tcp" else "-"
        return f"{self.transport}://{self.ip}{separator}{port}"


@dataclass(frozen=True, slots=True)
class Fifos:
    """The three named pipes of one sandbox, made by its backend: absolute paths."""

    to_guest: Path
    from_guest: Path
    guest_stderr: Path | None


@dataclass(frozen=True, slots=True)
class OpenRequest:
    """Everything needed to serve one kernel."""

    kernel_id: str
    client: ClientSide
    fifos: Fifos | None  # None: the kernel is asleep
    resume: bool
    guest_key: bytes = field(repr=False)
    memory: Mapping[str, Any] = field(default_factory=dict)


def parse_open(request: Mapping[str, Any]) -> OpenRequest:
    """Read an ``open`` request.

    Raises:
        RequestError: with code ``bad_request`` and the offending field in the message.
    """
    client = request.get("client")
    if not isinstance(client, Mapping):
        raise _bad("client must be an object")
    asleep, resume = (bool(request.get(name, False)) for name in ("asleep", "resume"))
    if asleep and not resume:
        raise _bad("a kernel that is asleep can only be resumed")
    return OpenRequest(
        kernel_id=parse_kernel_id(request),
        client=_parse_client(client),
        fifos=None if asleep else parse_fifos(request),
        resume=resume,
        guest_key=_text(request, "guest_key").encode(),
        memory=parse_memory(request) or {},
    )


def parse_kernel_id(request: Mapping[str, Any]) -> str:
    """Read ``kernel_id``: it becomes part of a file name, so only letters, digits, ``_ . -``."""
    kernel_id = _text(request, "kernel_id")
    if not _KERNEL_ID.fullmatch(kernel_id):
        raise _bad(f"kernel_id {kernel_id[:130]!r} is not a plain name")
    return kernel_id


def parse_fifos(request: Mapping[str, Any]) -> Fifos:
    """Read the paths ``fifo_in`` (host to guest), ``fifo_out`` and, optionally, ``fifo_err``."""
    error_path = request.get("fifo_err")
    return Fifos(
        to_guest=_path(request, "fifo_in"),
        from_guest=_path(request, "fifo_out"),
        guest_stderr=_path(request, "fifo_err") if error_path else None,
    )


def parse_memory(request: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Read ``memory``, which ``hold`` gave; None when there is none."""
    memory = request.get("memory")
    if memory is not None and not isinstance(memory, Mapping):
        raise _bad("memory must be an object")
    return memory


def parse_notice(request: Mapping[str, Any]) -> str:
    """Read ``notice``, some lines for people; "" for nothing."""
    return _text(request, "notice")[:MAX_REASON_CHARS] if request.get("notice") else ""


def parse_number(request: Mapping[str, Any], name: str, default: float, most: float) -> float:
    """Read a number of seconds in ``(0, most]``."""
    value = request.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
        raise _bad(f"{name} must be a number above 0 and at most {most}")
    return float(value)


def parse_reason(request: Mapping[str, Any]) -> str:
    """Read ``reason``, a short text for people."""
    reason = _text(request, "reason")
    if len(reason) > MAX_REASON_CHARS:
        raise _bad(f"reason must have at most {MAX_REASON_CHARS} characters")
    return reason


def _parse_client(client: Mapping[str, Any]) -> ClientSide:
    transport = client.get("transport")
    if transport not in ("tcp", "ipc"):
        raise _bad(f"client.transport must be tcp or ipc, not {transport!r}")
    ip = _text(client, "ip")
    if transport == "ipc" and (not ip.startswith("/") or len(ip.encode()) > _MAX_IPC_PATH):
        raise _bad(f"client.ip must be an absolute path of at most {_MAX_IPC_PATH} bytes for ipc")
    given = client.get("ports")
    ports = {name: _port(given, name) for name in CHANNELS}
    public, secret = _curve(client, "curve_publickey"), _curve(client, "curve_secretkey")
    if (public is None) != (secret is None):
        raise _bad("client needs both curve keys or none")
    return ClientSide(
        transport="tcp" if transport == "tcp" else "ipc",
        ip=ip,
        ports=ports,
        signature_scheme=_text(client, "signature_scheme") or "hmac-sha256",
        key=_text(client, "key").encode(),
        curve_publickey=public,
        curve_secretkey=secret,
    )


def _port(ports: object, name: str) -> int:
    port = ports.get(name, 0) if isinstance(ports, Mapping) else None
    if type(port) is not int or not 0 <= port <= 65_535:
        raise _bad(f"client.ports.{name} must be 0 to 65535")
    return port


def _curve(client: Mapping[str, Any], name: str) -> bytes | None:
    if client.get(name) is None:
        return None
    key = _text(client, name).encode()
    if len(key) != _CURVE_KEY_CHARS:
        raise _bad(f"client.{name} must be a Z85 key of {_CURVE_KEY_CHARS} characters")
    return key


def _path(source: Mapping[str, Any], name: str) -> Path:
    path = Path(_text(source, name))
    if not path.is_absolute():
        raise _bad(f"{name} must be an absolute path")
    return path


def _text(source: Mapping[str, Any], name: str) -> str:
    value = source.get(name)
    if not isinstance(value, str) or "\0" in value:
        raise _bad(f"{name} must be a text")
    return value


def _bad(message: str) -> RequestError:
    return RequestError("bad_request", message)
