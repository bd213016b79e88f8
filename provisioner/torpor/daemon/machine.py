"""What this machine has left, read from ``/proc``."""

from __future__ import annotations

import os
from pathlib import Path

_PROC = Path("/proc")


def available_bytes(proc: Path = _PROC) -> int:
    """Give how much memory programs can still have without swapping (``MemAvailable``)."""
    for line in (proc / "meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    return 0


def processors_are_busy(proc: Path = _PROC) -> bool:
    """Whether programs wait for a processor most of the time, over the last ten seconds.

    From the kernel's pressure stall figures; without them, from the load.
    """
    try:
        some = (proc / "pressure/cpu").read_text().split("avg10=", 1)[1]
        return float(some.split()[0]) > 50.0
    except (OSError, IndexError, ValueError):
        load = float((proc / "loadavg").read_text().split()[0])
        return load > 2 * (os.cpu_count() or 1)
