"""A hibernated kernel costs the endpoints that its clients know, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.descriptors import descriptors
from tests.e2e.cells import value
from tests.e2e.sleeping import do, sandbox_pids, wait
from tests.home import start, stop, torpor_home

pytestmark = [pytest.mark.runsc, pytest.mark.timeout(120)]

KERNELS = 3


def test_no_process_no_thread_and_no_descriptor(tmp_path: Path) -> None:
    config = 'c.Torpor.templates = {"default": {"freeze_after_s": 0, "hibernate_after_s": 0}}\n'
    with torpor_home(config) as home:
        pairs = []
        try:
            pairs.append(start(tmp_path))
            do(pairs[0][0], "hibernate")
            before = settled(home)
            for _ in range(KERNELS):
                pairs.append(start(tmp_path))
                do(pairs[-1][0], "hibernate")
            after = settled(home)
            assert sandbox_pids(home) == []
            grown = {name: count for name, count in (after - before).items() if name != "rss"}
            assert {n for n in grown if n not in ("listening", "mailboxes", "clients")} == set()
            assert grown["listening"] == 5 * KERNELS
            assert grown["mailboxes"] == 5 * KERNELS
            assert value(pairs[1][1], "1 + 1") == "2"
        finally:
            for pair in pairs:
                stop(*pair)


def settled(home: Path):
    """Count when nothing is on its way any more: two counts in a row are the same."""
    counts = [descriptors(home)]

    def quiet() -> bool:
        counts.append(descriptors(home))
        return all(counts[-1][name] == counts[-2][name] for name in ("other", "threads", "clients"))

    wait(quiet, lambda: str(counts[-2:]))
    return counts[-1]
