"""Limits for a whole sandbox through cgroups, where this process may make any: versions 1 and 2.

Groups are made below the daemon's own, so that whatever bounds the daemon bounds its sandboxes too.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torpor.runsc import pidfd
from torpor.template import Template

_NAME = "torpor-"
_PERIOD_US = 100_000
_HOST_THREADS_PER_SANDBOX = 512
_CONTROLLERS = ("memory", "pids", "cpu")
_EMPTY_TRIES = 100
_EMPTY_PAUSE_S = 0.02


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """A place for groups: version 1 with one controller, or version 2 with several."""

    version: int
    base: str
    controllers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Cgroups:
    """Where this process can make groups; none at all is fine."""

    hierarchies: tuple[Hierarchy, ...]

    @property
    def controllers(self) -> frozenset[str]:
        return frozenset(each for one in self.hierarchies for each in one.controllers)

    def folders(self, sandbox_id: str) -> tuple[str, ...]:
        """Give the groups of a sandbox, made or not."""
        return tuple(f"{each.base}/{_NAME}{sandbox_id}" for each in self.hierarchies)

    def make(self, sandbox_id: str, template: Template) -> tuple[str, ...]:
        """Make the sandbox's groups with its limits; give their folders. On failure some may exist.

        Raises:
            OSError: the kernel refused one.
        """
        for hierarchy, folder in zip(self.hierarchies, self.folders(sandbox_id), strict=True):
            os.makedirs(folder, exist_ok=True)
            for name, value in limits(hierarchy, template).items():
                _write(f"{folder}/{name}", value, optional=name in _OPTIONAL)
        return self.folders(sandbox_id)


_OPTIONAL = frozenset({"memory.memsw.limit_in_bytes", "memory.swap.max", "memory.oom.group"})


def limits(hierarchy: Hierarchy, template: Template) -> Mapping[str, str]:
    """Give file names and what to write into them, in this order. Pure.

    The memory limit holds for swap too: a sandbox that swaps slows the whole machine down.
    """
    memory, quota = template.memory_bytes, template.cpu_milli * _PERIOD_US // 1000
    # gVisor needs a host thread for every thread inside, and some of its own.
    tasks = 2 * template.pids + _HOST_THREADS_PER_SANDBOX
    by_controller: dict[str, dict[str, str]]
    if hierarchy.version == 1:
        by_controller = {
            "memory": {
                "memory.limit_in_bytes": str(memory),
                "memory.memsw.limit_in_bytes": str(memory),
            },
            "pids": {"pids.max": str(tasks)},
            "cpu": {"cpu.cfs_period_us": str(_PERIOD_US), "cpu.cfs_quota_us": str(quota or -1)},
        }
    else:
        by_controller = {
            "memory": {
                "memory.max": str(memory),
                "memory.swap.max": "0",
                "memory.oom.group": "1",
            },
            "pids": {"pids.max": str(tasks)},
            "cpu": {"cpu.max": f"{quota or 'max'} {_PERIOD_US}"},
        }
    chosen: dict[str, str] = {}
    for controller in hierarchy.controllers:
        chosen |= by_controller[controller]
    return chosen


def oom_kills(folders: Sequence[str]) -> int:
    """Give how many processes of these groups the kernel killed for want of memory."""
    for folder in folders:
        for name in ("memory.oom_control", "memory.events"):
            for line in _read(f"{folder}/{name}").splitlines():
                key, _, value = line.partition(" ")
                if key == "oom_kill" and value.strip().isdigit():
                    return int(value)
    return 0


async def remove(folders: Sequence[str], *, tries: int = _EMPTY_TRIES) -> list[str]:
    """Kill what is left in these groups and remove them; give those that would not go away."""
    stuck = []
    killed: set[int] = set()
    for folder in folders:
        for _ in range(tries):
            killed |= _kill_all(folder)
            try:
                os.rmdir(folder)
            except FileNotFoundError:
                break
            except OSError:
                await asyncio.sleep(_EMPTY_PAUSE_S)
            else:
                break
        else:
            stuck.append(folder)
    for pid in killed:
        pidfd.reap(pid)
    return stuck


def _kill_all(folder: str) -> set[int]:
    # 0 is a process of a pid namespace that this one cannot see.
    pids = {int(pid) for pid in _read(f"{folder}/cgroup.procs").split()} - {0, os.getpid()}
    with suppress(OSError):
        _write(f"{folder}/cgroup.kill", "1")
    for pid in pids:
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    return pids


def find_cgroups(root: Path = Path("/"), *, uid: int) -> Cgroups:
    """Look where this process may make groups; version 1 and 2 may be mounted side by side.

    ``uid`` is this process's. ``root`` is where ``proc`` and ``sys`` are looked for (for tests).
    """
    own = _own_groups(_read(f"{root}/proc/self/cgroup"))
    mounts = _cgroup_mounts(_read(f"{root}/proc/self/mountinfo"))
    found: list[Hierarchy] = []
    missing = list(_CONTROLLERS)
    for controller in _CONTROLLERS:
        place = mounts.get(controller)
        if place is None or controller not in own:
            continue
        base = _joined(root, place, own[controller])
        if os.access(base, os.W_OK):
            found.append(Hierarchy(1, base, (controller,)))
            missing.remove(controller)
    if missing and "" in mounts and "" in own:
        found += _unified(root, mounts[""], own[""], missing, uid=uid)
    return Cgroups(tuple(found))


def _unified(
    root: Path, place: tuple[str, str], group: str, wanted: Sequence[str], *, uid: int
) -> list[Hierarchy]:
    """Find a version 2 group that may have limited children.

    A group with processes of its own cannot. So: the daemon's group if it hands controllers down
    already (the root of the tree may), the group above if it was delegated to this user (a systemd
    unit with ``Delegate=yes`` and ``DelegateSubgroup=``), or one that root makes beside the others.
    """
    own = _joined(root, place, group)
    above = os.path.dirname(own)
    bases = [own]
    if uid == 0:
        bases.append(f"{str(root).rstrip('/')}{place[1]}/torpor")
        with suppress(OSError):
            os.makedirs(bases[-1], exist_ok=True)
    elif _delegated(above, uid):
        bases.append(above)
    for base in bases:
        if base != own:
            _hand_down(base, wanted)
        usable = _read(f"{base}/cgroup.subtree_control").split()
        chosen = tuple(each for each in wanted if each in usable)
        if chosen and os.access(base, os.W_OK):
            return [Hierarchy(2, base, chosen)]
    return []


def _delegated(group: str, uid: int) -> bool:
    """Tell whether ``group`` was given to this user, and is free of processes."""
    try:
        owner = os.stat(group).st_uid
    except OSError:
        return False
    return owner == uid and not _read(f"{group}/cgroup.procs").split()


def _hand_down(group: str, controllers: Sequence[str]) -> None:
    for each in controllers:
        with suppress(OSError):
            _write(f"{group}/cgroup.subtree_control", f"+{each}")


def _own_groups(text: str) -> dict[str, str]:
    """Give the group of this process by version 1 controller; "" is version 2's."""
    groups = {}
    for line in text.splitlines():
        _, controllers, group = line.split(":", 2)
        for each in controllers.split(","):
            groups[each] = group
    return groups


def _cgroup_mounts(text: str) -> dict[str, tuple[str, str]]:
    """Give (root of the mount, mount point) by version 1 controller; "" is version 2's."""
    mounts = {}
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        fields, (kind, *rest) = left.split(), right.split()
        if kind == "cgroup2":
            mounts[""] = (fields[3], fields[4])
        elif kind == "cgroup":
            for option in rest[-1].split(","):
                mounts[option] = (fields[3], fields[4])
    return mounts


def _joined(root: Path, place: tuple[str, str], group: str) -> str:
    mount_root, point = place
    if mount_root not in ("/", "") and (group == mount_root or group.startswith(mount_root + "/")):
        group = group[len(mount_root) :]
    return f"{str(root).rstrip('/')}{point}{group}".rstrip("/")


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _write(path: str, text: str, *, optional: bool = False) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
    except OSError:
        if not optional:
            raise
