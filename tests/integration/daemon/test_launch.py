"""Launching: what works, every way it can fail, and that nothing is left then."""

import asyncio
import contextlib
import os
import sys
import time
from dataclasses import replace

import pytest
import zmq
from torpor.api import CHANNELS, Endpoints
from torpor.errors import BackendUnavailable, Busy, ConfigError, LaunchError, LaunchTimeout

from tests.integration.daemon.conftest import HANG, KEY, eventually, needs_faults

# The workspace is what a sandbox shares with this process.
HANG_AND_TELL = f"open('begun', 'w').close(); {HANG}"
HANG_UNTIL_TOLD = "import os, time\nwhile not os.path.exists('over'): time.sleep(0.02)"


async def assert_nothing_left(home):
    assert await home.client.kernels() == []
    await eventually(lambda: not list(home.paths.kernels.iterdir()))
    await eventually(
        lambda: all(
            "torpor.bridge" in line or "daemon" in line for line in home.processes().values()
        )
    )


def sandboxes(home):
    """Give the folders of sandboxes; before the daemon runs there is nothing."""
    return list(home.paths.kernels.iterdir()) if home.paths.kernels.is_dir() else []


async def test_a_kernel_lives_and_goes(home):
    state = await home.client.launch(home.request(workspace=str(home.path)))
    assert state["status"] == "running"
    assert all(state["client"]["ports"][name] > 0 for name in CHANNELS)
    assert KEY not in str(state)
    assert state["owner"] == {"pid": os.getpid()}
    assert state["workspace"] == {"path": str(home.path), "mode": "rw", "reason": ""}
    assert state["sandbox"]["pid"] in home.processes()
    assert (await home.client.kernels())[0]["kernel_id"] == "k1"
    line = home.logged("launched")[0]
    assert (line["kernel_id"], line["how"]) == ("k1", "created")
    await home.client.delete("k1")
    await home.client.delete("k1")
    await assert_nothing_left(home)


async def test_restart_keeps_sandbox_and_ports(home):
    first = await home.client.launch(home.request())
    second = await home.client.launch(home.request(env={"A": "b"}))
    assert second["client"] == first["client"]
    assert second["sandbox"] == first["sandbox"]
    assert home.logged("launched")[1]["how"] == "restarted"
    await home.client.delete("k1")
    await assert_nothing_left(home)


async def test_kill_wait_and_restart(home):
    await home.client.launch(home.request())
    assert await home.client.wait("k1", timeout_s=0.1) is None
    waiting = asyncio.create_task(home.client.wait("k1", timeout_s=10))
    await asyncio.sleep(0.1)
    await home.client.kill("k1")
    assert await waiting == -9
    await home.client.kill("k1")
    await home.client.signal("k1", 2)
    state = await home.client.kernel("k1")
    assert (state["status"], state["exit_code"]) == ("exited", -9)
    assert "signal 9" in state["reason"]
    assert (await home.client.launch(home.request()))["status"] == "running"
    await home.client.terminate("k1")
    assert await home.client.wait("k1", timeout_s=10) is not None
    await home.client.delete("k1")


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"argv": ("/no/such/program",)}, ConfigError, "/no/such/program"),
        ({"template": "huge"}, ConfigError, "huge"),
        (
            {"argv": (sys.executable, "-S", "-c", "import sys; sys.exit('my last words')")},
            LaunchError,
            "my last words",
        ),
        (
            {"argv": (sys.executable, "-S", "-c", HANG), "start_timeout_s": 3},
            LaunchTimeout,
            "was not ready in 3 s",
        ),
        (
            {"client": Endpoints("tcp", "203.0.113.7", dict.fromkeys(CHANNELS, 0), KEY)},
            LaunchError,
            "203.0.113.7",
        ),
        (
            {"client": Endpoints("ipc", "/no/such/folder/k", dict.fromkeys(CHANNELS, 0), KEY)},
            ConfigError,
            "/no/such/folder/k",
        ),
    ],
    ids=["program", "template", "exits", "hangs", "address", "ipc"],
)
async def test_what_cannot_start_says_why_and_leaves_nothing(home, changes, error, said):
    await home.client.ensure()
    started = time.monotonic()
    with pytest.raises(error, match=said):
        await home.client.launch(home.request(**changes))
    assert time.monotonic() - started < 20, "far less than a start may take"
    await assert_nothing_left(home)


async def test_a_port_that_is_taken(home):
    with zmq.Context() as context, context.socket(zmq.ROUTER) as taken:
        port = taken.bind_to_random_port("tcp://127.0.0.1")
        ports = {**dict.fromkeys(CHANNELS, 0), "shell": port}
        endpoints = Endpoints("tcp", "127.0.0.1", ports, KEY)
        with pytest.raises(LaunchError, match=str(port)):
            await home.client.launch(home.request(client=endpoints))
        await assert_nothing_left(home)


@needs_faults
@pytest.mark.parametrize("step", ["prepare", "fifos", "start", "started"])
async def test_failing_at_each_step_leaves_nothing(home, monkeypatch, step):
    monkeypatch.setenv("TORPOR_TEST_FAIL_AT", step)
    with pytest.raises(LaunchError, match=f"{step} fails on purpose"):
        await home.client.launch(home.request())
    await assert_nothing_left(home)


@needs_faults
@pytest.mark.parametrize("step", ["prepare", "fifos", "start", "started", "ready"])
async def test_a_client_that_leaves_at_any_step_leaves_nothing(home, monkeypatch, step):
    monkeypatch.setenv("TORPOR_TEST_HANG_AT", step)
    argv = home.program(HANG) if step == "ready" else home.request().argv
    await home.client.ensure()
    launch = asyncio.create_task(home.client.launch(home.request(argv=argv)))
    await home.until_step(step)
    launch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await launch
    await home.until_no_kernel()
    assert home.logged("launch failed")
    await assert_nothing_left(home)


@needs_faults
@pytest.mark.parametrize("step", ["prepare", "started"])
async def test_running_out_of_time_at_a_step_leaves_nothing(home, monkeypatch, step):
    monkeypatch.setenv("TORPOR_TEST_HANG_AT", step)
    with pytest.raises(LaunchTimeout, match="not ready in 1 s"):
        await home.client.launch(home.request(start_timeout_s=1))
    await assert_nothing_left(home)


@needs_faults
async def test_what_undoing_cannot_free_is_freed_later(home, monkeypatch):
    flag = home.path / "now-it-works"
    monkeypatch.setenv("TORPOR_TEST_FAIL_AT", "destroy")
    monkeypatch.setenv("TORPOR_TEST_FLAG", str(flag))
    with pytest.raises(LaunchError, match="goodbye"):
        await home.client.launch(home.request(argv=home.program("raise SystemExit('goodbye')")))
    await home.client.launch(home.request("k2"))
    with pytest.raises(BackendUnavailable, match="could not be removed"):
        await home.client.delete("k2")
    flag.write_text("")
    await home.until_no_kernel()
    await assert_nothing_left(home)


async def test_a_failed_restart_leaves_the_sandbox(home):
    first = await home.client.launch(home.request())
    with pytest.raises(LaunchError, match="goodbye"):
        await home.client.launch(home.request(argv=home.program("raise SystemExit('goodbye')")))
    state = await home.client.kernel("k1")
    assert state["status"] == "exited"
    again = await home.client.launch(home.request())
    assert again["sandbox"] == first["sandbox"]
    await home.client.delete("k1")
    await assert_nothing_left(home)


async def test_a_restart_whose_client_leaves_ends_the_process_only(home):
    request = home.request(workspace=str(home.path))
    first = await home.client.launch(request)
    again = replace(request, argv=home.program(HANG_AND_TELL))
    launch = asyncio.create_task(home.client.launch(again))
    await eventually((home.path / "begun").exists)
    assert (await home.client.kernel("k1"))["status"] == "starting"
    launch.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await launch
    assert await home.client.wait("k1", timeout_s=15) is not None
    state = await home.client.kernel("k1")
    assert (state["status"], state["sandbox"]) == ("exited", first["sandbox"])
    await home.client.delete("k1")


async def test_one_launch_of_a_kernel_at_a_time(home):
    launch = asyncio.create_task(home.client.launch(home.request(argv=home.program(HANG))))
    await eventually(lambda: sandboxes(home))
    with pytest.raises(Busy):
        await home.client.launch(home.request())
    assert (await home.client.kernel("k1"))["status"] == "starting"
    await home.client.delete("k1")  # cancels the launch
    with pytest.raises(BackendUnavailable, match="deleted meanwhile"):
        await launch
    await assert_nothing_left(home)


async def test_a_few_start_at_a_time_and_the_rest_wait(home):
    home.configure("c.TorporDaemon.concurrent_starts = 2")
    argv = home.program(HANG_UNTIL_TOLD)
    await home.client.ensure()
    requests = [home.request(f"k{n}", argv=argv, workspace=str(home.path)) for n in range(4)]
    launches = [asyncio.create_task(home.client.launch(request)) for request in requests]
    await eventually(lambda: len(sandboxes(home)) == 2)
    ends_at = time.monotonic() + 1
    while time.monotonic() < ends_at:
        await asyncio.sleep(0.02)
        assert len(sandboxes(home)) == 2
    (home.path / "over").touch()
    results = await asyncio.gather(*launches, return_exceptions=True)
    assert all(isinstance(result, LaunchError) for result in results), results
    await assert_nothing_left(home)


async def test_a_turn_that_never_comes_is_told(home):
    home.configure("c.TorporDaemon.concurrent_starts = 1")
    first = asyncio.create_task(
        home.client.launch(home.request("k1", argv=home.program(HANG), start_timeout_s=60))
    )
    await eventually(lambda: sandboxes(home))
    with pytest.raises(LaunchTimeout, match="waiting for its turn"):
        await home.client.launch(home.request("k2", start_timeout_s=1))
    first.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await first
    await eventually(lambda: len(home.logged("launch failed")) == 2)
    await assert_nothing_left(home)


async def test_ipc(home):
    prefix = home.path / ("p" * 90)
    endpoints = Endpoints("ipc", str(prefix), dict.fromkeys(CHANNELS, 0), KEY)
    state = await home.client.launch(home.request(client=endpoints))
    assert state["client"]["ip"] == str(prefix)
    paths = [f"{prefix}-{state['client']['ports'][name]}" for name in CHANNELS]
    assert all(os.path.exists(path) for path in paths)
    for path in paths:
        os.unlink(path)
    again = await home.client.launch(home.request(client=endpoints))
    assert again["client"] == state["client"]
    assert all(os.path.exists(path) for path in paths)
    await home.client.delete("k1")
    assert not any(os.path.lexists(path) for path in paths)
    assert list(home.paths.client_sockets.iterdir()) == []


async def test_a_request_cannot_stretch_the_templates_timeout(home):
    home.configure("c.Torpor.templates = {'quick': {'start_timeout_s': 1.5}}")
    request = home.request(argv=home.program(HANG), template="quick", start_timeout_s=60)
    with pytest.raises(LaunchError):
        async with asyncio.timeout(20):
            await home.client.launch(request)
    await assert_nothing_left(home)


async def test_no_lease_no_owner(home):
    state = await home.client.launch(home.request(lease=False))
    assert state["owner"] is None
    await home.client.adopt("k1", lease=True)
    assert (await home.client.kernel("k1"))["owner"] == {"pid": os.getpid()}
    await home.client.adopt("k1", lease=False)
    assert (await home.client.kernel("k1"))["owner"] is None
    await home.client.delete("k1")


async def test_deleting_and_starting_again_at_once(home):
    for _ in range(3):
        await home.client.launch(home.request())
        deletion = asyncio.create_task(home.client.delete("k1"))
        with contextlib.suppress(Busy, BackendUnavailable):  # whichever came first
            await home.client.launch(replace(home.request(), lease=True))
        await deletion
        await home.client.delete("k1")
    await assert_nothing_left(home)


async def test_a_name_in_use_is_refused_and_its_kernel_left_alone(home):
    state = await home.client.launch(home.request())
    other = replace(home.request().client, key="another key")
    with pytest.raises(Busy, match="another connection file"):
        await home.client.launch(home.request(client=other))
    await home.client.delete("k1", holder=other.holder)
    assert (await home.client.kernel("k1"))["sandbox"] == state["sandbox"]
    await home.client.delete("k1", holder=home.request().client.holder)
    assert await home.client.kernels() == []
