"""What is left in the world: processes, mounts, cgroups, sockets, FIFOs and folders of one Torpor home.

Daemon and bridge name their home on their command line or in their environment. A sandbox lives in a mount
namespace of its own, whose mounts come from folders of the home. So a home in a fresh temporary folder
identifies exactly what a test started.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
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
        is_service = "torpor.daemon" in text or "torpor.bridge" in text
        if services or not is_service:
            found[int(entry.name)] = text[:300]
    return found


def _cgroups(ids: list[str]) -> Iterator[str]:
    for base in (Path("/sys/fs/cgroup"),):
        for path in base.glob("*/torpor/*"):
            if path.is_dir() and any(ident in path.name for ident in ids):
                yield str(path)
        for path in base.glob("torpor/*"):
            if path.is_dir() and any(ident in path.name for ident in ids):
                yield str(path)


def look(home: Path, kernel_ids: list[str] | None = None, *, services: bool = False) -> Leftovers:
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
        for path in home.rglob("*"):
            mode = path.lstat().st_mode
            if stat.S_ISSOCK(mode) or stat.S_ISFIFO(mode):
                files.append(str(path))
    return Leftovers(
        processes=[f"{p}: {c}" for p, c in processes_of(home, services=services).items()],
        mounts=mounts,
        cgroups=list(_cgroups(kernel_ids or [])),
        files=files,
    )


def _new(now: list[str], before: list[str]) -> list[str]:
    return [each for each in now if each not in before]


def wait_clean(
    home: Path,
    kernel_ids: list[str] | None = None,
    *,
    before: Leftovers | None = None,
    services: bool = False,
    within_s: float = 10,
) -> None:
    """Return once nothing is left but what was there ``before``; AssertionError after ``within_s``."""
    known = before or Leftovers()
    deadline = time.monotonic() + within_s
    while True:
        now = look(home, kernel_ids, services=services)
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
