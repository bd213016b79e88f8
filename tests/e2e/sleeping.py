"""Put kernels to sleep, look at them, and wait for what the daemon does by itself."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager
from torpor.client import Client
from torpor.client_sleep import SleepClient
from torpor.config import user_paths

from tests.home import start, stop
from tests.world import processes_of, whole_lines, without_new_children

WAIT_S = 20.0


def do(km: KernelManager, verb: str) -> dict[str, Any]:
    """Have torpord do ``verb`` (hibernate, freeze, wake, pin, unpin); give the kernel's state."""
    assert km.kernel_id is not None
    return asyncio.run(SleepClient(Client(user_paths())).do(km.kernel_id, verb))


def state(km: KernelManager) -> dict[str, Any]:
    """Give what torpord tells of a kernel."""
    assert km.kernel_id is not None
    return asyncio.run(Client(user_paths()).kernel(km.kernel_id))


def status(km: KernelManager) -> str:
    """Give the one word for how a kernel is."""
    return str(state(km)["status"])


def wait_status(km: KernelManager, wanted: str, within_s: float = WAIT_S) -> None:
    """Return once torpord says ``wanted`` of a kernel."""
    wait(lambda: status(km) == wanted, lambda: f"{state(km)}", within_s)


def wait(reached: Callable[[], bool], seen: Callable[[], str], within_s: float = WAIT_S) -> None:
    """Return once ``reached``; AssertionError, with what is ``seen`` then, after ``within_s``."""
    deadline = time.monotonic() + within_s
    while not reached():
        assert time.monotonic() < deadline, seen()
        time.sleep(0.02)


def snapshots() -> list[dict[str, Any]]:
    """Give the snapshots on disk."""
    return asyncio.run(SleepClient(Client(user_paths())).snapshots())


def generations(km: KernelManager) -> list[int]:
    """Give the generations of a kernel that are on disk."""
    return [each["generation"] for each in snapshots() if each["kernel_id"] == km.kernel_id]


def sandbox_pids(home: Path) -> list[int]:
    """Give the processes of all sandboxes."""
    return sorted(processes_of(home, services=False))


@contextmanager
def own_kernel(home: Path, folder: Path) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    """Give a kernel of a test's own; afterwards no sandbox is left in ``home``."""
    folder.mkdir(exist_ok=True)
    km, kc = start(folder)
    yield km, kc
    stop(km, kc)
    wait(lambda: not sandbox_pids(home), lambda: str(sandbox_pids(home)))


def daemon_pid(home: Path) -> int:
    """Give the process of torpord."""
    [pid] = daemons(home)
    return pid


def daemons(home: Path) -> list[int]:
    """Give the processes of torpord. A child that it has just made looks like it for a moment: that is none."""
    found = [pid for pid, command in processes_of(home).items() if "torpor.daemon" in command]
    return without_new_children(found)


def events(home: Path, name: str) -> list[dict[str, Any]]:
    """Give what the daemon's log says of one kind of event, oldest first."""
    lines = whole_lines(home / "state" / "torpord.log")
    return [body for line in lines if (body := json.loads(line)).get("event") == name]
