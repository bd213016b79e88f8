"""Asks a sandbox itself to pause, save its state, go on, or be restored, without a runsc between.

A runsc that passes one such request on takes 15 to 30 ms, nearly all of it the start of a Go program; the
request takes one. Only for builds that this is known to fit (`torpor.runsc.version.speaks_control`).

What is sent is what runsc sends (gVisor's ``pkg/urpc/urpc.go``): a JSON object for each call, with file
descriptors beside its first byte, and one for each answer::

    {"method": "containerManager.Checkpoint", "arg": {...}}
    {"success": true, "err": "", "result": {...}}

The methods are those of ``runsc/boot/controller.go``, the argument of ``Checkpoint`` is ``SaveOpts`` of
``pkg/sentry/control/state.go``, that of ``Restore`` ``RestoreOpts``, before which the network is told: what
runsc tells it for ``--network=none`` (``DefaultLoopbackLink`` in ``runsc/boot/network.go``). runsc writes
down that a sandbox is paused: one that is told to go on and was not is ended by a panic, and one that
was paused twice goes on only when it is told so twice. So do we, in a file that only this program and
runsc can see, as it lies in the sandbox's own mount namespace. File and sandbox are changed together,
whatever becomes of whoever started this program.
"""

from __future__ import annotations

import _socket
import fcntl
import json  # in the sandbox's namespaces there would be none
import os
import sys

from torpor.runsc.launcher import syscalls as sys_

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

STATE = "/run/runsc"
"""runsc's ``--root``, where its control socket is."""
FILES = ("checkpoint.img", "pages_meta.img", "pages.img")
"""In the order in which ``Checkpoint`` wants them: ``pkg/sentry/state/checkpointfiles``."""
_PAUSED = "torpor-paused"
_LOCK = "torpor-lock"
_MOST_ANSWER_BYTES = 1 << 20
_PAUSE = b'{"method":"containerManager.Pause","arg":null}'
_RESUME = b'{"method":"containerManager.Resume","arg":null}'
_NETWORK = (
    b'{"method":"containerManager.SetNetworkArgs","arg":{"IsRestore":true,"LoopbackLinks":[{"Name":"lo",'
    b'"Addresses":[{"Address":"127.0.0.1","PrefixLen":8},{"Address":"::1","PrefixLen":128}],'
    b'"Routes":[{"Destination":{"IP":"127.0.0.0","Mask":"/wAAAA=="}},'
    b'{"Destination":{"IP":"::1","Mask":"/////////////////////w=="}}]}]}}'
)
_RESTORE = b'{"method":"containerManager.Restore","arg":{"HavePagesFile":true}}'
_SAVE = (
    b'{"method":"containerManager.Checkpoint","arg":'
    b'{"metadata":{"compression":"none"},"have_pages_file":true,"Resume":true}}'
)


def control(arguments: Sequence[str], *, state: str = STATE) -> int:
    """Do ``save SANDBOX-ID FOLDER`` or ``resume SANDBOX-ID PROGRAM ARGUMENT...``; give an exit status.

    ``save`` pauses the sandbox and writes its state into the new ``FOLDER``; it stays paused, also when
    that fails. ``resume`` has one go on that ``save`` has paused; of any other ``PROGRAM`` knows. What
    went wrong is told on descriptor 2. To be restored is for ``restore``.

    Raises:
        OSError: it cannot be reached, or a file cannot be made.
    """
    verb, sandbox_id, *rest = arguments
    paused = f"{state}/{_PAUSED}"
    lock = os.open(f"{state}/{_LOCK}", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)  # an earlier one may be just between sandbox and file
    if verb == "resume" and not os.path.exists(paused):
        os.execve(rest[0], rest, {"PATH": "/usr/bin:/bin", "HOME": "/"})
    sentry = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        sentry.connect(f"{state}/runsc-{sandbox_id}.sock")
        why = _resume(sentry, paused) if verb == "resume" else _pause(sentry, paused, rest[0])
        if not why and verb == "save":
            why = _call_with(sentry, rest[0], os.O_CREAT | os.O_EXCL | os.O_RDWR, _SAVE)
    finally:
        sentry.close()
        os.close(lock)
    if why:
        os.write(2, f"{verb}: {why}\n".encode())
    return 1 if why else 0


def restore(sandbox_id: str, folder: str, *, state: str = STATE) -> None:
    """Have a sandbox that was created, and has not run, become what was saved in ``folder``, and run.

    Raises:
        OSError: it did not, and ends; or it cannot be reached.
    """
    sentry = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        sentry.connect(f"{state}/runsc-{sandbox_id}.sock")
        why = _call_with(sentry, folder, os.O_RDONLY, _RESTORE, before=_NETWORK)
    finally:
        sentry.close()
    if why:
        raise OSError(0, f"it was not restored: {why}")


def _pause(sentry: _socket.socket, paused: str, folder: str) -> str:
    os.mkdir(folder, 0o700)
    if os.path.exists(paused):
        return ""
    parent, bound = os.getppid(), sys_.outlive_parent()
    why = _call(sentry, _PAUSE)
    if not why:
        os.close(os.open(paused, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    if bound:
        sys_.die_with_parent()
    return why if os.getppid() == parent else "nobody waits for it any more"


def _resume(sentry: _socket.socket, paused: str) -> str:
    sys_.outlive_parent()
    why = _call(sentry, _RESUME)
    if not why:
        os.unlink(paused)
    return why


def _call_with(
    sentry: _socket.socket, folder: str, flags: int, request: bytes, *, before: bytes = b""
) -> str:
    """Do as ``_call``, with the ``FILES`` in ``folder``, opened with ``flags``, beside ``request``."""
    fds: list[int] = []
    try:
        for name in FILES:
            fds.append(os.open(f"{folder}/{name}", flags | os.O_CLOEXEC, 0o600))
        why = _call(sentry, before) if before else ""
        return why or _call(sentry, request, fds)
    finally:
        for fd in fds:
            os.close(fd)


def _call(sentry: _socket.socket, request: bytes, fds: Sequence[int] = ()) -> str:
    """Give "" when it was done, else why not."""
    rights = b"".join(fd.to_bytes(4, sys.byteorder) for fd in fds)
    beside = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)] if fds else []
    sent = sentry.sendmsg([request], beside)
    if sent < len(request):
        sentry.sendall(request[sent:])
    answer = b""
    while len(answer) < _MOST_ANSWER_BYTES:
        chunk = sentry.recv(65_536)
        if not chunk:
            break
        answer += chunk
        if answer.endswith(b"}") and (why := _reason(answer)) is not None:
            return why
    return f"the sandbox broke off: {answer[:200]!r}"


def _reason(answer: bytes) -> str | None:
    """Give why something was not done, "" where it was; None where ``answer`` is not all of one."""
    try:
        said = json.loads(answer)
    except ValueError:
        return None
    said = said if isinstance(said, dict) else {}
    return "" if said.get("success") is True else str(said.get("err") or "no reason given")
