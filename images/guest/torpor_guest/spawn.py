"""Start a kernel process, and end what is left of one. Runs before most modules are loaded."""

import os

_SIGKILL = 9  # the signal module takes 6 ms to import
# HUP INT QUIT PIPE TERM CHLD XFSZ: what Python or a parent of ours may have set to be ignored.
_RESET_SIGNALS = (1, 2, 3, 13, 15, 17, 25)


class SpawnError(OSError):
    """The kernel's program could not be executed; the message is fit for the user."""


class Spawned:
    """A started process, leader of its own session; ``output_fd`` reads its stdout and stderr."""

    __slots__ = ("output_fd", "pid")

    def __init__(self, pid: int, output_fd: int) -> None:
        self.pid = pid
        self.output_fd = output_fd


def spawn(argv: tuple[str, ...], env: dict[str, str], cwd: str, third_fd: int = -1) -> Spawned:
    """Execute ``argv`` in ``cwd`` with exactly ``env``, stdin empty. The caller owns pid and fd.

    ``third_fd``, if given, becomes the program's descriptor 3.

    Raises:
        SpawnError: no such program or folder, or it cannot be executed; nothing is left behind.
    """
    try:
        os.chdir(cwd)
    except OSError as exc:
        raise SpawnError(f"cannot enter the kernel's folder {cwd!r}: {exc.strerror}") from exc
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        os.set_blocking(write_fd, True)
        null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        try:
            fds = ((null, 0), (write_fd, 1), (write_fd, 2))
            pid = _exec(argv, env, fds if third_fd < 0 else (*fds, (third_fd, 3)))
        finally:
            os.close(null)
    except BaseException:
        os.close(read_fd)
        raise
    finally:
        os.close(write_fd)
        os.chdir("/")
    return Spawned(pid, read_fd)


def _exec(argv: tuple[str, ...], env: dict[str, str], fds: tuple[tuple[int, int], ...]) -> int:
    actions = [(os.POSIX_SPAWN_DUP2, old, new) for old, new in fds]
    refused: OSError | None = None
    for program in _candidates(argv[0], env.get("PATH", os.defpath)):
        try:
            return os.posix_spawn(
                program,
                argv,
                env,
                file_actions=actions,
                setsid=True,
                setsigmask=(),
                setsigdef=_RESET_SIGNALS,
            )
        except FileNotFoundError as exc:
            refused = refused or exc
        except OSError as exc:
            refused = exc
    reason = refused.strerror if refused is not None else "PATH is empty"
    raise SpawnError(f"cannot execute {argv[0]!r}: {reason}") from refused


def _candidates(program: str, path: str) -> list[str]:
    if "/" in program:
        return [program]
    return [f"{folder}/{program}" for folder in path.split(":") if folder]


def kill_session(sid: int) -> set[int]:
    """SIGKILL every process of session ``sid``, whatever its group; give their pids.

    Repeats until a pass finds nobody new, since a process may fork while the list is read.
    """
    signalled: set[int] = set()
    while True:
        members = {
            pid for pid, session, state in _processes() if session == sid and state not in "ZX"
        }
        if members <= signalled:
            return signalled
        for pid in members - signalled:
            _kill(pid)
        signalled |= members


def kill_descendants() -> None:
    """SIGKILL and reap every child, and every orphan that becomes one (see ``harden``)."""
    own = os.getpid()
    while True:
        for pid, _, _ in _processes(parent=own):
            _kill(pid)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _kill(pid: int) -> None:
    try:  # noqa: SIM105 (contextlib is not loaded yet)
        os.kill(pid, _SIGKILL)
    except ProcessLookupError:
        pass


def _processes(parent: int = 0) -> list[tuple[int, int, str]]:
    """Give (pid, session, state letter) of every process, or of the children of ``parent``."""
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            continue
        if parent in (0, int(fields[1])):
            found.append((int(name), int(fields[3]), fields[0]))
    return found
