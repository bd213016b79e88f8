"""Runs a program beside a sandbox's runsc: in the same namespaces, with the same lack of power.

    join PID UID GID PROGRAM ARGUMENT... [";" PROGRAM ARGUMENT...]...

UID and GID are - where the caller's own runs it. Once there is a line on stdin each program runs to its
end, up to the first that fails; their output is this one's. The program ``@control`` is in here
(``control``). ``PID`` is process 1 of the sandbox's pid
namespace. When the caller dies, so does it.
"""

from __future__ import annotations

import os

from torpor.runsc.launcher import syscalls as sys_
from torpor.runsc.launcher.control import control
from torpor.runsc.launcher.seccomp import forbid_set_id_files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

CONTROL = "@control"
_ALL = (
    sys_.CLONE_NEWUSER
    | sys_.CLONE_NEWNS
    | sys_.CLONE_NEWPID
    | sys_.CLONE_NEWNET
    | sys_.CLONE_NEWIPC
    | sys_.CLONE_NEWUTS
)


def join(arguments: Sequence[str]) -> NoReturn:
    """Enter, then execute. Never returns; exit status 1 and a line on stderr if it cannot."""
    try:
        pid, uid, _gid, *argv = arguments
        pidfd = os.pidfd_open(int(pid))
        if uid != "-":
            os.setgroups([])
        sys_.die_with_parent()
        sys_.setns(pidfd, _ALL)
        owned, told, code = uid != "-", False, 0
        while argv and code == 0:
            end = argv.index(";") if ";" in argv else len(argv)
            command, argv = argv[:end], argv[end + 1 :]
            go, tell = os.pipe()
            child = os.fork()  # only children are in the pid namespace
            if child == 0:
                os.close(tell)
                _become(command, as_owner=owned, go=go)
            os.close(go)
            os.write(tell, b"\n" if told else os.read(0, 1))
            os.close(tell)
            told = True
            _, status = os.waitpid(child, 0)
            code = os.waitstatus_to_exitcode(status) & 0xFF
        os._exit(code)
    except BaseException as exc:
        os.write(2, f"cannot enter the sandbox: {exc}\n".encode())
        os._exit(1)


def _become(command: Sequence[str], *, as_owner: bool, go: int) -> NoReturn:
    if as_owner:
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    sys_.die_with_parent()  # after the change of uid, which takes this back
    sys_.set_no_new_privileges()
    forbid_set_id_files()
    os.chdir("/")
    if not os.read(go, 1):  # all of this is done before it is wanted
        os._exit(1)
    if command[0] == CONTROL:
        _control(command[1:])
    os.execve(command[0], list(command), {"PATH": "/usr/bin:/bin", "HOME": "/"})


def _control(arguments: Sequence[str]) -> NoReturn:
    code = 1
    try:
        code = control(arguments)
    except BaseException as exc:
        os.write(2, f"{arguments[0]}: {exc!r}\n".encode())
    finally:
        os._exit(code)
