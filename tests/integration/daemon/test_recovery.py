"""Daemon, bridge, sandbox and owner die at bad moments; kernels and their messages do not suffer."""

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from datetime import datetime

import psutil
import pytest
from jupyter_client.asynchronous import AsyncKernelClient
from torpor.daemon.processes import start_ticks
from torpor.errors import SandboxGone

from tests.integration.daemon.conftest import DAEMON, KEY, eventually, needs_faults

COUNT = """
import time
for i in range({n}):
    print(f'<{{i}} {{time.time()}}>', flush=True)
    time.sleep({pause})
"""
FRESH_S = 0.02


@contextlib.asynccontextmanager
async def connected(state):
    """Give a client of the kernel that ``state`` describes, which has answered."""
    async with connected_later(state) as client:
        await client.wait_for_ready(timeout=20)
        yield client


@contextlib.asynccontextmanager
async def connected_later(state):
    """Give a client of a kernel that need not answer yet."""
    client = AsyncKernelClient()
    ports = {f"{name}_port": port for name, port in state["client"]["ports"].items()}
    client.load_connection_info(
        {"ip": "127.0.0.1", "transport": "tcp", "key": KEY, "signature_scheme": "hmac-sha256"}
        | ports
    )
    # No manager says whether the kernel lives: whoever waits for it gives up after one late heartbeat.
    client.hb_channel.time_to_dead = 20.0
    client.start_channels()
    try:
        yield client
    finally:
        client.stop_channels()
        client.context.destroy(linger=0)


async def run(client, code, timeout=30, on_text=lambda text: None):
    """Execute ``code``; give what it printed."""
    printed = []

    def hear(message):
        if message["msg_type"] == "stream":
            printed.append(message["content"]["text"])
            on_text(message["content"]["text"])

    reply = await client.execute_interactive(code, output_hook=hear, timeout=timeout)
    assert reply["content"]["status"] == "ok", reply["content"]
    return "".join(printed)


async def numbers_across(home, state, disturb, *, n=300, pause=0.01):
    """Count in the kernel while ``disturb`` runs; give the numbers that arrived.

    ``disturb`` is given something to await: it returns when a number has just come that is fresh, so
    the bridge has no others on hand. Where none comes in a second, it returns all the same.
    """
    news = asyncio.Event()

    def hear(text):
        for told in re.findall(r"<\d+ ([\d.]+)>", text):
            if time.time() - float(told) < FRESH_S:
                news.set()

    async def fresh():
        news.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await news.wait()

    async with connected(state) as client:
        code = COUNT.format(n=n, pause=pause)
        counting = asyncio.create_task(run(client, code, timeout=60, on_text=hear))
        await asyncio.sleep(0.8)
        await disturb(fresh)
        return [int(number) for number in re.findall(r"<(\d+) [\d.]+>", await counting)]


async def test_kill_9_of_the_daemon_loses_and_repeats_nothing(home):
    state = await home.client.launch(home.request())

    async def disturb(_fresh):
        await home.kill_daemon()
        await asyncio.sleep(0.5)
        after = await home.client.kernel("k1")
        assert after["client"] == state["client"]
        assert after["sandbox"] == state["sandbox"]
        await home.kill_daemon()
        await home.client.ensure()

    assert await numbers_across(home, state, disturb) == list(range(300))
    async with connected(state) as client:
        assert await run(client, "print(i)") == "299\n"
    await home.client.launch(home.request())
    await home.client.delete("k1")


def assert_once(found, count=300):
    """Nothing twice, nothing in another order, and nothing lost but what libzmq held at that moment.

    What a process has given to libzmq and its thread not yet to the system goes with the process: at
    one message in ten milliseconds that is one, and seldom. A bridge that had to wait for a processor
    passes on some at once; those are neighbours, and few beside what is said until the next one is there.
    """
    assert found == sorted(set(found)), "something came twice or out of order"
    missing = sorted(set(range(count)) - set(found))
    assert len(missing) <= 4, missing
    assert not missing or missing[-1] - missing[0] == len(missing) - 1, missing


async def test_kill_9_of_the_bridge_repeats_nothing_and_loses_what_libzmq_held(home):
    state = await home.client.launch(home.request())

    async def disturb(fresh):
        bridge = (await home.client.status())["bridge"]["pid"]
        await fresh()
        os.kill(bridge, signal.SIGKILL)
        await eventually(lambda: home.logged("endpoints bound again"))

    assert_once(await numbers_across(home, state, disturb))
    assert (await home.client.kernel("k1"))["client"] == state["client"]
    await home.client.delete("k1")


async def test_kill_9_of_both(home):
    state = await home.client.launch(home.request())

    async def disturb(fresh):
        bridge = (await home.client.status())["bridge"]["pid"]
        await home.kill_daemon()
        await fresh()
        os.kill(bridge, signal.SIGKILL)
        await home.client.ensure()
        await eventually(lambda: home.logged("endpoints bound again"))

    assert_once(await numbers_across(home, state, disturb))
    await home.client.delete("k1")


async def test_an_exit_while_no_daemon_ran_is_known_afterwards(home):
    state = await home.client.launch(home.request())
    async with connected(state) as client:
        await home.kill_daemon()
        client.execute("import os; os._exit(7)")
        await asyncio.sleep(1)
    async with asyncio.timeout(15):  # on a busy machine it may not have ended yet
        while (after := await home.client.kernel("k1"))["status"] != "exited":  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert (after["status"], after["exit_code"]) == ("exited", 7)
    await home.client.delete("k1")


async def test_a_sandbox_that_dies_is_replaced_behind_the_same_endpoints(home):
    state = await home.client.launch(home.request())
    os.kill(state["sandbox"]["pid"], signal.SIGKILL)
    assert await home.client.wait("k1", timeout_s=15) == -9
    await eventually(lambda: home.logged("lost"))
    gone = await home.client.kernel("k1")
    assert gone["status"] == "gone"
    assert "sandbox" in gone["reason"]
    assert not list(home.paths.kernels.iterdir())
    with pytest.raises(SandboxGone):
        await home.client.signal("k1", 2)
    await home.client.kill("k1")
    async with connected_later(state) as client:
        again = await home.client.launch(home.request())
        assert again["client"] == state["client"]
        assert again["sandbox"]["pid"] != state["sandbox"]["pid"]
        await client.wait_for_ready(timeout=20)
        assert await run(client, "print(1 + 1)") == "2\n"
    await home.client.delete("k1")


async def test_a_replacement_that_fails_leaves_the_kernel_lost(home):
    state = await home.client.launch(home.request())
    os.kill(state["sandbox"]["pid"], signal.SIGKILL)
    await eventually(lambda: home.logged("lost"))
    for _ in range(2):
        with pytest.raises(Exception, match="goodbye"):
            await home.client.launch(home.request(argv=home.program("raise SystemExit('goodbye')")))
        assert (await home.client.kernel("k1"))["status"] == "gone"
        assert not list(home.paths.kernels.iterdir())
    assert (await home.client.launch(home.request()))["client"] == state["client"]
    await home.client.delete("k1")


async def test_a_sandbox_that_died_while_no_daemon_ran(home):
    state = await home.client.launch(home.request())
    await home.kill_daemon()
    os.kill(state["sandbox"]["pid"], signal.SIGKILL)
    await home.client.ensure()
    await eventually(lambda: home.logged("lost"))
    assert (await home.client.kernel("k1"))["status"] == "gone"
    assert (await home.client.launch(home.request()))["client"] == state["client"]
    await home.client.delete("k1")


async def test_lost_endpoints_of_a_lost_kernel_are_bound_again_with_the_next_sandbox(home):
    state = await home.client.launch(home.request())
    bridge = (await home.client.status())["bridge"]["pid"]
    await home.kill_daemon()
    os.kill(state["sandbox"]["pid"], signal.SIGKILL)
    os.kill(bridge, signal.SIGKILL)
    assert (await home.client.kernel("k1"))["status"] == "gone"
    assert (await home.client.launch(home.request()))["client"] == state["client"]
    await home.client.delete("k1")


@pytest.mark.parametrize("moment_s", [0.02, 0.1, 0.2, 0.3, 0.5, 0.8])
async def test_kill_9_in_the_middle_of_a_launch(home, moment_s):
    """The client asks again by itself and gets its kernel; nothing of the first attempt is left."""
    await home.client.ensure()
    launch = asyncio.create_task(home.client.launch(home.request()))
    await asyncio.sleep(moment_s)
    await home.kill_daemon()
    assert (await launch)["status"] == "running"
    await eventually(lambda: len(list(home.paths.kernels.iterdir())) == 1)
    [folder] = home.paths.kernels.iterdir()
    await eventually(
        lambda: all(
            folder.name in line for line in home.processes().values() if "/state/k/" in line
        )
    )
    await home.client.delete("k1")


@needs_faults
@pytest.mark.parametrize("step", ["prepare", "fifos", "start", "started"])
async def test_kill_9_at_each_step_leaves_nothing_unreachable(home, monkeypatch, step):
    monkeypatch.setenv("TORPOR_TEST_HANG_AT", step)
    await home.client.ensure()
    launch = asyncio.create_task(home.client.launch(home.request()))
    await home.until_step(step)
    monkeypatch.delenv("TORPOR_TEST_HANG_AT")
    launch.cancel()
    await home.kill_daemon()
    with contextlib.suppress(asyncio.CancelledError):
        await launch
    assert await home.client.templates()
    await home.until_no_kernel()


async def test_what_a_lost_registry_knew_is_destroyed(home):
    state = await home.client.launch(home.request())
    await home.kill_daemon()
    for path in home.paths.state.glob("registry.sqlite*"):
        path.unlink()
    assert await home.client.kernels() == []
    await home.until_no_kernel()
    assert start_ticks(state["sandbox"]["pid"]) is None


async def test_after_a_reboot_nothing_is_mistaken_for_alive(home):
    await home.client.launch(home.request())
    await home.kill_daemon()
    import sqlite3

    db = sqlite3.connect(home.paths.registry)
    (body,) = db.execute("SELECT body FROM kernels").fetchone()
    row = json.loads(body)
    row["owner"]["boot_id"] = "another boot"
    db.execute("UPDATE kernels SET body = ?", (json.dumps(row),))
    db.commit()
    db.close()
    await home.client.ensure()
    await home.until_no_kernel()


OWNER = """
import asyncio, sys, time
import torpor.client as c
from torpor.api import *
from torpor.config import user_paths
c.daemon_argv = lambda: tuple(sys.argv[1:])
argv = (sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}")
endpoints = Endpoints("tcp", "127.0.0.1", dict.fromkeys(CHANNELS, 0), "key")
request = LaunchRequest("owned", argv, "/tmp", endpoints)
print(asyncio.run(c.Client(user_paths()).launch(request))["status"], flush=True)
time.sleep(60)
"""


@pytest.fixture
def owner(home):
    """A process that starts a kernel and holds its lease."""
    with subprocess.Popen([sys.executable, "-c", OWNER, *DAEMON], stdout=-1, text=True) as process:
        assert process.stdout.readline() == "running\n"
        yield process
        process.kill()


async def test_an_owners_death_is_noticed_at_once(home, owner):
    assert (await home.client.kernel("owned"))["owner"] == {"pid": owner.pid}
    owner.kill()
    died = time.time()
    await home.until_no_kernel()
    [noticed] = home.logged("owner died")
    assert datetime.fromisoformat(noticed["at"]).timestamp() - died < 4, (
        "it was told, and need not look"
    )


async def test_an_owners_death_is_noticed_without_being_reaped_by_its_parent(home, owner):
    os.kill(owner.pid, signal.SIGKILL)  # a zombie until the fixture ends
    await home.until_no_kernel()


async def test_an_owner_that_died_while_no_daemon_ran(home, owner):
    await home.kill_daemon()
    owner.kill()
    await home.client.ensure()
    await home.until_no_kernel()


async def test_an_owner_that_dies_in_the_middle_of_a_launch(home):
    code = OWNER.replace('"-m", "ipykernel_launcher"', '"-S", "-c", "import time; time.sleep(60)"')
    with subprocess.Popen([sys.executable, "-c", code, *DAEMON]) as process:  # noqa: ASYNC220
        await eventually(lambda: home.paths.daemon_socket.exists())
        await eventually(lambda: list(home.paths.kernels.iterdir()))
        process.kill()
    await home.until_no_kernel()


async def test_an_adopted_kernel_outlives_its_first_owner(home, owner):
    await home.client.adopt("owned", lease=True)
    owner.kill()
    await asyncio.sleep(1)
    assert (await home.client.kernel("owned"))["status"] == "running"
    await home.client.delete("owned")


@pytest.mark.parametrize("act", ["kill", "restart"])
async def test_right_after_the_bridge_died(home, act):
    state = await home.client.launch(home.request())
    os.kill((await home.client.status())["bridge"]["pid"], signal.SIGKILL)
    if act == "kill":
        await home.client.kill("k1")
        assert await home.client.wait("k1", timeout_s=15) == -9
    again = await home.client.launch(home.request())
    assert again["sandbox"] == state["sandbox"]  # nobody took it for dead
    assert again["client"] == state["client"]
    await home.client.delete("k1")


async def test_a_guest_that_does_not_obey_is_ended_with_its_sandbox(home):
    state = await home.client.launch(home.request())
    for process in psutil.Process(state["sandbox"]["pid"]).children(recursive=True):
        process.suspend()
    await home.client.kill("k1")
    after = await home.client.kernel("k1")
    assert (after["status"], after["exit_code"]) == ("gone", -9)
    assert "did not answer" in after["reason"]
    assert (await home.client.launch(home.request()))["client"] == state["client"]
    await home.client.delete("k1")
