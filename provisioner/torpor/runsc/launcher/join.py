"""Runs a program beside a sandbox's runsc: in the same namespaces, with the same lack of power.

    join PID UID GID PROGRAM ARGUMENT...     UID and GID are - where the caller's own runs it

It becomes the program, whose output is its own; ``PID`` is process 1 of the sandbox's pid namespace.
When the caller dies, so does it.
"""

from __future__ import annotations

import os

from torpor.runsc.launcher import syscalls as sys_
from torpor.runsc.launcher.seccomp import forbid_set_id_files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

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
        child = os.fork()  # only children are in the pid namespace
        if child == 0:
            if uid != "-":
                os.setresgid(0, 0, 0)
                os.setresuid(0, 0, 0)
            sys_.die_with_parent()  # after the change of uid, which takes this back
            sys_.set_no_new_privileges()
            forbid_set_id_files()
            os.chdir("/")
            os.execve(argv[0], list(argv), {"PATH": "/usr/bin:/bin", "HOME": "/"})
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    except BaseException as exc:
        os.write(2, f"cannot enter the sandbox: {exc}\n".encode())
        os._exit(1)
