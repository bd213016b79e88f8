"""Who owns a sandbox made ahead of need, and that none is ever left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from torpor.daemon import ahead as module
from torpor.daemon.ahead import Ahead
from torpor.daemon.kernel import Kernel
from torpor.daemon.parts import Parts
from torpor.daemon.records import KernelRow, SandboxRow
from torpor.errors import LaunchError
from torpor.lifecycle import Status, Target
from torpor.snapshot.build import Snapshot
from torpor.template import Template

from tests.unit.daemon.storing import until

SNAPSHOT = cast(Snapshot, SimpleNamespace(manifest=SimpleNamespace(generation=1), image=Path("/i")))


@dataclass
class Machine:
    """A backend, a registry and a store in one: ``rows`` are the sandboxes that exist.

    ``begun`` are the sandboxes that were to stand ready so far, ``made`` those that have, and ``open``
    those that do.
    """

    slow: asyncio.Event = field(default_factory=asyncio.Event)
    fails: bool = False
    will_not_go: bool = False
    rows: dict[str, SandboxRow] = field(default_factory=dict)
    begun: set[str] = field(default_factory=set)
    made: set[str] = field(default_factory=set)
    open: set[str] = field(default_factory=set)
    dead: asyncio.Event = field(default_factory=asyncio.Event)

    def parts(self) -> Any:
        machine = self

        class Standing:
            def __init__(self, sandbox_id: str) -> None:
                self.sandbox_id = sandbox_id
                self.handle = SimpleNamespace(to_json=lambda: {"id": sandbox_id})
                machine.made.add(sandbox_id)
                machine.open.add(sandbox_id)

            async def go(self) -> None:
                if machine.will_not_go:
                    raise LaunchError("no")
                await self.aclose()

            async def aclose(self) -> None:
                machine.open.discard(self.sandbox_id)

        class Backend:
            async def prepare_saved(self, spec: Any, *, ahead: bool) -> None:
                assert ahead

            async def stand_ready(self, spec: Any) -> Standing:
                machine.begun.add(spec.sandbox_id)
                await machine.slow.wait()
                if machine.fails:
                    raise LaunchError("not today")
                return Standing(spec.sandbox_id)

            async def exited(self, handle: Any) -> None:
                await machine.dead.wait()

        def get(*_: object) -> Snapshot:
            return SNAPSHOT

        async def free(sandbox_id: str) -> None:
            machine.rows.pop(sandbox_id, None)

        def put(row: SandboxRow) -> None:
            machine.rows[row.sandbox_id] = row

        return SimpleNamespace(
            backend=Backend(),
            registry=SimpleNamespace(put_sandbox=put),
            snapshots=SimpleNamespace(store=SimpleNamespace(get=get)),
            paths=SimpleNamespace(kernels=Path("/k")),
            unclaimed=set(),
            free_sandbox=free,
        )


@dataclass
class World:
    machine: Machine
    parts: Any
    ahead: Ahead

    def clean(self) -> bool:
        return not (self.machine.rows or self.machine.open or self.parts.unclaimed)

    async def until_begun(self, count: int = 1) -> None:
        await until(lambda: len(self.machine.begun) == count)

    async def until_made(self, count: int = 1) -> None:
        """Return once so many have been made, and the others made room."""
        await until(
            lambda: len(self.machine.made) == count and len(self.machine.rows) == min(count, 2)
        )


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(module, "_PAUSE_S", 0.0)

    async def templates(_name: str) -> Template:
        return Template()

    machine = Machine()
    machine.slow.set()
    parts = machine.parts()
    ahead = Ahead(cast(Parts, parts), templates, most=2, reserve_bytes=0)
    yield World(machine, parts, ahead)
    await ahead.aclose()
    kept = {row.kernel_id for row in machine.rows.values()}
    assert "" not in kept, "one that is nobody's is left"
    assert not machine.open
    assert not parts.unclaimed


def sleeper(kernel_id: str = "k") -> Kernel:
    return Kernel(
        KernelRow(
            kernel_id=kernel_id,
            kernel_name="python3",
            template="default",
            status=Status.ASLEEP,
            target=Target.PRESENT,
            client=cast(Any, None),
            created_at="",
            guest_key="",
            generation=1,
        )
    )


async def at_rest(ahead: Ahead) -> None:
    """Return once nothing is being made or kept."""
    await until(lambda: not len(ahead._tasks))


async def a_moment() -> None:
    """Give what must not happen the time to happen."""
    for _ in range(20):
        await asyncio.sleep(0.001)  # threads take part


async def waiting(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """Give ``work`` as a task that has come to where it waits."""
    task = asyncio.create_task(work)
    await asyncio.sleep(0)
    return task


async def test_it_becomes_the_kernels(world: World) -> None:
    kernel = sleeper()
    world.ahead.wanted(kernel)
    await world.until_made()
    [row] = world.machine.rows.values()
    assert row.kernel_id == ""
    assert world.parts.unclaimed == {row.sandbox_id}
    taken = await world.ahead.go(kernel, SNAPSHOT)
    assert taken == replace(row, kernel_id="k", handle={"id": row.sandbox_id})
    assert list(world.machine.rows.values()) == [taken]
    assert await world.ahead.go(kernel, SNAPSHOT) is None
    await at_rest(world.ahead)
    assert list(world.machine.rows.values()) == [taken]


async def test_who_comes_while_it_is_made_waits_for_it(world: World) -> None:
    kernel = sleeper()
    world.machine.slow.clear()
    world.ahead.wanted(kernel)
    await world.until_begun()
    going = await waiting(world.ahead.go(kernel, SNAPSHOT))
    await a_moment()
    assert not going.done()
    world.machine.slow.set()
    assert (await going) is not None


@pytest.mark.parametrize("made", [False, True])
async def test_who_gives_up_waiting_leaves_nothing(world: World, made: bool) -> None:
    kernel = sleeper()
    world.machine.slow.clear()
    world.ahead.wanted(kernel)
    await world.until_begun()
    going = await waiting(world.ahead.go(kernel, SNAPSHOT))
    if made:
        world.machine.slow.set()
    going.cancel()
    with pytest.raises(asyncio.CancelledError):
        await going
    world.machine.slow.set()
    await until(world.clean)


@pytest.mark.parametrize("waits", [False, True])
async def test_it_cannot_be_made(world: World, waits: bool) -> None:
    kernel = sleeper()
    world.machine.fails = True
    world.machine.slow.clear()
    world.ahead.wanted(kernel)
    await world.until_begun()
    going = await waiting(world.ahead.go(kernel, SNAPSHOT)) if waits else None
    world.machine.slow.set()
    await until(world.clean)
    assert await (going or world.ahead.go(kernel, SNAPSHOT)) is None


async def test_it_will_not_go(world: World) -> None:
    kernel = sleeper()
    world.machine.will_not_go = True
    world.ahead.wanted(kernel)
    await world.until_made()
    assert await world.ahead.go(kernel, SNAPSHOT) is None
    assert world.clean()


async def test_it_is_for_another_generation(world: World) -> None:
    kernel = sleeper()
    world.ahead.wanted(kernel)
    await world.until_made()
    other = cast(
        Snapshot, SimpleNamespace(manifest=SimpleNamespace(generation=2), image=Path("/i"))
    )
    assert await world.ahead.go(kernel, other) is None
    await until(world.clean)


@pytest.mark.parametrize("change", ["awake", "removed", "unwanted", "newer", "dead"])
async def test_it_goes_when_nobody_can_use_it(world: World, change: str) -> None:
    kernel = sleeper()
    world.ahead.wanted(kernel)
    await world.until_made()
    assert len(world.machine.rows) == 1
    if change == "dead":
        world.machine.dead.set()
    elif change == "removed":
        kernel.removed = True
    else:
        changes: dict[str, Any] = {
            "awake": {"status": Status.LIVE},
            "unwanted": {"target": Target.ABSENT},
            "newer": {"generation": 2},
        }[change]
        kernel.row = replace(kernel.row, **changes)
    kernel.notify()
    await until(world.clean)


async def test_the_oldest_makes_room(world: World) -> None:
    kernels = [sleeper(name) for name in "abc"]
    for count, kernel in enumerate(kernels, 1):
        world.ahead.wanted(kernel)
        await world.until_made(count)
    assert len(world.machine.rows) == 2
    assert await world.ahead.go(kernels[0], SNAPSHOT) is None
    for kernel in kernels[1:]:
        assert await world.ahead.go(kernel, SNAPSHOT) is not None


async def test_who_is_looked_at_again_keeps_it(world: World) -> None:
    kernels = [sleeper(name) for name in "abc"]
    for count, kernel in enumerate(kernels[:2], 1):
        world.ahead.wanted(kernel)
        await world.until_made(count)
    before = set(world.machine.rows)
    for _ in range(3):
        world.ahead.wanted(kernels[0])
        await a_moment()
    assert set(world.machine.rows) == before
    world.ahead.wanted(kernels[2])
    world.ahead.wanted(kernels[2])
    await world.until_made(3)
    await a_moment()
    assert len(world.machine.rows) == 2
    assert await world.ahead.go(kernels[1], SNAPSHOT) is None
    assert await world.ahead.go(kernels[0], SNAPSHOT) is not None


async def test_ending_removes_what_stands_and_what_is_made(world: World) -> None:
    world.ahead.wanted(sleeper("a"))
    await world.until_made()
    world.machine.slow.clear()
    world.ahead.wanted(sleeper("b"))
    await world.until_begun(2)
    assert len(world.machine.rows) == 2
    await world.ahead.aclose()
    assert world.clean()


async def test_none_is_made_unless_asked_for(world: World) -> None:
    async def templates(_name: str) -> Template:
        return Template()

    off = Ahead(cast(Parts, world.parts), templates, most=0, reserve_bytes=0)
    off.wanted(sleeper())
    starved = Ahead(cast(Parts, world.parts), templates, most=1, reserve_bytes=1 << 60)
    starved.wanted(sleeper())
    for each in (off, starved):
        await at_rest(each)
    assert world.clean()
    await starved.aclose()
