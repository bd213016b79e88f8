"""A hibernated kernel costs the endpoints that its clients know, and nothing else."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from torpor.client import Client
from torpor.client_sleep import SleepClient
from torpor.config import user_paths

from tests.descriptors import descriptors
from tests.e2e.cells import value
from tests.e2e.sleeping import do, sandbox_pids, wait
from tests.home import start, stop, torpor_home
from tests.world import spare_launchers

pytestmark = [pytest.mark.runsc, pytest.mark.timeout(120)]

KERNELS = 3
SPARES = 2


def test_no_process_no_thread_and_no_descriptor(tmp_path: Path) -> None:
    config = 'c.Torpor.templates = {"default": {"freeze_after_s": 0, "hibernate_after_s": 0}}\n'
    with torpor_home(config) as home:
        pairs = []
        try:
            pairs.append(start(tmp_path))
            do(pairs[0][0], "hibernate")
            busy_at_once()
            before = settled(home)
            for _ in range(KERNELS):
                pairs.append(start(tmp_path))
                do(pairs[-1][0], "hibernate")
            after = settled(home)
            assert sandbox_pids(home) == []
            grown = after - before
            assert grown["other"] == 0, grown
            assert grown["threads"] == 0, grown
            assert grown["listening"] == 5 * KERNELS
            assert grown["mailboxes"] == 5 * KERNELS
            assert value(pairs[1][1], "1 + 1") == "2"
        finally:
            for pair in pairs:
                stop(*pair)


def busy_at_once() -> None:
    """Have torpord start the few threads that it has for short work, which it does when it needs them."""

    async def ask() -> None:
        client = SleepClient(Client(user_paths()))
        for _ in range(5):
            await asyncio.gather(*(client.snapshots() for _ in range(30)))

    asyncio.run(ask())


def settled(home: Path):
    """Count when nothing is on its way any more: two counts in a row are the same.

    torpord has its spare launchers then, too, which it makes a moment after it needed one, and reads no
    snapshot for its digests, which it does seconds after it made one.
    """
    kept = str(home / "state/snapshots")
    counts = [descriptors(home)]

    def quiet() -> bool:
        if len(spare_launchers(home)) < SPARES:
            return False
        counts.append(descriptors(home))
        if any(kept in name for name in counts[-1]):
            return False
        return all(counts[-1][name] == counts[-2][name] for name in ("other", "threads", "clients"))

    wait(quiet, lambda: str(counts[-2:]))
    return counts[-1]
