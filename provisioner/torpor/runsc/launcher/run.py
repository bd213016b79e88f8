"""What the launcher does, in order; the protocol is in this package's docstring."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from torpor.runsc.launcher import syscalls as sys_
from torpor.runsc.launcher.tree import Tree

_step = "start"


@contextmanager
def _doing(step: str) -> Iterator[None]:
    """Name the step that an error of the block belongs to."""
    global _step
    _step = step
    yield


def main() -> NoReturn:
    """Read the request, build, report, wait for ``go``, become runsc. Never returns."""
    try:
        request = json.loads(_line())
        with open(request["plan"], encoding="utf-8") as file:
            plan = json.load(file)
        _launch(request, plan)
    except OSError as exc:
        _say({"error": {"step": _step, "errno": exc.errno or 0, "message": str(exc)}})
    except BaseException as exc:
        _say({"error": {"step": _step, "errno": 0, "message": f"{type(exc).__name__}: {exc}"}})
    os._exit(1)


def _launch(request: Mapping[str, Any], plan: Mapping[str, Any]) -> NoReturn:
    owner = None if request["uid"] is None else (int(request["uid"]), int(request["gid"]))
    with _doing("cgroup"):
        for path in request["cgroups"]:
            _write(path, str(os.getpid()))
    with _doing("stdio"):
        stdio = _open_stdio(plan, owner)
    tree = Tree(plan["build_at"], owner)
    with _doing("namespace"):
        _enter_mount_namespace(owner)
    with _doing("tree"):
        tree.build(plan["tree"])
    with _doing("process"):
        child = sys_.clone_into_pid_namespace(sibling=True)
    if child:
        os._exit(0)
    # The child knows itself as process 1; only its /proc/self of the old namespace has the real
    # number.
    _say({"pid": int(os.readlink("/proc/self")), "notes": tree.notes})
    with _doing("root"):
        _enter_root(plan)
    with _doing("namespace"):
        _become_powerless(owner)
    with _doing("start"):
        if _line() != b"go":
            os._exit(1)
        _limit(plan)
        for number, fd in enumerate(stdio):
            os.dup2(fd, number, inheritable=True)
    with _doing("exec"):
        os.execve(plan["argv"][0], plan["argv"], plan["env"])


def _open_stdio(plan: Mapping[str, Any], owner: tuple[int, int] | None) -> list[int]:
    """Open the three FIFOs above descriptor 2, owned by the sandbox's uid.

    Read-write, so that opening never waits and a host that went away is back-pressure, not end of
    file.
    """
    opened = []
    for path in plan["stdio"]:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        if owner:
            os.fchown(fd, *owner)
        opened.append(fd)
    return opened


def _enter_mount_namespace(owner: tuple[int, int] | None) -> None:
    if owner is None:
        uid, gid = os.geteuid(), os.getegid()
        sys_.unshare(sys_.CLONE_NEWUSER | sys_.CLONE_NEWNS, "user namespace")
        _map_ids(uid, gid)
    else:
        sys_.unshare(sys_.CLONE_NEWNS, "mount namespace")
    sys_.mount(None, "/", None, sys_.MS_REC | sys_.MS_PRIVATE)


def _enter_root(plan: Mapping[str, Any]) -> None:
    """Leave the host's file tree for ever."""
    proc = plan["build_at"] + "/proc"
    try:
        flags = sys_.MS_NOSUID | sys_.MS_NODEV | sys_.MS_NOEXEC
        sys_.mount("proc", proc, "proc", flags)
    except OSError:
        # Refused in a container whose /proc is masked; runsc is content with the one there is.
        sys_.mount("/proc", proc, None, sys_.MS_BIND | sys_.MS_REC)
    sys_.pivot_root(plan["build_at"])
    # runsc binds parts of it again.
    sys_.mount(None, "/", None, sys_.MS_PRIVATE)


def _become_powerless(owner: tuple[int, int] | None) -> None:
    """Be the sandbox's uid, alone in a user namespace, with no network, and seal the tree."""
    apart = sys_.CLONE_NEWNET | sys_.CLONE_NEWIPC | sys_.CLONE_NEWUTS
    if owner is not None:
        uid, gid = owner
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        sys_.set_dumpable()
        sys_.unshare(sys_.CLONE_NEWUSER | sys_.CLONE_NEWNS | apart, "user namespace")
        _map_ids(uid, gid)
    else:
        sys_.unshare(apart, "network namespace")
    flags = sys_.MS_REMOUNT | sys_.MS_BIND | sys_.MS_RDONLY | sys_.MS_NOSUID | sys_.MS_NODEV
    sys_.mount(None, "/", None, flags)
    sys_.set_no_new_privileges()


def _map_ids(uid: int, gid: int) -> None:
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"0 {uid} 1")
    _write("/proc/self/gid_map", f"0 {gid} 1")


def _limit(plan: Mapping[str, Any]) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # When the whole machine runs out of memory, a sandbox goes before the user's other programs.
    with suppress(OSError):
        _write("/proc/self/oom_score_adj", str(plan["oom_score_adj"]))


def _line() -> bytes:
    """Read one line from stdin and not a byte more; b"" at its end."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            break
        line += byte
    return line.rstrip(b"\n")


def _say(message: Mapping[str, Any]) -> None:
    with suppress(OSError):
        os.write(1, json.dumps(message).encode() + b"\n")


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
