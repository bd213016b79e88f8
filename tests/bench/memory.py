"""Memory of sandboxes as the kernel accounts it: proportional shares, so that what is shared counts once."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from tests.world import processes_of

MIB = 1 << 20


def _rollup(pid: int) -> dict[str, int]:
    """Give bytes by name from ``smaps_rollup``."""
    found = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        found[name] = int(rest.split()[0]) * 1024
    return found


def _children(pid: int) -> set[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return set()
    direct = {int(word) for word in text.split()}
    return direct.union(*(_children(each) for each in direct)) if direct else set()


def pss_bytes(home: Path) -> dict[str, Any]:
    """Give medians per sandbox of ``home``: PSS, and of it what is shared with others.

    The memory of the programs inside is a memory file of gVisor's: it is mapped by several of its
    processes, each of which has its part of it in its PSS.
    """
    sandboxes: list[dict[str, int]] = []
    everyone = processes_of(home, services=False)
    roots = [
        pid for pid, command in everyone.items() if " restore " in command or " run " in command
    ]
    tops = [pid for pid in roots if not any(pid in _children(other) for other in roots)]
    for pid in tops:
        total = {"pss": 0, "shared": 0, "rss": 0}
        for each in {pid, *_children(pid)}:
            try:
                rollup = _rollup(each)
            except OSError:
                continue
            total["pss"] += rollup.get("Pss", 0)
            total["rss"] += rollup.get("Rss", 0)
            total["shared"] += rollup.get("Shared_Clean", 0) + rollup.get("Shared_Dirty", 0)
        sandboxes.append(total)
    if not sandboxes:
        return {"sandboxes": 0}
    return {
        "sandboxes": len(sandboxes),
        **{
            f"{name}_mib": round(statistics.median(each[name] for each in sandboxes) / MIB, 1)
            for name in ("pss", "rss", "shared")
        },
    }
