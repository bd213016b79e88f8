"""Who is put to sleep when: one that takes long, fails or hangs does not keep the others awake."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from torpor.api import Endpoints
from torpor.daemon import tiers
from torpor.daemon.guest_state import GuestState, Phase
from torpor.daemon.kernel import Kernel
from torpor.daemon.records import KernelRow
from torpor.daemon.tasks import Tasks
from torpor.daemon.tiers import Tiers
from torpor.errors import NoRoom
from torpor.lifecycle import Status, Target
from torpor.lifecycle.idle import AGAIN_S
from torpor.template import Template

TEMPLATES = {
    "sleeps": Template(freeze_after_s=0, hibernate_after_s=2, count_background=False),
    "freezes": Template(freeze_after_s=2, hibernate_after_s=0, count_background=False),
    "both": Template(freeze_after_s=2, hibernate_after_s=20, count_background=False),
    "slowly": Template(freeze_after_s=0, hibernate_after_s=25, count_background=False),
    "never": Template(freeze_after_s=0, hibernate_after_s=0, count_background=False),
}


@dataclass
class Machine:
    """A supervisor, a sleeper and a bridge: what is done to a kernel ends when its gate is open."""

    kernels: dict[str, Kernel] = field(default_factory=dict)
    gates: dict[str, asyncio.Event] = field(default_factory=dict)
    errors: dict[str, Exception] = field(default_factory=dict)
    doing: list[str] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    looks: list[str] = field(default_factory=list)
    idle_s: dict[str, float] = field(default_factory=dict)
    has_turn: bool = True

    def add(self, kernel_id: str, template: str, *, open_gate: bool = True) -> Kernel:
        row = KernelRow(
            kernel_id=kernel_id,
            kernel_name="k",
            template=template,
            status=Status.LIVE,
            target=Target.PRESENT,
            client=cast(Endpoints, None),
            created_at="",
            guest_key="",
            tier_since=time.time() - 60,
        )
        kernel = self.kernels[kernel_id] = Kernel(row)
        kernel.sandbox_alive = True
        kernel.guest = GuestState(phase=Phase.READY)
        gate = self.gates[kernel_id] = asyncio.Event()
        if open_gate:
            gate.set()
        return kernel

    async def hibernate(self, kernel: Kernel) -> None:
        await self._act(kernel, "")

    async def freeze(self, kernel: Kernel) -> None:
        await self._act(kernel, " frozen")

    async def _act(self, kernel: Kernel, how: str) -> None:
        kernel_id = kernel.row.kernel_id
        async with kernel.lock:
            self.doing.append(kernel_id)
            try:
                await self.gates[kernel_id].wait()
                if kernel_id in self.errors:
                    raise self.errors[kernel_id]
                self.done.append(kernel_id + how)
                kernel.row = replace(kernel.row, pinned=True)  # nothing more is due
            finally:
                self.doing.remove(kernel_id)

    async def status(self, op: str, *, kernel_id: str) -> dict[str, Any]:
        assert op == "status"
        self.looks.append(kernel_id)
        return {
            "execution_state": "idle",
            "busy_reason": "",
            "idle_since": time.time() - self.idle_s.get(kernel_id, 30),
        }


@dataclass
class World:
    machine: Machine
    tiers: Tiers
    tasks: Tasks

    def start(self) -> None:
        self.tasks.start(self.tiers.run(), name="tiers")


@pytest.fixture
async def world() -> AsyncIterator[World]:
    machine, tasks = Machine(), Tasks()

    async def templates(name: str) -> Template:
        return TEMPLATES[name]

    supervisor = SimpleNamespace(kernels=machine.kernels, sleeper=machine)
    bridge = SimpleNamespace(held=machine.kernels, call=machine.status)
    parts = SimpleNamespace(bridge=bridge, registry=SimpleNamespace(sandboxes={}))
    yield World(machine, Tiers(cast(Any, parts), cast(Any, supervisor), templates, tasks), tasks)
    await tasks.aclose()
    assert machine.doing == []


async def until(condition: Callable[[], bool], what: Callable[[], object] = lambda: "") -> None:
    ends_at = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < ends_at, what()
        await asyncio.sleep(0.005)


async def test_one_that_takes_long_keeps_nobody_awake(world: World) -> None:
    machine = world.machine
    machine.add("large", "sleeps", open_gate=False)
    for name in ("a", "b", "c", "d"):
        machine.add(name, "sleeps")
    world.start()
    await until(lambda: len(machine.done) == 4)
    assert machine.doing == ["large"]
    machine.gates["large"].set()
    await until(lambda: "large" in machine.done)


async def test_at_most_two_at_a_time_of_each_kind(world: World) -> None:
    machine = world.machine
    for name in ("a", "b", "c"):
        machine.add(name, "sleeps", open_gate=False)
    machine.add("f", "freezes")
    waiting = machine.kernels["c"]
    world.start()
    await until(lambda: machine.done == ["f frozen"])
    await until(lambda: "others have their turn first" in waiting.outlook, lambda: waiting.outlook)
    looks = machine.looks.count("c")
    await asyncio.sleep(1.2)
    assert sorted(machine.doing) == ["a", "b"]
    assert machine.looks.count("c") == looks, "it was looked at though there is no turn"
    machine.gates["c"].set()
    machine.gates["a"].set()
    await until(lambda: "c" in machine.done)
    assert machine.doing == ["b"]
    machine.gates["b"].set()
    await until(lambda: len(machine.done) == 4)


async def test_what_is_wanted_is_decided_anew_for_one_that_had_to_wait(world: World) -> None:
    machine = world.machine
    for name in ("a", "b", "c"):
        machine.add(name, "sleeps", open_gate=False)
    world.start()
    await until(lambda: "turn" in machine.kernels["c"].outlook)
    machine.kernels["c"].row = replace(machine.kernels["c"].row, pinned=True)
    machine.gates["c"].set()
    world.tiers.nudge("c")
    await until(lambda: machine.kernels["c"].outlook == "awake: pinned")
    for name in ("a", "b"):
        machine.gates[name].set()
    await until(lambda: len(machine.done) == 2)
    await asyncio.sleep(0.7)
    assert sorted(machine.done) == ["a", "b"]


async def test_one_that_waits_for_its_turn_is_looked_at_meanwhile(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiers, "AGAIN_S", 0.1)
    machine = world.machine
    for name in ("a", "b"):
        machine.add(name, "sleeps", open_gate=False)
    waiting = machine.add("c", "both")
    world.start()
    await until(lambda: "turn" in waiting.outlook)
    machine.idle_s["c"] = 0.0  # it has run a cell, which nobody told
    await until(lambda: waiting.outlook.startswith("awake: freezes in"), lambda: waiting.outlook)
    machine.idle_s["c"] = 5.0
    await until(lambda: machine.done == ["c frozen"])
    assert sorted(machine.doing) == ["a", "b"]


async def test_those_that_wait_longest_come_first(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four that are refused again and again do not keep the fifth awake."""
    monkeypatch.setattr(tiers, "again_s", lambda _policy: 0.0)
    machine = world.machine
    for name in ("a", "b", "c", "d"):
        machine.add(name, "sleeps")
        machine.errors[name] = NoRoom("the disk is full")
    machine.add("e", "sleeps")
    world.start()
    await until(lambda: machine.done == ["e"])


async def test_none_is_held_while_it_waits_for_others_saves(world: World) -> None:
    machine = world.machine
    machine.has_turn = False
    kernel = machine.add("a", "sleeps")
    machine.add("f", "freezes")
    world.start()
    await until(lambda: machine.done == ["f frozen"])
    await until(lambda: "turn" in kernel.outlook)
    assert not kernel.lock.locked()
    machine.has_turn = True  # nobody tells
    await until(lambda: "a" in machine.done)


async def test_what_is_wanted_while_it_is_put_to_sleep_is_not_forgotten(world: World) -> None:
    machine = world.machine
    kernel = machine.add("a", "slowly", open_gate=False)
    machine.errors["a"] = NoRoom("the disk is full")
    world.start()
    await until(lambda: machine.doing == ["a"])
    kernel.row = replace(kernel.row, pinned=True)
    world.tiers.nudge("a")
    machine.gates["a"].set()
    began = time.monotonic()
    await until(lambda: kernel.outlook == "awake: pinned", lambda: kernel.outlook)
    assert time.monotonic() - began < AGAIN_S - 1


@pytest.mark.parametrize("error", [NoRoom("the disk is full"), RuntimeError("unforeseen")])
async def test_one_that_fails_is_tried_again_and_says_why(world: World, error: Exception) -> None:
    machine = world.machine
    kernel = machine.add("a", "sleeps")
    machine.errors["a"] = error
    machine.add("b", "sleeps")
    world.start()
    await until(lambda: "b" in machine.done)
    await until(lambda: str(error) in kernel.outlook, lambda: kernel.outlook)
    assert "a" not in machine.done
    machine.errors.clear()
    world.tiers.nudge("a")
    await until(lambda: "a" in machine.done)


async def test_one_that_somebody_else_holds_is_left_alone(world: World) -> None:
    machine = world.machine
    kernel = machine.add("a", "sleeps")
    machine.add("b", "never")
    async with kernel.lock:
        world.start()
        await until(lambda: "b" in machine.looks)
        await asyncio.sleep(0.6)
        assert machine.looks.count("a") == 0
    await until(lambda: machine.done == ["a"])


async def test_the_end_ends_what_is_under_way(world: World) -> None:
    world.machine.add("a", "sleeps", open_gate=False)
    world.start()
    await until(lambda: world.machine.doing == ["a"])
    await world.tasks.aclose()
    assert world.machine.doing == []
    assert not world.machine.kernels["a"].lock.locked()
