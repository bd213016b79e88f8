"""Freezing harms nobody, however often, and stops what computes without asking anybody."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager
from torpor.runsc.family import family

from tests.e2e.cells import tell, value
from tests.e2e.sleeping import do, state, status, wait
from tests.home import start, stop, torpor_home

pytestmark = [pytest.mark.runsc, pytest.mark.timeout(180)]

Pair = tuple[KernelManager, BlockingKernelClient]
CONFIG = 'c.Torpor.templates = {"default": {"freeze_after_s": 0, "hibernate_after_s": 0}}\n'
OFTEN = 120
"""gVisor 20260905 gave a kernel whose processes were all stopped a SIGSEGV after 16 to 32 times."""

BUSY = """
import threading, hashlib
left = [True]
def compute():
    while left[0]:
        hashlib.pbkdf2_hmac("sha256", b"x", b"y", 3_000_000)  # seconds without a system call
thread = threading.Thread(target=compute)
thread.start()
"""


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    with torpor_home(CONFIG) as folder:
        yield folder


@pytest.fixture
def pair(home: Path, tmp_path: Path) -> Iterator[Pair]:
    km, kc = start(tmp_path)
    yield km, kc
    stop(km, kc)


@pytest.mark.slow
def test_again_and_again(pair: Pair) -> None:
    km, kc = pair
    tell(kc, "done = 0")
    for _ in range(OFTEN):
        do(km, "freeze")
        tell(kc, "done += 1")
    assert value(kc, "done") == str(OFTEN)


def used_s(pid: int) -> float:
    return sum(each.cpu_s for each in family(pid))


def test_what_computes_without_system_calls(pair: Pair) -> None:
    km, kc = pair
    tell(kc, BUSY)
    pid = state(km)["sandbox"]["pid"]
    began = used_s(pid)
    wait(lambda: used_s(pid) - began > 0.2, lambda: f"{used_s(pid) - began}: it does not compute")
    for _ in range(3):
        do(km, "freeze")
        assert status(km) == "frozen"
        before = used_s(pid)
        time.sleep(0.5)
        assert used_s(pid) - before < 0.05
        assert value(kc, "thread.is_alive()") == "True"
    do(km, "freeze")
    do(km, "hibernate")
    assert value(kc, "thread.is_alive()") == "True"
    tell(kc, "left[0] = False; thread.join()")
