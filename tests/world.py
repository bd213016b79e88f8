"""What is left in the world: processes, mounts, cgroups, sockets, FIFOs and folders of one Torpor home.

Daemon and bridge name their home on their command line or in their environment. A sandbox lives in a mount
namespace of its own, whose mounts come from folders of the home. So a home in a fresh temporary folder
identifies exactly what a test started.
"""

from __future__ import annotations

import os
import signal
import stat
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Leftovers:
    """Everything found; empty lists mean a clean world."""

    processes: list[str] = field(default_factory=list)
    mounts: list[str] = field(default_factory=list)
    cgroups: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.processes or self.mounts or self.cgroups or self.files)


def _belongs(entry: Path, cmdline: bytes, needle: bytes) -> bool:
    first = cmdline.split(b"\0", 1)[0]
    if b"runsc" in first or b"/launcher/" in cmdline:
        return needle in (entry / "mountinfo").read_bytes() or needle in cmdline
    if b"torpor.daemon" in cmdline or b"torpor.bridge" in cmdline or b"torpor_guest" in cmdline:
        return needle in cmdline + (entry / "environ").read_bytes()
    return False


def _is_spare(entry: Path, cmdline: bytes) -> bool:
    """Whether it is a launcher that waits to be needed, and so torpord's own: in no sandbox yet."""
    if b"/launcher/__main__.py\0wait\0" not in cmdline:
        return False
    try:
        return os.readlink(entry / "ns/mnt") == os.readlink("/proc/self/ns/mnt")
    except OSError:  # it has ended, or somebody else is what it has become
        return False


def spare_launchers(home: Path) -> list[int]:
    """Give the launchers that wait for torpord of ``home`` to need one."""
    return [pid for pid, command in processes_of(home).items() if " wait " in command]


def without_new_children(pids: list[int]) -> list[int]:
    """Give ``pids`` without those that another one of them has just made: until its exec a child looks like it."""
    return [pid for pid in pids if _parent(pid) not in (None, *pids)]


def _parent(pid: int) -> int | None:
    """Give the parent of a process; None when that has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(text.rpartition(")")[2].split()[1])


def whole_lines(log: Path) -> list[str]:
    """Give the lines of a log; what follows the last end of a line is just being written."""
    return log.read_text().split("\n")[:-1]


def processes_of(home: Path, *, services: bool = True) -> dict[int, str]:
    """Give pid -> command line of every live process of ``home``; zombies do not count.

    ``services=False`` leaves out the daemon and the bridge themselves.
    """
    found: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            cmdline = (entry / "cmdline").read_bytes()
            if not cmdline or not _belongs(entry, cmdline, str(home).encode()):
                continue
        except OSError:
            continue
        text = cmdline.replace(b"\0", b" ").decode(errors="replace").strip()
        is_service = "torpor.daemon" in text or "torpor.bridge" in text or _is_spare(entry, cmdline)
        if services or not is_service:
            found[int(entry.name)] = text[:300]
    return found


def _bases() -> list[Path]:
    """Give where a daemon of this process may make cgroups: in its own, above it, or beside all others."""
    top = Path("/sys/fs/cgroup")
    own = {line.split(":", 2)[2] for line in Path("/proc/self/cgroup").read_text().splitlines()}
    below = {each.lstrip("/") for group in own for each in (group, os.path.dirname(group))}
    mounts = [top, *top.glob("*/")]
    found = {mount / name for mount in mounts for name in (*below, "torpor")}
    return sorted(each for each in found if each.is_dir())


def _empty_cgroups() -> list[str]:
    """Give the cgroups of sandboxes in which no process is; what lives has some within milliseconds."""
    found = []
    for base in _BASES:
        for path in base.glob("torpor-*"):
            with suppress(OSError):
                if not (path / "cgroup.procs").read_text():
                    found.append(str(path))
    return found


# A cgroup's name says nothing of its home: what was there before these tests is not theirs.
_BASES = _bases()
_OLD = frozenset(_empty_cgroups())


def cgroups() -> list[str]:
    """Give the cgroups without a process that have come since this module was loaded."""
    return [each for each in _empty_cgroups() if each not in _OLD]


def look(home: Path, *, services: bool = False) -> Leftovers:
    """Give what is left of kernels in ``home`` (of the daemon and bridge too with ``services``)."""
    mounts = [
        line.split()[4]
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if str(home) in line
    ]
    files = []
    kernels = home / "state" / "k"
    if kernels.is_dir():
        files = [str(path) for path in kernels.iterdir()]
    if services:
        for folder, _, names in os.walk(home):  # which passes over folders that go meanwhile
            for path in (os.path.join(folder, name) for name in names):
                with suppress(FileNotFoundError):
                    mode = os.lstat(path).st_mode
                    if stat.S_ISSOCK(mode) or stat.S_ISFIFO(mode):
                        files.append(path)
    return Leftovers(
        processes=[f"{p}: {c}" for p, c in processes_of(home, services=services).items()],
        mounts=mounts,
        cgroups=cgroups(),
        files=files,
    )


def _new(now: list[str], before: list[str]) -> list[str]:
    return [each for each in now if each not in before]


def wait_clean(
    home: Path,
    *,
    before: Leftovers | None = None,
    services: bool = False,
    within_s: float = 10,
) -> None:
    """Return once nothing is left but what was there ``before``; AssertionError after ``within_s``."""
    known = before or Leftovers()
    deadline = time.monotonic() + within_s
    while True:
        now = look(home, services=services)
        left = Leftovers(
            processes=_new(now.processes, known.processes),
            mounts=_new(now.mounts, known.mounts),
            cgroups=_new(now.cgroups, known.cgroups),
            files=_new(now.files, known.files),
        )
        if not left:
            return
        if time.monotonic() > deadline:
            raise AssertionError(f"left in the world: {left}")
        time.sleep(0.1)


def reclaim(home: Path) -> None:
    """Kill what is left of ``home``, and remove its cgroups: without its folder nobody else could.

    For homes that are given up; nothing left is fine.
    """
    for pid in processes_of(home):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for record in (home / "state" / "k").glob("*/cgroups"):
        for folder in map(Path, record.read_text().splitlines()):
            _remove_cgroup(folder)


def _remove_cgroup(folder: Path, within_s: float = 5) -> None:
    deadline = time.monotonic() + within_s
    while folder.is_dir():
        with suppress(OSError):  # what is killed takes a moment to die
            for pid in set((folder / "cgroup.procs").read_text().split()) - {"0"}:
                os.kill(int(pid), signal.SIGKILL)
            folder.rmdir()
        assert time.monotonic() < deadline, f"{folder} cannot be removed"
        time.sleep(0.02)
