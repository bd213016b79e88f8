"""Claim after claim while waiting clones are killed at random: every kernel is right, nothing leaks.

The seed is printed; ``CHAOS_SEED`` repeats a run, ``CHAOS_CLAIMS`` sets how many claims there are.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.e2e.cells import value
from tests.home import start, stop
from tests.integration.pool.pooled import PoolHome, eventually, nothing_is_left, pool_home

SEED = int(os.environ.get("CHAOS_SEED", "0")) or random.SystemRandom().randrange(1 << 31)
CLAIMS = int(os.environ.get("CHAOS_CLAIMS", "0"))

pytestmark = [
    pytest.mark.slow,  # minutes: `make slow`
    pytest.mark.runsc,
]


RESTORED_AFTER_S = 1.5


def age_s(pid: int) -> float:
    """Give how long a process has lived."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    up_s = float(Path("/proc/uptime").read_text().split()[0])
    return up_s - int(fields[19]) / os.sysconf("SC_CLK_TCK")


@contextmanager
def killing(home: PoolHome, chance: random.Random, every_s: float) -> Iterator[Counter[str]]:
    """Meanwhile kill a random waiting clone every now and then; give how many were."""
    killed: Counter[str] = Counter()
    over = threading.Event()

    def kill() -> None:
        while not over.wait(chance.uniform(0, 2 * every_s)):
            with suppress(Exception):  # the registry may be between two states
                victims = [pid for pid in home.clones() if age_s(pid) > RESTORED_AFTER_S]
                if victims:
                    os.kill(chance.choice(victims), signal.SIGKILL)
                    killed["clones"] += 1

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def claims(home: PoolHome, folders: list[Path], chance: random.Random, count: int) -> None:
    """Start ``count`` kernels one after the other, each in one of ``folders``, and check each."""
    seen: set[str] = set()
    for number in range(count):
        folder = chance.choice(folders)
        km, kc = start(folder)
        try:
            token = f"{number}-{chance.randrange(1 << 30)}"
            (folder / "asked").write_text(token)
            code = (
                "import os, uuid; open('told', 'w').write(open('asked').read() + str(uuid.uuid4()));"
                f" (os.getcwd() == {str(folder)!r}, {token!r}[::-1], 'token' in globals())"
            )
            assert value(kc, code) == repr((True, token[::-1], False)), number
            value(kc, f"token = {token!r}; token")
            told = (folder / "told").read_text()
            assert told.startswith(token), number
            assert told[len(token) :] not in seen, "two kernels drew the same random number"
            seen.add(told[len(token) :])
        finally:
            stop(km, kc)
        time.sleep(chance.choice((0.0, 0.0, 0.2, 0.5)))


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def chaos(golden: Path, tmp_path: Path, count: int, *, every_s: float) -> None:
    print(f"CHAOS_SEED={SEED}")
    chance = random.Random(SEED)
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
    with pool_home() as home:
        home.plant(golden)
        claims(home, folders, chance, 4)
        pid = home.daemon_pid()
        before = descriptors(pid)
        with killing(home, random.Random(SEED + 1), every_s) as killed:
            claims(home, folders, chance, count)
        how = Counter(home.launches())
        print(f"{how}, killed: {killed['clones']}, {home.counters()}")
        assert sum(how.values()) == count + 4
        assert how["claimed"] > 0
        assert killed["clones"] > 0
        assert home.daemon_pid() == pid, "the daemon has died"
        assert not [line for line in home.log() if line["event"] == "task failed"]
        rested(home)
        assert descriptors(pid) <= before + 10, "descriptors leak"
        assert len(home.unclaimed()) <= 8
        eventually(
            lambda: {each.name for each in home.paths.kernels.iterdir()} == set(home.unclaimed()),
            "there is a folder of each clone, and no other",
        )
        nothing_is_left(home)


def rested(home: PoolHome, within_s: float = 20) -> None:
    """Return once nothing is being restored any more."""
    ends_at = time.monotonic() + within_s
    while any(shape["starting"] for shape in home.pool()["shapes"]):
        assert time.monotonic() < ends_at, home.pool()
        time.sleep(0.1)


@pytest.mark.timeout(180)
def test_forty_claims(golden: Path, tmp_path: Path) -> None:
    chaos(golden, tmp_path, 40, every_s=1.5)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_thousand_claims(golden: Path, tmp_path: Path) -> None:
    chaos(golden, tmp_path, CLAIMS or 1000, every_s=2.0)
