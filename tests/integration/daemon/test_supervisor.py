"""The supervisor in this process, on a real bridge: cancelled twice, and closed, at every step."""

import asyncio
import contextlib

import pytest
from torpor.daemon.bridge_keeper import BridgeKeeper
from torpor.daemon.parts import Parts
from torpor.daemon.registry import Registry
from torpor.daemon.settling import Settling
from torpor.daemon.snapshots import Snapshots
from torpor.daemon.stores import Stores
from torpor.daemon.supervisor import Supervisor
from torpor.errors import LaunchError
from torpor.paths import private_folder
from torpor.snapshot.store import SnapshotStore
from torpor.template import GIB, Template

from tests.fakes.process_backend import ProcessBackend
from tests.integration.daemon.conftest import HANG, eventually

STEPS = ["prepare", "fifos", "start", "started", "bind", "ready"]


class StuckKeeper(BridgeKeeper):
    """A bridge that hangs, or fails, when endpoints are to be bound."""

    stuck = ""

    async def call(self, op, **params):
        if op == "open" and self.stuck == "hang":
            await asyncio.sleep(3600)
        if op == "open" and self.stuck == "fail":
            raise LaunchError("bind fails on purpose")
        return await super().call(op, **params)


@contextlib.asynccontextmanager
async def daemon(home, backend, stuck=""):
    """Give a supervisor and its registry; afterwards the bridge is stopped."""
    for folder in (home.paths.runtime, home.paths.kernels, home.paths.client_sockets):
        private_folder(folder)
    registry = Registry(home.paths.registry)
    keeper = StuckKeeper(
        home.paths,
        on_event=lambda kernel_id, event: supervisor.heard(kernel_id, event),
        on_return=lambda: settling.all(),
    )
    keeper.stuck = stuck
    await keeper.start()
    snapshots = Snapshots(SnapshotStore(home.paths.snapshots, GIB))
    stores = Stores(lambda: None, snapshots.store)
    parts = Parts(home.paths, registry, backend, keeper, snapshots, stores)
    settling = Settling(parts)

    async def template(name):
        return Template(name=name)

    supervisor = Supervisor(parts, settling, at_once=2, templates=template)
    try:
        yield supervisor, registry
    finally:
        for _ in range(2):
            await supervisor.aclose()
            await settling.aclose()
            await keeper.aclose(stop=True)
            registry.close()


async def nothing_left(home, supervisor, registry):
    assert (await supervisor._parts.bridge.call("list"))["kernels"] == []
    assert supervisor.kernels == {}
    assert registry.kernels == {}
    assert registry.sandboxes == {}
    assert list(home.paths.kernels.iterdir()) == []


def faulty(home, step, kind):
    """Give what fails or hangs at ``step``: a backend, the bridge's part, a kernel's argv."""
    backend = ProcessBackend(**{f"{kind}_at": step}) if step in STEPS[:4] else ProcessBackend()
    argv = home.program(HANG if kind == "hang" else "raise SystemExit('on purpose')")
    return backend, kind if step == "bind" else "", argv


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("times", [1, 2, 5])
async def test_cancelled_at_each_step(home, step, times):
    backend, stuck, argv = faulty(home, step, "hang")
    async with daemon(home, backend, stuck) as (supervisor, registry):
        request = home.request(argv=argv)
        launch = asyncio.create_task(supervisor.launch(request, Template(), None))
        await asyncio.sleep(0.4)
        for _ in range(times):
            launch.cancel()
            await asyncio.sleep(0.002 if times == 2 else 0)
        with pytest.raises(asyncio.CancelledError):
            await launch
        await nothing_left(home, supervisor, registry)


@pytest.mark.parametrize("step", STEPS)
async def test_failed_at_each_step(home, step):
    backend, stuck, argv = faulty(home, step, "fail")
    async with daemon(home, backend, stuck) as (supervisor, registry):
        with pytest.raises(LaunchError, match="on purpose"):
            await supervisor.launch(home.request(argv=argv), Template(), None)
        await nothing_left(home, supervisor, registry)


@pytest.mark.parametrize("step", STEPS)
async def test_timed_out_at_each_step(home, step):
    backend, stuck, argv = faulty(home, step, "hang")
    async with daemon(home, backend, stuck) as (supervisor, registry):
        request = home.request(argv=argv, start_timeout_s=1)
        with pytest.raises(LaunchError, match="not ready in 1 s"):
            await supervisor.launch(request, Template(), None)
        await nothing_left(home, supervisor, registry)


@pytest.mark.parametrize("step", STEPS)
async def test_closed_in_the_middle(home, step):
    backend, stuck, argv = faulty(home, step, "hang")
    async with daemon(home, backend, stuck) as (supervisor, registry):
        request = home.request(argv=argv)
        launch = asyncio.create_task(supervisor.launch(request, Template(), None))
        await asyncio.sleep(0.4)
        await supervisor.aclose()
        assert launch.done()
        with pytest.raises(asyncio.CancelledError):
            await launch
        await nothing_left(home, supervisor, registry)


@pytest.mark.parametrize("times", [1, 2])
async def test_a_replacement_cancelled(home, times):
    async with daemon(home, ProcessBackend()) as (supervisor, registry):
        kernel = await supervisor.launch(home.request(), Template(), None)
        endpoints = kernel.row.client
        kernel.sandbox_ended("says the test")
        replacing = supervisor.launch(home.request(argv=home.program(HANG)), Template(), None)
        launch = asyncio.create_task(replacing)
        await eventually(lambda: any(HANG in line for line in home.processes().values()))
        for _ in range(times):
            launch.cancel()
            await asyncio.sleep(0.002 if times == 2 else 0)
        with pytest.raises(asyncio.CancelledError):
            await launch
        assert kernel.state == "gone"
        assert registry.sandboxes == {}
        again = await supervisor.launch(home.request(), Template(), None)
        assert again.row.client == endpoints
        await supervisor.delete("k1")
        await nothing_left(home, supervisor, registry)


async def test_deleting_is_finished_when_cancelled(home):
    async with daemon(home, ProcessBackend()) as (supervisor, registry):
        await supervisor.launch(home.request(), Template(), None)
        deletion = asyncio.create_task(supervisor.delete("k1"))
        for _ in range(2):
            await asyncio.sleep(0.001)
            deletion.cancel()
        with pytest.raises(asyncio.CancelledError):
            await deletion
        await eventually(lambda: not supervisor.kernels)
        await nothing_left(home, supervisor, registry)
