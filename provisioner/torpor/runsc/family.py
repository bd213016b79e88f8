"""The processes of a sandbox, as the host sees them: its first one and all that descend from it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Member:
    """One process: its state as in ``/proc/PID/stat`` and the processor time it has used."""

    pid: int
    parent: int
    state: str
    cpu_s: float


def family(pid: int) -> list[Member]:
    """Give ``pid`` and everything that descends from it, parents first; nothing when it is gone."""
    children: dict[int, list[int]] = {}
    members: dict[int, Member] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and (seen := _stat(entry.path)) is not None:
            members[seen.pid] = seen
            children.setdefault(seen.parent, []).append(seen.pid)
    found: list[Member] = []
    left = [pid]
    while left:
        each = left.pop(0)
        if each in members:
            found.append(members[each])
            left += children.get(each, [])
    return found


def works(pid: int) -> bool:
    """Whether any thread of a process is running, or would if it were let."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return False
    return any(
        seen.state == "R"
        for thread in threads
        if (seen := _stat(f"/proc/{pid}/task/{thread}")) is not None
    )


def _stat(folder: str) -> Member | None:
    try:
        text = Path(folder, "stat").read_bytes()
    except OSError:
        return None
    fields = text.rpartition(b")")[2].split()  # from field 3 on: proc_pid_stat(5)
    used_s = (int(fields[11]) + int(fields[12])) / _TICKS
    pid = int(os.path.basename(folder))
    return Member(pid, int(fields[1]), fields[0].decode(), used_s)
