"""Random operations on a kernel beside a model of it: nothing lost, nothing twice, nothing left.

``SLEEP_SEED`` repeats a run, ``SLEEP_OPERATIONS`` sets its length; the seed is printed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import threading
import time
from ast import literal_eval
from collections.abc import Iterator
from pathlib import Path

import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager
from torpor.client import Client
from torpor.client_sleep import SleepClient
from torpor.config import user_paths
from torpor.errors import Busy, SandboxError

from tests.e2e.cells import begin, ended, reply_to, tell, value
from tests.e2e.sleeping import daemon_pid, do, sandbox_pids, snapshots, state, status, wait
from tests.home import start, stop, torpor_home

SEED = int(os.environ.get("SLEEP_SEED", "0")) or random.SystemRandom().randrange(1 << 31)
SHORT = 30
LONG = int(os.environ.get("SLEEP_OPERATIONS", "500"))

VERBS = ["hibernate", "wake", "freeze"]

pytestmark = [pytest.mark.runsc]


CONFIG = """
c.Torpor.templates = {{"default": {{"freeze_after_s": 0, "hibernate_after_s": 0}}}}
c.TorporDaemon.wake_ahead = {ahead}
"""


@pytest.fixture(params=[0, 1], ids=["", "ahead"])
def ahead(request: pytest.FixtureRequest) -> int:
    """How many sleepers have a sandbox that stands ready."""
    return int(request.param)


@pytest.fixture
def home(ahead: int) -> Iterator[Path]:
    with torpor_home(CONFIG.format(ahead=ahead)) as folder:
        yield folder


class Model:
    """The kernel and what it should know: ``done`` is every number that was appended, in order."""

    def __init__(self, home: Path, folder: Path, chance: random.Random, ahead: int) -> None:
        self.home = home
        self.ahead = ahead
        self.chance = chance
        self.folder = folder
        self.number = 0
        self.done: list[int] = []
        self.km: KernelManager
        self.kc: BlockingKernelClient
        self.km, self.kc = start(folder)
        self.fresh()

    def fresh(self) -> None:
        tell(self.kc, "done = []")
        self.done = []

    # -- operations --------------------------------------------------------------------------

    def execute(self) -> None:
        self.number += 1
        tell(self.kc, f"done.append({self.number})")
        self.done.append(self.number)

    def burst(self) -> None:
        asked = []
        for _ in range(self.chance.randint(2, 6)):
            self.number += 1
            self.done.append(self.number)
            asked.append(self.kc.execute(f"done.append({self.number})"))
        for each in asked:
            assert ended(self.kc, each, 30).error is None

    def hibernate(self) -> None:
        do(self.km, "hibernate")
        if self.ahead:
            time.sleep(self.chance.uniform(0, 0.8))  # it is there, or not yet, or just coming
        else:
            # One that a daemon has left which was killed in its last step is swept beside this.
            wait(lambda: not sandbox_pids(self.home), lambda: str(sandbox_pids(self.home)))

    def hibernate_and_execute(self) -> None:
        """An execute that comes at any moment of falling asleep."""
        said: list[BaseException] = []

        def sleep() -> None:
            try:
                do(self.km, "hibernate")
            except BaseException as exc:
                said.append(exc)

        falling = threading.Thread(target=sleep)
        falling.start()
        time.sleep(self.chance.uniform(0, 0.4))
        self.execute()
        falling.join()
        assert all(isinstance(each, Busy) for each in said), said

    def wake(self) -> None:
        do(self.km, "wake")

    def freeze(self) -> None:
        do(self.km, "freeze")

    def interrupt(self) -> None:
        self.km.interrupt_kernel()

    def interrupt_a_loop(self) -> None:
        asked = begin(self.kc, "while True: pass")
        self.km.interrupt_kernel()
        assert ended(self.kc, asked, 20).error == "KeyboardInterrupt"

    def restart(self) -> None:
        self.km.restart_kernel(now=self.chance.random() < 0.5)
        self.kc.wait_for_ready(timeout=60)
        self.fresh()

    def look(self) -> None:
        self._settle()
        before = status(self.km)
        assert reply_to(self.kc, self.kc.kernel_info(), 10)["status"] == "ok"
        assert status(self.km) == before

    def kill_daemon(self) -> None:
        os.kill(daemon_pid(self.home), signal.SIGKILL)
        assert self.km.is_alive()

    def end_daemon_in_the_middle(self) -> None:
        """Of whatever it was asked to do; by force, or as it is told to end."""
        verb = self.chance.choice(VERBS)
        with self._daemon_ends(), contextlib.suppress(SandboxError):
            do(self.km, verb)
        assert self.km.is_alive()

    def execute_while_the_daemon_ends(self) -> None:
        do(self.km, self.chance.choice(["hibernate", "freeze"]))
        self.number += 1
        with self._daemon_ends():
            asked = self.kc.execute(f"done.append({self.number})")
        assert self.km.is_alive()  # one that was told to end comes back for this
        assert ended(self.kc, asked, 30).error is None
        self.done.append(self.number)

    def leave(self) -> None:
        """Ask for something, hang up soon."""
        client = SleepClient(Client(user_paths()))
        verb, after_s = self.chance.choice(VERBS), self.chance.uniform(0, 0.35)

        async def ask() -> None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(after_s):
                    await client.do(str(self.km.kernel_id), verb)

        asyncio.run(ask())

    @contextlib.contextmanager
    def _daemon_ends(self) -> Iterator[None]:
        pid, after_s = daemon_pid(self.home), self.chance.uniform(0, 0.4)
        signum = self.chance.choice([signal.SIGKILL, signal.SIGTERM])

        def strike() -> None:
            time.sleep(after_s)
            os.kill(pid, signum)

        killer = threading.Thread(target=strike)
        killer.start()
        try:
            yield
        finally:
            killer.join()
            wait(lambda: not _lives(pid), lambda: f"torpord {pid} lives after {signum!r}")

    def kill_runsc(self) -> None:
        self._settle()
        if (pid := state(self.km)["sandbox"]["pid"]) is None:
            return
        os.kill(pid, signal.SIGKILL)
        wait(lambda: status(self.km) == "gone", lambda: str(state(self.km)))
        self.restart()

    def kill_runsc_in_the_middle(self) -> None:
        """Of falling asleep or waking: either it is as it was, or it has died and says so."""
        after_s, killed = self.chance.uniform(0, 0.35), []

        def strike() -> None:
            time.sleep(after_s)
            for pid in sandbox_pids(self.home):
                killed.append(pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

        killer = threading.Thread(target=strike)
        killer.start()
        with contextlib.suppress(SandboxError):
            do(self.km, self.chance.choice(VERBS))
        killer.join()
        wait(lambda: not any(map(_lives, killed)), lambda: str(killed))
        self._settle()
        if status(self.km) == "gone":
            self.restart()

    def _settle(self) -> None:
        """Until what somebody who has left asked for is done or undone: torpord may be about to begin with it."""
        time.sleep(0.1)
        wait(self._is_settled, lambda: str(state(self.km)))

    def _is_settled(self) -> bool:
        seen = state(self.km)
        pid = seen["sandbox"]["pid"]
        if seen["status"] in ("running", "frozen"):
            return pid is not None and _lives(pid)
        return seen["status"] in ("hibernated", "gone")

    def another_client(self) -> None:
        self.kc.stop_channels()
        self.kc = self.km.client()
        self.kc.start_channels()
        self.kc.wait_for_ready(timeout=30)

    def check(self) -> None:
        assert literal_eval(value(self.kc, "done")) == self.done


def _lives(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


WEIGHTS = {
    "execute": 10,
    "burst": 4,
    "hibernate": 10,
    "hibernate_and_execute": 6,
    "wake": 3,
    "freeze": 6,
    "interrupt": 3,
    "interrupt_a_loop": 1,
    "restart": 1,
    "look": 5,
    "kill_daemon": 2,
    "end_daemon_in_the_middle": 3,
    "execute_while_the_daemon_ends": 3,
    "leave": 4,
    "kill_runsc": 1,
    "kill_runsc_in_the_middle": 2,
    "another_client": 2,
    "check": 4,
}


@pytest.mark.parametrize(
    "operations",
    [
        pytest.param(SHORT, marks=pytest.mark.timeout(240)),
        pytest.param(LONG, marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
    ],
)
def test_random_operations(home: Path, tmp_path: Path, operations: int, ahead: int) -> None:
    print(f"SLEEP_SEED={SEED}")
    chance = random.Random(SEED)
    model = Model(home, tmp_path, chance, ahead)
    trail: list[str] = []
    try:
        for number in range(operations):
            name = chance.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
            trail.append(name)
            getattr(model, name)()
            if number % 10 == 9:
                model.check()
        model.check()
    except BaseException:
        print("the last of them:", trail[-12:], state(model.km))
        print((home / "state/torpord.log").read_text()[-6000:])
        raise
    finally:
        stop(model.km, model.kc)
    wait(lambda: not sandbox_pids(home), lambda: str(sandbox_pids(home)))
    assert snapshots() == []
    left = home / "state/k"
    wait(lambda: not list(left.iterdir()), lambda: str(list(left.iterdir())))
