"""Whoever asked torpord for something leaves before the answer: the kernel loses nothing, and goes on."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager
from torpor.client import Client
from torpor.client_sleep import SleepClient
from torpor.config import user_paths

from tests.e2e.cells import tell, value
from tests.e2e.sleeping import do, wait_status
from tests.home import start, stop, torpor_home

pytestmark = [pytest.mark.runsc, pytest.mark.timeout(600)]

CONFIG = 'c.Torpor.templates = {"default": {"freeze_after_s": 0, "hibernate_after_s": 0}}\n'
LONGEST_S = {"hibernate": 0.35, "wake": 0.35, "checkpoint": 0.3, "freeze": 0.06, "thaw": 0.02}


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    with torpor_home(CONFIG):
        km, kc = start(tmp_path)
        yield km, kc
        stop(km, kc)


async def ask_and_leave(kernel_id: str, verb: str, name: str, after_s: float) -> bool:
    """Ask for ``verb``, hang up after so long; whether there was an answer before."""
    client = SleepClient(Client(user_paths()))
    asking = (
        client.checkpoint(kernel_id, name) if verb == "checkpoint" else client.do(kernel_id, verb)
    )
    try:
        async with asyncio.timeout(after_s):
            await asking
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize(
    "rounds", [pytest.param(4, id="short"), pytest.param(40, id="long", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("verb", LONGEST_S)
def test_the_kernel_is_as_it_was(
    pair: tuple[KernelManager, BlockingKernelClient], verb: str, rounds: int
) -> None:
    km, kc = pair
    tell(kc, "n = 0")
    left = 0
    for number in range(1, rounds + 1):
        if verb in ("wake", "thaw"):
            do(km, "hibernate" if verb == "wake" else "freeze")
        after_s = random.uniform(0.1, 1) * LONGEST_S[verb]
        asked = ask_and_leave(
            str(km.kernel_id), "wake" if verb == "thaw" else verb, f"c{number}", after_s
        )
        left += not asyncio.run(asked)
        assert value(kc, "(n := n + 1)") == str(number), after_s
        wait_status(km, "running")
    assert rounds < 20 or left
