"""What the launcher does, in order; the protocol is in this package's docstring."""

from __future__ import annotations

import marshal
import os
import resource

from torpor.runsc.launcher import syscalls as sys_
from torpor.runsc.launcher.seccomp import forbid_set_id_files
from torpor.runsc.launcher.tree import Tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, NoReturn

_HIGH_FD = 252
"""Just below where gVisor's sentry puts its stdio (``startingStdioFD`` in its runsc/boot/loader.go)."""

_step = "request"
_report = 1


def _at(step: str) -> None:
    """Name the step that the next error belongs to."""
    global _step
    _step = step


def main(arguments: Sequence[str]) -> NoReturn:
    """Build, report, wait for ``go``, become runsc. Never returns."""
    global _report
    try:
        _report = os.dup(1)  # closed when runsc takes over, unlike descriptor 1 itself
        path, uid, gid = arguments
        with open(path, "rb") as file:
            plan = marshal.load(file)
        _launch(plan, None if uid == "-" else (int(uid), int(gid)))
    except OSError as exc:
        _say(f"error {_step} {exc.errno or 0} {exc}")
    except BaseException as exc:
        _say(f"error {_step} 0 {type(exc).__name__}: {exc}")
    os._exit(1)


def _launch(plan: Mapping[str, Any], owner: tuple[int, int] | None) -> NoReturn:
    if "restore" in plan:
        import torpor.runsc.launcher.control  # noqa: F401 - in the new root there is none of that
    _at("stdio")
    stdio = _open_stdio(plan, owner)
    _at("namespace")
    _enter_mount_namespace(owner)
    _at("files")
    tree = Tree(plan["build_at"], owner)
    tree.build(plan["tree"])
    for note in tree.notes:
        _say(f"note {note}")
    _at("request")
    word, *cgroups = _line().split("\t")
    if word != "in":
        os._exit(1)
    _at("cgroup")
    for file in cgroups:
        _write(file, "0")  # this process, which has but one thread
    _at("process")
    if sys_.clone_into_pid_namespace(sibling=True):
        os._exit(0)
    # This is the child. It is process 1 to itself; the old /proc still has its real number.
    _say(f"pid {os.readlink('/proc/self')}")
    _at("files")
    _enter_root(plan)
    _at("namespace")
    _become_powerless(owner)
    _limit(plan)
    if "first" in plan:
        _at("runsc")
        _run(plan["first"], plan["env"], stdio)
        _say("ready")
    _at("request")
    if _line() != "go":
        os._exit(1)
    _at("runsc")
    if "first" in plan:
        _stay(plan, stdio)
    _become(plan["argv"], plan["env"], stdio)


def _run(argv: list[str], env: Mapping[str, str], stdio: Sequence[int]) -> None:
    """Run a program with the sandbox's stdio to its end. Raises OSError when it fails."""
    child = os.fork()
    if child == 0:
        try:
            _become(argv, env, stdio)
        finally:
            os._exit(127)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        raise OSError(0, f"{argv[0]} ended with {code}")


def _become(argv: list[str], env: Mapping[str, str], stdio: Sequence[int]) -> NoReturn:
    for number, fd in enumerate(stdio):
        os.dup2(fd, number, inheritable=True)
    try:  # noqa: SIM105
        # A sentry with a small table of descriptors waits 20 ms for RCU when it needs one that high. A
        # child's table is made large enough for what is open: an eventfd, that nobody can do anything with.
        os.dup2(os.eventfd(0), _HIGH_FD, inheritable=True)
    except OSError:
        pass  # no so many descriptors are allowed here: slower, no more
    os.execve(argv[0], argv, env)


def _stay(plan: Mapping[str, Any], stdio: Sequence[int]) -> NoReturn:
    """Let the sandbox that stands ready go on, and be its first process until it ends.

    The sandbox's processes are this one's to wait for; runsc itself would not.
    """
    global _report
    for number, fd in enumerate(stdio):
        os.dup2(fd, number)
    os.close(_report)  # the end of the report: runsc has taken over
    _report = 2
    if "restore" in plan:
        from torpor.runsc.launcher.control import restore

        restore(*plan["restore"])
    else:
        _run(plan["argv"], plan["env"], stdio)
    os._exit(os.waitstatus_to_exitcode(os.wait()[1]) & 0xFF)


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
    forbid_set_id_files()


def _map_ids(uid: int, gid: int) -> None:
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"0 {uid} 1")
    _write("/proc/self/gid_map", f"0 {gid} 1")


def _limit(plan: Mapping[str, Any]) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:  # noqa: SIM105 (importing contextlib takes milliseconds)
        # When the machine runs out of memory, a sandbox goes before the user's other programs.
        _write("/proc/self/oom_score_adj", str(plan["oom_score_adj"]))
    except OSError:
        pass


def _line() -> str:
    """Read one line from stdin and not a byte more; "" at its end."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            break
        line += byte
    return os.fsdecode(line.rstrip(b"\n"))


def _say(text: str) -> None:
    try:  # noqa: SIM105
        os.write(_report, os.fsencode(text.replace("\n", " ")) + b"\n")
    except OSError:
        pass  # nobody listens any more


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
