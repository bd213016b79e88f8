"""Kernels that were clones sleep like any other: with their workspace, under its own path."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cells import tell, value
from tests.e2e.pool_home import LIGHT, PoolHome, claimed, pool_home, warm
from tests.e2e.sleeping import do, snapshots, status

pytestmark = [pytest.mark.runsc, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def home() -> Iterator[PoolHome]:
    with pool_home(LIGHT) as made:
        yield made


def test_a_claimed_kernel(home: PoolHome, tmp_path: Path) -> None:
    workspace = tmp_path / "ws"
    workspace.mkdir()
    (workspace / "there.txt").write_text("there")
    warm(home, workspace)
    with claimed(home, workspace) as (km, kc):
        tell(kc, "mine = open('mine.txt', 'w+'); mine.write('1'); mine.flush(); import os, random")
        place = value(kc, "os.getcwd(), os.uname().nodename, os.path.expanduser('~')")
        for night in (1, 2, 3):
            do(km, "hibernate")
            assert status(km) == "hibernated"
            (workspace / f"new{night}.txt").write_text(str(night))
            assert value(kc, "open('there.txt').read()") == "'there'"
            assert value(kc, f"open('new{night}.txt').read()") == f"'{night}'"
            tell(kc, f"mine.write('{night}'); mine.flush()")
            assert value(kc, "os.getcwd(), os.uname().nodename, os.path.expanduser('~')") == place
        assert (workspace / "mine.txt").read_text() == "1123"
        km.restart_kernel(now=True)
        kc.wait_for_ready(timeout=30)
        assert value(kc, "open('there.txt').read()") == "'there'"
        do(km, "hibernate")
        assert value(kc, "1 + 1") == "2"
    assert snapshots() == []
    home.wait_settled()


def test_two_of_one_golden(home: PoolHome, tmp_path: Path) -> None:
    warm(home, tmp_path)
    with claimed(home, tmp_path) as (one, first), claimed(home, tmp_path) as (other, second):
        tell(first, "who = 'first'; import random")
        tell(second, "who = 'second'; import random")
        for km in (one, other):
            do(km, "hibernate")
        drawn = {value(kc, "who, random.random()") for kc in (second, first)}
        assert len(drawn) == 2
        assert value(first, "who") == "'first'"
    home.wait_settled()
