"""Saves and wakes take turns, each among themselves: who wakes a kernel does not wait for saves of others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace
from typing import Any, cast

import pytest
from torpor.api import Endpoints
from torpor.daemon.guest_state import GuestState, Phase
from torpor.daemon.kernel import Kernel
from torpor.daemon.records import KernelRow
from torpor.daemon.sleeper import Sleeper
from torpor.lifecycle import Status, Target
from torpor.template import Template

from tests.unit.handles import handle


class Machine:
    """Whoever saves waits for ever, whoever wakes is done at once."""

    def __init__(self) -> None:
        self.saving = 0
        self.woken: list[str] = []

    @asynccontextmanager
    async def save(self, *_: object) -> AsyncIterator[None]:
        self.saving += 1
        try:
            await asyncio.Event().wait()
            yield
        finally:
            self.saving -= 1

    async def wake(self, kernel: Kernel, *_: object) -> None:
        self.woken.append(kernel.row.kernel_id)

    @asynccontextmanager
    async def at_hand(self, *_: object, **__: object) -> AsyncIterator[object]:
        yield None


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine()
    yield machine
    assert machine.saving == 0


def sleeper_of(machine: Machine, at_once: int) -> Sleeper:
    async def templates(_name: str) -> Template:
        return Template()

    sandbox = SimpleNamespace(handle=handle(1, 1).to_json())
    parts = SimpleNamespace(
        backend=SimpleNamespace(saving=machine.save),
        stores=SimpleNamespace(at_hand=machine.at_hand, news=asyncio.Event()),
        registry=SimpleNamespace(sandboxes={"s": sandbox}),
    )
    ahead = SimpleNamespace(wanted=lambda _kernel: None)
    sleeper = Sleeper(
        cast(Any, parts),
        watch=lambda _kernel: None,
        templates=templates,
        at_once=at_once,
        ahead=cast(Any, ahead),
    )
    sleeper._waking = cast(Any, machine)
    return sleeper


def kernel(name: str, status: Status) -> Kernel:
    row = KernelRow(
        kernel_id=name,
        kernel_name="k",
        template="default",
        status=status,
        target=Target.PRESENT,
        client=cast(Endpoints, None),
        created_at="",
        guest_key="",
        sandbox_id="s",
    )
    made = Kernel(row)
    made.sandbox_alive = status is Status.LIVE
    made.guest = GuestState(phase=Phase.READY)
    return made


@pytest.mark.parametrize("at_once", [1, 2])
async def test_a_wake_does_not_wait_for_saves(machine: Machine, at_once: int) -> None:
    sleeper = sleeper_of(machine, at_once)
    saves = []
    for number in range(at_once + 3):
        assert sleeper.has_turn == (number <= at_once)
        saves.append(asyncio.create_task(sleeper.hibernate(kernel(f"k{number}", Status.LIVE))))
        await asyncio.sleep(0.01)
    async with asyncio.timeout(10):
        await sleeper.wake(kernel("asleep", Status.ASLEEP))
    assert machine.woken == ["asleep"]
    assert machine.saving == at_once + 1, "the others wait"
    for save in saves:
        save.cancel()
        with suppress(asyncio.CancelledError):
            await save
    assert sleeper.has_turn
