"""torpord is killed before and after every step of falling asleep and waking: nothing is lost."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager
from torpor.errors import SandboxError

from tests.e2e import dying
from tests.e2e.cells import tell, value
from tests.e2e.sleeping import (
    do,
    generations,
    sandbox_pids,
    snapshots,
    state,
    status,
    wait,
    wait_status,
)
from tests.e2e.stores import QUIET, connected, places, store_home, torpor
from tests.home import start, stop, torpor_home

pytestmark = [pytest.mark.runsc, pytest.mark.timeout(580)]

Pair = tuple[KernelManager, BlockingKernelClient]
ALL = 10_000
COUNTING = """
import random, threading, time
x, ticks = 0, []
def tick():
    while True:
        ticks.append(len(ticks)); time.sleep(0.05)
threading.Thread(target=tick, daemon=True).start()
squares = (n * n for n in range(10**9))
"""


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    with torpor_home(QUIET + dying.config()) as folder:
        yield folder


@pytest.fixture(scope="module")
def stored_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """At rest, snapshots are in a store only."""
    url = f"file://{tmp_path_factory.mktemp('store')}/s"
    with store_home(url, {"local": "drop"}, dying.config()) as folder:
        yield folder


@contextmanager
def counting(home: Path, workspace: Path) -> Iterator[Pair]:
    km, kc = start(workspace)
    tell(kc, COUNTING)
    try:
        yield km, kc
    finally:
        take_down(home, km, kc)


def take_down(home: Path, km: KernelManager, kc: BlockingKernelClient) -> None:
    (home / "die").unlink(missing_ok=True)
    stop(km, kc)
    wait(lambda: not sandbox_pids(home), lambda: str(sandbox_pids(home)))
    for each in snapshots():
        # What has no name leaves the store by itself, maybe just now.
        torpor("snapshots", "rm", each["kernel_id"], str(each["generation"]), fails=None)


@pytest.fixture
def pair(home: Path, tmp_path: Path) -> Iterator[Pair]:
    with counting(home, tmp_path) as both:
        yield both


class Asked:
    """What was asked of one kernel, each time as the counter it has must say."""

    def __init__(self, home: Path, pair: Pair) -> None:
        self.home, (self.km, self.kc) = home, pair
        self.count = 0

    def arm(self, steps: int) -> None:
        (self.home / "marks").unlink(missing_ok=True)
        (self.home / "die").write_text(str(steps))

    def disarm(self) -> list[str]:
        """Give the steps that were taken."""
        (self.home / "die").unlink(missing_ok=True)
        return self.marks()

    def marks(self) -> list[str]:
        marks = self.home / "marks"
        return marks.read_text().splitlines() if marks.exists() else []

    def hibernate(self) -> None:
        try:
            do(self.km, "hibernate")
        except SandboxError as exc:
            print("hibernate:", exc)

    def execute(self) -> None:
        """Ask for something, which wakes it; it is done once, and nothing else is lost."""
        self.count += 1
        said = value(
            self.kc, "(x := x + 1), next(squares), (seen := ticks[:]) == list(range(len(seen)))"
        )
        assert said == f"({self.count}, {(self.count - 1) ** 2}, True)"

    def checkpoint(self) -> None:
        name = f"n{self.count}-{os.urandom(4).hex()}"
        ran = torpor("checkpoint", str(self.km.kernel_id), name)
        assert ran["kernel_id"] == self.km.kernel_id
        assert [each["name"] for each in snapshots()].count(name) == 1

    def fork(self) -> None:
        """It is made whole, with randomness of its own, or nothing is left of it."""
        state = torpor("fork", str(self.km.kernel_id), fails=None)
        print("fork:", state.get("error"))
        if "error" not in state:
            with connected(state) as fork:
                assert value(fork, "x") == str(self.count)
                drawn = [value(each, "random.random()") for each in (fork, self.kc)]
                assert drawn[0] != drawn[1]
        wait(lambda: len(self.kernels()) == 1, lambda: str(self.kernels()))
        wait(
            lambda: {each["kernel_id"] for each in snapshots()} <= {self.km.kernel_id},
            lambda: str(snapshots()),
        )

    def rollback(self) -> None:
        """It is as it was at the checkpoint, or as it was just now, and in nothing between."""
        torpor("rollback", str(self.km.kernel_id), f"at{self.count - 1}", fails=None)
        self.km.is_alive()
        now = int(value(self.kc, "x"))
        assert now in (self.count - 1, self.count)
        self.count = now

    def kernels(self) -> list[dict[str, Any]]:
        return list(torpor("kernels")["kernels"])

    def settled(self) -> None:
        """However far it came, it is one kernel in one sandbox with nothing beside it."""
        self.km.is_alive()  # as a server asks every few seconds
        self.execute()
        wait_status(self.km, "running")
        wait(
            lambda: len(list((self.home / "state/k").iterdir())) == 1,
            lambda: str(list((self.home / "state/k").iterdir())),
        )
        wait(lambda: self.drafts() == [], lambda: str(self.drafts()))

    def generation(self) -> int:
        return int(state(self.km)["sleep"]["generation"])

    def drafts(self) -> list[Path]:
        return list((self.home / "state/snapshots/+drafts").glob(".draft-*"))


def some(steps: int) -> list[int]:
    """Give some three steps, from a random one on."""
    seed = int(os.environ.get("SLEEP_SEED", random.randrange(1 << 30)))
    print(f"SLEEP_SEED={seed}")
    stride = max(5, steps // 3)
    return list(range(seed % stride, steps, stride))


@pytest.mark.parametrize(
    "verb",
    [
        "hibernate",
        "execute",
        *(pytest.param(v, marks=pytest.mark.slow) for v in ("checkpoint", "fork", "rollback")),
    ],
)
@pytest.mark.parametrize("which", ["some", pytest.param("all", marks=pytest.mark.slow)])
def test_killed_at_a_step(home: Path, pair: Pair, verb: str, which: str) -> None:
    asked = Asked(home, pair)

    def once(steps: int) -> list[str]:
        if verb == "execute":
            asked.km.is_alive()
            asked.hibernate()
            assert status(asked.km) == "hibernated"
        if verb == "rollback":
            torpor("checkpoint", str(asked.km.kernel_id), f"at{asked.count}")
            asked.execute()
        asked.km.is_alive()
        asked.arm(steps)
        began = time.monotonic()
        getattr(asked, verb)()
        took_s = time.monotonic() - began
        if steps == ALL and verb == "execute":  # what comes after the reply counts, too
            wait(lambda: "after answered" in asked.marks(), lambda: str(asked.marks()))
        elif steps == ALL:
            time.sleep(0.5)
        marks = asked.disarm()
        asked.settled()
        if verb == "rollback":
            for each in snapshots():
                if each["name"]:
                    torpor("snapshots", "rm", each["kernel_id"], each["name"])
        print(f"{steps}: {took_s:.2f} s, {time.monotonic() - began:.2f} s", marks[-1])
        return marks

    marks = once(ALL)
    assert len(marks) > 8, marks
    print(len(marks), marks)
    died = 0
    for number in range(len(marks)) if which == "all" else some(len(marks)):
        taken = once(number)
        died += len(taken) == number + 1
    assert died > 0
    if verb not in ("hibernate", "execute"):
        return
    asked.hibernate()
    asked.execute()
    wait(lambda: generations(asked.km) == [asked.generation()], lambda: str(snapshots()))


@pytest.mark.slow
@pytest.mark.parametrize("which", ["some", "all"])
def test_killed_on_the_way_to_the_store_and_back(
    stored_home: Path, tmp_path: Path, which: str
) -> None:
    with counting(stored_home, tmp_path) as pair:
        asked = Asked(stored_home, pair)

        def once(steps: int) -> list[str]:
            asked.km.is_alive()
            asked.arm(steps)
            asked.hibernate()
            wait(
                lambda: not (stored_home / "die").exists() or away(),
                lambda: str((places(asked.km), torpor("snapshots")["store"])),
            )
            asked.execute()
            marks = asked.disarm()
            asked.settled()
            print(steps, marks[-1])
            return marks

        def away() -> bool:
            found = places(asked.km).values()
            return status(asked.km) == "hibernated" and all(on == ["store"] for on in found)

        marks = once(ALL)
        print(len(marks), marks)
        assert {"before write", "before drop", "before adopt"} <= set(marks)
        died = 0
        for number in range(len(marks)) if which == "all" else some(len(marks)):
            died += len(once(number)) == number + 1
        assert died > 0
