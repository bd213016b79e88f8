"""Kernels that sleep, through the unmodified client: nothing lost, nothing woken for nothing."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager
from torpor.errors import Busy, SandboxGone

from tests.e2e.cells import begin, ended, reply_to, run, tell, value
from tests.e2e.sleeping import (
    daemon_pid,
    do,
    events,
    own_kernel,
    sandbox_pids,
    snapshots,
    state,
    status,
    wait,
    wait_status,
)
from tests.home import start, stop, torpor_home, write_kernelspec

pytestmark = [pytest.mark.runsc, pytest.mark.timeout(240)]

Pair = tuple[KernelManager, BlockingKernelClient]


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    with torpor_home('c.Torpor.templates = {"default": {"freeze_after_s": 0}}\n') as folder:
        yield folder


@pytest.fixture
def pair(home: Path, tmp_path: Path) -> Iterator[Pair]:
    with own_kernel(home, tmp_path) as started:
        yield started
    assert snapshots() == []


def test_ten_nights(home: Path, pair: Pair) -> None:
    """The second cycle is where others lose state."""
    km, kc = pair
    tell(kc, "import os; seen = [os.getpid()]")
    ports = list(km.ports)
    for night in range(10):
        slept = do(km, "hibernate")
        assert (slept["status"], slept["sleep"]["generation"]) == ("hibernated", night + 1)
        assert sandbox_pids(home) == []
        # the one before as well
        assert generations() == [max(night, 1), night + 1][-night - 1 :]
        assert value(kc, "seen.append(os.getpid()); len(seen)") == str(night + 2)
        wait_status(km, "running")
        wait(lambda: generations() == [night + 1], lambda: str(generations()))  # noqa: B023
    assert value(kc, "len(set(seen))") == "1"
    assert value(kc, "get_ipython().execution_count") == "14"
    assert list(km.ports) == ports
    assert generations() == [10]


def generations() -> list[int]:
    return [each["generation"] for each in snapshots()]


def test_output_of_before_comes_once_and_of_after_as_well(pair: Pair) -> None:
    km, kc = pair
    assert run(kc, "print('one')").stdout == "one\n"
    do(km, "hibernate")
    ran = run(kc, "print('two'); 3")
    assert (ran.stdout, ran.result) == ("two\n", "3")
    kinds = [each["msg_type"] for each in ran.messages]
    assert kinds.count("status") == 2
    assert kinds.count("execute_input") == 1


def test_who_only_looks_wakes_nobody(home: Path, pair: Pair) -> None:
    km, kc = pair
    do(km, "hibernate")
    reply = reply_to(kc, kc.kernel_info(), 5)
    assert reply["language_info"]["name"] == "python"
    assert reply_to(kc, kc.comm_info(), 5)["status"] == "ok"
    wait(kc.hb_channel.is_beating, lambda: "its heart does not beat")
    another = km.client()
    another.start_channels()
    try:
        another.wait_for_ready(timeout=10)
    finally:
        another.stop_channels()
    assert km.is_alive()
    assert status(km) == "hibernated"
    assert sandbox_pids(home) == []


@pytest.mark.parametrize(
    "kind",
    [
        "complete",
        *(pytest.param(k, marks=pytest.mark.slow) for k in ("inspect", "is_complete", "history")),
    ],
)
def test_intent_wakes(pair: Pair, kind: str) -> None:
    km, kc = pair
    tell(kc, "some_variable = 7")
    do(km, "hibernate")
    asked = {
        "complete": lambda: kc.complete("some_var", 8),
        "inspect": lambda: kc.inspect("some_variable", 5),
        "is_complete": lambda: kc.is_complete("1"),
        "history": lambda: kc.history(hist_access_type="tail", n=3),
    }[kind]()
    reply = reply_to(kc, asked, 120)  # jedi parses builtins first, without a cache
    assert reply["status"] in ("ok", "complete")
    if kind == "complete":
        assert reply["matches"] == ["some_variable"]
    wait_status(km, "running")


def test_messages_of_the_night_are_handled_once_and_in_order(pair: Pair) -> None:
    km, kc = pair
    tell(kc, "done = []")
    do(km, "hibernate")
    asked = [kc.execute(f"done.append({number})") for number in range(20)]
    for each in asked:
        assert reply_to(kc, each, 30)["status"] == "ok"
    assert value(kc, "done") == str(list(range(20)))


def test_busy_kernels_are_left_alone(pair: Pair, tmp_path: Path) -> None:
    km, kc = pair
    asked = begin(kc, "import os, time\nwhile not os.path.exists('end'): time.sleep(0.05)")
    with pytest.raises(Busy, match="a cell is running"):
        do(km, "hibernate")
    (tmp_path / "end").touch()
    assert ended(kc, asked).error is None
    do(km, "hibernate")
    assert value(kc, "1") == "1"


def test_who_waits_for_input_is_left_alone(pair: Pair) -> None:
    km, kc = pair
    asked = kc.execute("answer = input('name? ')", allow_stdin=True)
    kc.get_stdin_msg(timeout=10)
    with pytest.raises(Busy, match="input"):
        do(km, "hibernate")
    with pytest.raises(Busy, match="input"):
        do(km, "freeze")
    wait(lambda: "input()" in state(km)["sleep"]["outlook"], lambda: str(state(km)["sleep"]))
    kc.input("Ada")
    assert reply_to(kc, asked, 10)["status"] == "ok"
    assert value(kc, "answer") == "'Ada'"


def test_right_after_a_reply_it_may_sleep(pair: Pair) -> None:
    """As agents do: a kernel says that it is idle only after it has replied."""
    km, kc = pair
    for number in range(20):
        assert reply_to(kc, kc.execute(f"x = {number}"), 20)["status"] == "ok"
        do(km, "freeze")
    assert reply_to(kc, kc.execute("y = x + 1"), 20)["status"] == "ok"
    do(km, "hibernate")
    assert value(kc, "y") == "20"


def test_interrupt_of_a_sleeper_means_nothing(pair: Pair) -> None:
    km, kc = pair
    tell(kc, "x = 5")
    do(km, "hibernate")
    km.interrupt_kernel()
    assert status(km) == "hibernated"
    assert value(kc, "x") == "5"


@pytest.mark.slow
def test_restart_of_a_sleeper_keeps_its_files(pair: Pair) -> None:
    km, kc = pair
    tell(kc, "x = 5; open('/tmp/kept', 'w').write('kept')")
    do(km, "hibernate")
    km.restart_kernel(now=True)
    kc.wait_for_ready(timeout=30)
    assert value(kc, "'x' in globals()") == "False"
    assert value(kc, "open('/tmp/kept').read()") == "'kept'"


def test_gentle_restart_of_a_sleeper(pair: Pair) -> None:
    km, kc = pair
    tell(kc, "x = 5; open('/tmp/kept', 'w').write('kept')")
    do(km, "hibernate")
    km.restart_kernel(now=False)
    kc.wait_for_ready(timeout=30)
    assert value(kc, "'x' in globals(), open('/tmp/kept').read()") == "(False, 'kept')"


@pytest.mark.parametrize("now", [pytest.param(True, marks=pytest.mark.slow), False])
def test_shutdown_of_a_sleeper_wakes_nobody(home: Path, tmp_path: Path, now: bool) -> None:
    km, kc = start(tmp_path)
    do(km, "hibernate")
    woken = len(events(home, "woken"))
    kernel_id = km.kernel_id
    # One that does not end when it is asked to would be sent a signal only after half of this.
    km.shutdown_wait_time = 60
    before = time.monotonic()
    kc.stop_channels()
    km.shutdown_kernel(now=now)
    assert time.monotonic() - before < 10
    assert len(events(home, "woken")) == woken
    assert snapshots() == []
    km.kernel_id = kernel_id
    with pytest.raises(SandboxGone):
        state(km)


def test_frozen_kernels_use_no_processor_and_wake_at_once(home: Path, pair: Pair) -> None:
    km, kc = pair
    tell(kc, "import threading, time; ticks = [0]")
    tell(
        kc,
        "def burn():\n while True: ticks[0] += 1; time.sleep(0.001)\n"
        "threading.Thread(target=burn, daemon=True).start()",
    )
    assert do(km, "freeze")["status"] == "frozen"
    assert reply_to(kc, kc.kernel_info(), 5)["status"] == "ok"
    assert status(km) == "frozen"
    before = used_s(home)
    time.sleep(1)
    assert used_s(home) == before
    assert int(value(kc, "ticks[0]")) > 0
    assert status(km) == "running"
    do(km, "freeze")
    assert do(km, "hibernate")["status"] == "hibernated"
    assert int(value(kc, "ticks[0]")) > 0


def used_s(home: Path) -> list[tuple[int, float]]:
    """Give the processor time of each process of the sandboxes."""
    from torpor.runsc.family import family

    return [(pid, family(pid)[0].cpu_s) for pid in sandbox_pids(home)]


@pytest.mark.parametrize("asleep", [True, False])
def test_the_daemon_dies(home: Path, pair: Pair, asleep: bool) -> None:
    km, kc = pair
    tell(kc, "x = 1")
    do(km, "hibernate" if asleep else "freeze")
    os.kill(daemon_pid(home), signal.SIGKILL)
    assert status(km) == ("hibernated" if asleep else "running")
    assert value(kc, "x += 1; x") == "2"
    do(km, "hibernate")
    assert value(kc, "x += 1; x") == "3"


def test_the_daemon_dies_and_somebody_has_asked_meanwhile(home: Path, pair: Pair) -> None:
    km, kc = pair
    tell(kc, "x = 1")
    do(km, "hibernate")
    os.kill(daemon_pid(home), signal.SIGKILL)
    asked = kc.execute("x += 1")
    time.sleep(0.3)
    wait_status(km, "running")
    assert reply_to(kc, asked, 10)["status"] == "ok"
    assert value(kc, "x") == "2"


def test_clocks_are_right_after_a_night(pair: Pair) -> None:
    km, kc = pair
    tell(kc, "import time, threading; began = time.monotonic(); t = threading.Timer(1, print)")
    tell(kc, "t.start()")
    do(km, "hibernate")
    time.sleep(1.5)
    before = time.time()
    told = float(value(kc, "time.time()"))
    assert before - 0.3 < told < time.time() + 0.3
    assert value(kc, "t.join(5); t.is_alive()") == "False"


def test_tier_by_policy(tmp_path: Path) -> None:
    """Each tier lasts for seconds, so that who looks late finds it. Beside it another kernel is pinned."""
    config = (
        'c.Torpor.templates = {"default": {"freeze_after_s": 2.1, "hibernate_after_s": 7,'
        ' "expire_after_s": 0, "count_background": False}, "short": {"freeze_after_s": 0,'
        ' "hibernate_after_s": 2.1, "expire_after_s": 0, "count_background": False}}\n'
    )
    with torpor_home(config) as home:
        stanza = {"provisioner_name": "torpor-provisioner", "config": {"template": "short"}}
        write_kernelspec(home / "jupyter", "short", metadata={"kernel_provisioner": stanza})
        pinned = start(tmp_path, kernel_name="short")
        do(pinned[0], "pin")
        do(pinned[0], "wake")  # should it sleep already
        theirs = set(sandbox_pids(home))
        km, kc = start(tmp_path)
        told_s = time.monotonic()
        tell(kc, "x = 1")
        tier, looked_s = state(km)["sleep"]["tier"], time.monotonic()
        assert tier == "awake" or looked_s - told_s > 2
        wait_status(km, "frozen")
        wait(lambda: "hibernate" in state(km)["sleep"]["outlook"], lambda: str(state(km)))
        wait_status(km, "hibernated")
        wait(lambda: theirs.issuperset(sandbox_pids(home)), lambda: str(sandbox_pids(home)))
        assert value(kc, "x") == "1"
        assert status(pinned[0]) == "running"
        assert "pinned" in state(pinned[0])["sleep"]["outlook"]
        do(pinned[0], "unpin")
        wait_status(pinned[0], "hibernated")
        stop(km, kc)
        stop(*pinned)


@pytest.mark.slow
def test_sleepers_expire(tmp_path: Path) -> None:
    config = (
        'c.Torpor.templates = {"default": {"freeze_after_s": 0, "hibernate_after_s": 2.1,'
        ' "expire_after_s": 2.5}}\n'
    )
    with torpor_home(config) as home:
        km, kc = start(tmp_path)
        wait(lambda: bool(events(home, "hibernated")), lambda: "it does not fall asleep")
        wait(lambda: not (home / "state/snapshots" / str(km.kernel_id)).exists(), lambda: "kept")
        wait(lambda: is_gone(km), lambda: "it is still there")
        assert events(home, "expired")
        stop(km, kc)


def is_gone(km: KernelManager) -> bool:
    try:
        state(km)
    except SandboxGone:
        return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("counts", [True, False])
def test_work_in_the_background_is_the_templates_choice(tmp_path: Path, counts: bool) -> None:
    config = (
        'c.Torpor.templates = {"default": {"freeze_after_s": 0, "hibernate_after_s": 3,'
        f' "count_background": {counts}}}}}\n'
    )
    burn = (
        "import threading, time\n"
        "def burn():\n"
        "    while True:\n"
        "        sum(range(100_000)); time.sleep(0.005)\n"
        "threading.Thread(target=burn, daemon=True).start()"
    )
    with torpor_home(config):
        km, kc = start(tmp_path)
        tell(kc, burn)
        if counts:
            time.sleep(8)
            assert status(km) == "running"
            # One look may come when it just got little of the processor.
            wait(lambda: "background" in state(km)["sleep"]["outlook"], lambda: str(state(km)))
        else:
            wait_status(km, "hibernated")
            assert value(kc, "threading.active_count() > 1") == "True"
        stop(km, kc)


@pytest.mark.parametrize("now", [pytest.param(True, marks=pytest.mark.slow), False])
def test_restart_after_the_sandbox_was_killed(home: Path, pair: Pair, now: bool) -> None:
    """The gentle way first asks the dead kernel to shut down; that must not reach its successor."""
    km, kc = pair
    os.kill(state(km)["sandbox"]["pid"], signal.SIGKILL)
    wait_status(km, "gone")
    km.restart_kernel(now=now)
    kc.wait_for_ready(timeout=30)
    time.sleep(0.5)
    assert value(kc, "1 + 1") == "2"
    assert km.is_alive()
