"""kill -9 of daemon, client, runsc and kernel at random moments of a running workload.

After each blow: bounded recovery or a clear error, nothing repeated, nothing left. Twenty moments in all,
one of each five by default, the others with ``-m slow``; their seed is printed, ``CHAOS_SEED`` repeats a run.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager

from tests.e2e.cells import reply_to, value
from tests.e2e.sleeping import daemon_pid
from tests.home import start, torpor_home
from tests.world import processes_of, wait_clean

pytestmark = [pytest.mark.runsc, pytest.mark.timeout(240)]

SEED = int(os.environ.get("CHAOS_SEED", "0")) or random.SystemRandom().randrange(1 << 31)
MOMENTS = 5
QUICK = 1
WORKLOAD = "import time\nfor i in range({n}):\n    print(i, flush=True)\n    time.sleep({pause})"


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    print(f"CHAOS_SEED={SEED}")
    with torpor_home() as folder:
        yield folder


def moments(victim: str) -> list[Any]:
    """Give the seconds after the start of the workload at which ``victim`` is killed."""
    generator = random.Random(f"{SEED}-{victim}")
    found = [round(generator.uniform(0.0, 1.2), 3) for _ in range(MOMENTS)]
    return [*found[:QUICK], *(pytest.param(at, marks=pytest.mark.slow) for at in found[QUICK:])]


def sandbox_pids(home: Path) -> list[int]:
    return [p for p, c in processes_of(home, services=False).items() if "runsc" in c]


def numbers(kc: BlockingKernelClient, msg_id: str, *, until: float) -> tuple[list[int], bool]:
    """Give the numbers printed so far for ``msg_id`` and whether its cell came to idle."""
    text, idle = "", False
    while not idle and time.monotonic() < until:
        try:
            message = kc.get_iopub_msg(timeout=max(0.01, until - time.monotonic()))
        except Exception as error:
            if type(error).__name__ != "Empty":
                raise
            break
        if message["parent_header"].get("msg_id") != msg_id:
            continue
        content = message["content"]
        if message["msg_type"] == "stream" and content["name"] == "stdout":
            text += content["text"]
        idle = message["msg_type"] == "status" and content["execution_state"] == "idle"
    return [int(x) for x in text.split()], idle


@pytest.mark.parametrize("at", moments("daemon"))
def test_daemon(home: Path, tmp_path: Path, at: float) -> None:
    km, kc = start(tmp_path)
    ports = list(km.ports)
    msg_id = kc.execute(WORKLOAD.format(n=300, pause=0.005))
    time.sleep(at)
    os.kill(daemon_pid(home), signal.SIGKILL)
    assert km.is_alive()  # this call starts it again
    got, idle = numbers(kc, msg_id, until=time.monotonic() + 30)
    assert idle
    assert got == list(range(300))
    assert list(km.ports) == ports
    assert value(kc, "i") == "299"
    kc.stop_channels()
    km.shutdown_kernel(now=True)
    wait_clean(home)


def restart_after_death(km: KernelManager, kc: BlockingKernelClient) -> None:
    """The death is seen in bounded time, and the restarted kernel is a fresh one."""
    deadline = time.monotonic() + 10
    while km.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    km.restart_kernel(now=True)
    kc.wait_for_ready(timeout=30)
    assert value(kc, "'i' in globals()") == "False"


@pytest.mark.parametrize("at", moments("kernel"))
def test_kernel(home: Path, tmp_path: Path, at: float) -> None:
    km, kc = start(tmp_path)
    kc.execute("import os, threading, time, signal")
    blow = f"threading.Timer({at}, os.kill, (os.getpid(), signal.SIGKILL)).start()\n"
    msg_id = kc.execute(blow + WORKLOAD.format(n=5000, pause=0.002))
    got, idle = numbers(kc, msg_id, until=time.monotonic() + at + 1)
    assert not idle
    assert got == list(range(len(got)))
    restart_after_death(km, kc)
    kc.stop_channels()
    km.shutdown_kernel(now=True)
    wait_clean(home)


@pytest.mark.parametrize("at", moments("runsc"))
def test_runsc(home: Path, tmp_path: Path, at: float) -> None:
    km, kc = start(tmp_path)
    ports = list(km.ports)
    msg_id = kc.execute(WORKLOAD.format(n=5000, pause=0.002))
    time.sleep(at)
    generator = random.Random(f"{SEED}-{at}")
    os.kill(generator.choice(sandbox_pids(home)), signal.SIGKILL)
    got, idle = numbers(kc, msg_id, until=time.monotonic() + 1)
    assert not idle
    assert got == list(range(len(got)))
    restart_after_death(km, kc)
    assert list(km.ports) == ports
    kc.stop_channels()
    km.shutdown_kernel(now=True)
    wait_clean(home)


CLIENT = """
import sys, json, time
sys.path.insert(0, {repo!r})
from pathlib import Path
from tests.home import start
km, kc = start(Path({cwd!r}))
kc.execute({code!r})
print(json.dumps({{"file": km.connection_file}}), flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("at", moments("client"))
def test_client(home: Path, tmp_path: Path, at: float) -> None:
    repo = str(Path(__file__).parents[2])
    code = CLIENT.format(repo=repo, cwd=str(tmp_path), code=WORKLOAD.format(n=5000, pause=0.002))
    env = {**os.environ, "TMPDIR": str(tmp_path)}  # its connection file outlives it
    client = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=env
    )
    assert client.stdout is not None
    assert json.loads(client.stdout.readline())
    try:
        time.sleep(at)
        assert sandbox_pids(home)
    finally:
        client.kill()
        client.wait()
        client.stdout.close()
    wait_clean(home, within_s=20)


def test_a_second_client_goes_on_when_the_first_is_killed(home: Path, tmp_path: Path) -> None:
    km, kc = start(tmp_path)
    file = km.connection_file
    code = (
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
        "from jupyter_client.blocking import BlockingKernelClient as C\n"
        "from tests.e2e.cells import wait_ready\n"
        f"kc = C(); kc.load_connection_file({file!r}); kc.start_channels(); wait_ready(kc)\n"
        "kc.execute('for n in range(10**9): print(n, flush=True)')\n"
        "while kc.get_iopub_msg(timeout=30)['msg_type'] != 'stream': pass\n"  # else nothing is interrupted
        "print('go', flush=True)\nimport time; time.sleep(600)"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    try:
        assert other.stdout.readline() == "go\n"
        other.kill()
        other.wait()
        km.interrupt_kernel()
        deadline = time.monotonic() + 30
        while reply_to(kc, kc.execute("1 + 1"), 30)["status"] != "ok":  # queued ones are aborted
            assert time.monotonic() < deadline
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
        kc.stop_channels()
        km.shutdown_kernel(now=True)
    wait_clean(home)
