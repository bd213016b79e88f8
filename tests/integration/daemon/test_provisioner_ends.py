"""How a provisioner fails, recovers and ends: nothing stays behind, and only cleanup destroys."""

import asyncio
import json
import os
import signal
import subprocess
import sys

import nbformat
import pytest
import torpor.client
from jupyter_client.ioloop import AsyncIOLoopKernelManager
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.multikernelmanager import AsyncMultiKernelManager
from nbclient import NotebookClient
from torpor.client import Client
from torpor.errors import BackendUnavailable, Busy, ConfigError, LaunchError, SandboxGone
from torpor.provisioner import TorporProvisioner

from tests.integration.daemon.conftest import (
    DAEMON,
    client_of,
    eventually,
    needs_faults,
    run,
    write_spec,
)


@pytest.mark.parametrize(
    ("spec", "error", "said"),
    [
        ({"argv": ["/no/such/kernel", "{connection_file}"]}, ConfigError, "/no/such/kernel"),
        (
            {"argv": [sys.executable, "-c", "raise SystemExit('broken kernel')"]},
            LaunchError,
            "broken kernel",
        ),
        (
            {
                "metadata": {
                    "kernel_provisioner": {
                        "provisioner_name": "torpor-provisioner",
                        "config": {"template": "huge"},
                    }
                }
            },
            ConfigError,
            "there is no template 'huge'",
        ),
    ],
    ids=["program", "exits", "template"],
)
async def test_a_failed_start_leaves_nothing(km, jupyter, spec, error, said):
    write_spec(jupyter, **spec)
    with pytest.raises(error, match=said):
        await km.start_kernel()
    assert not km.has_kernel
    assert await jupyter.client.kernels() == []
    write_spec(jupyter)
    km._kernel_spec = None
    km.provisioner = None
    await km.start_kernel()  # the manager is none the worse
    await km.shutdown_kernel(now=True)


async def test_a_failed_restart_can_be_tried_again(km, jupyter):
    await km.start_kernel()
    good = km.provisioner.kernel_spec.argv
    km.provisioner.kernel_spec.argv = [sys.executable, "-c", "raise SystemExit('broken')"]
    with pytest.raises(LaunchError, match="broken"):
        await km.restart_kernel(now=True)
    assert not await km.is_alive()
    assert len(await jupyter.client.kernels()) == 1
    km.provisioner.kernel_spec.argv = good
    await km.restart_kernel(now=True)
    async with client_of(km) as client:
        assert await run(client, "print(3)") == "3\n"
    await km.shutdown_kernel()
    assert await jupyter.client.kernels() == []


@needs_faults
@pytest.mark.parametrize("step", ["templates", "prepare", "fifos", "start", "started", "ready"])
@pytest.mark.parametrize("times", [1, 2])
async def test_a_cancelled_start_leaves_nothing(km, jupyter, monkeypatch, step, times):
    if step == "templates":
        monkeypatch.setattr(Client, "templates", lambda self: asyncio.sleep(60))
    elif step == "ready":
        write_spec(jupyter, argv=[sys.executable, "-S", "-c", "import time; time.sleep(60)"])
    else:
        monkeypatch.setenv("TORPOR_TEST_HANG_AT", step)
    await jupyter.client.ensure()
    start = asyncio.create_task(km.start_kernel())
    await asyncio.sleep(0.8)
    for _ in range(times):
        start.cancel()
        await asyncio.sleep(0.003)
    with pytest.raises(asyncio.CancelledError):
        await start
    assert not km.has_kernel
    assert await jupyter.client.kernels() == []
    assert not list(jupyter.paths.kernels.iterdir())


async def test_cleanup_finishes_when_cancelled(km, jupyter):
    await km.start_kernel()
    cleaning = asyncio.create_task(km.provisioner.cleanup(restart=False))
    for _ in range(2):
        await asyncio.sleep(0.002)
        cleaning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cleaning
    assert await jupyter.client.kernels() == []


async def test_only_cleanup_destroys(km, jupyter):
    await km.start_kernel()
    provisioner = km.provisioner
    await provisioner.shutdown_requested(restart=False)
    await provisioner.kill(restart=False)
    await provisioner.terminate(restart=False)
    assert await provisioner.wait() == -signal.SIGKILL
    assert not provisioner.has_process
    assert await provisioner.poll() == 0
    await provisioner.cleanup(restart=True)
    assert len(await jupyter.client.kernels()) == 1
    await provisioner.cleanup(restart=False)
    await provisioner.cleanup(restart=False)
    assert await jupyter.client.kernels() == []


async def test_poll_is_alive_unless_it_is_known_to_be_dead(km, jupyter, monkeypatch):
    await km.start_kernel()
    provisioner = km.provisioner
    await jupyter.kill_daemon()
    assert await provisioner.poll() is None  # started it again

    async def away(self, kernel_id):
        raise BackendUnavailable("torpord is away")

    with monkeypatch.context() as patched:
        patched.setattr(Client, "kernel", away)
        assert await provisioner.poll() is None
    await provisioner.send_signal(0)
    await provisioner.kill()
    await eventually_dead(provisioner)
    await jupyter.client.delete(km.kernel_id)
    assert await provisioner.poll() == -signal.SIGKILL
    assert await provisioner.wait() == -signal.SIGKILL
    await provisioner.send_signal(signal.SIGINT)
    await provisioner.kill()
    await provisioner.terminate()


async def eventually_dead(provisioner):
    async with asyncio.timeout(5):
        while await provisioner.poll() is None:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_what_is_gone_is_no_error_when_ending_it(km, jupyter):
    await km.start_kernel()
    await jupyter.client.delete(km.kernel_id)
    for act in (km.provisioner.kill, km.provisioner.terminate):
        await act()
    await km.provisioner.send_signal(2)
    await km.shutdown_kernel()


@pytest.mark.parametrize("victim", ["kernel", "sandbox"])
async def test_a_dead_kernel_is_restarted_automatically(jupyter, victim):
    km = AsyncIOLoopKernelManager(kernel_name="sandboxed")
    km._restarter  # noqa: B018
    await km.start_kernel()
    km._restarter._pcallback.callback_time = 200
    restarts = []
    km.add_restart_callback(lambda: restarts.append(1), "restart")
    async with client_of(km) as client:
        before = km.get_connection_info()
        if victim == "kernel":
            client.execute("import os; os._exit(1)")
        else:
            state = await jupyter.client.kernel(km.kernel_id)
            os.kill(state["sandbox"]["pid"], signal.SIGKILL)
        await eventually(lambda: restarts, within_s=10)
        await asyncio.sleep(1.5)
        await client.wait_for_ready(timeout=20)
        assert await run(client, "print(4)") == "4\n"
        assert km.get_connection_info() == before
    km.stop_restarter()
    await km.shutdown_kernel(now=True)
    km.context.destroy(linger=0)


async def test_a_kernel_that_cannot_be_restarted_is_given_up(jupyter):
    km = AsyncIOLoopKernelManager(kernel_name="sandboxed")
    await km.start_kernel()
    km._restarter.restart_limit, km._restarter.time_to_dead = 2, 0.2
    km._restarter._pcallback.callback_time = 200
    restarts, deaths = [], []
    km.add_restart_callback(lambda: restarts.append(1), "restart")
    km.add_restart_callback(lambda: deaths.append(1), "dead")
    km.provisioner.kernel_spec.argv = [sys.executable, "-c", "raise SystemExit('broken')"]
    await km.provisioner.kill()
    await eventually(lambda: deaths, within_s=20)
    assert len(restarts) == 2
    await km.shutdown_kernel(now=True)
    assert await jupyter.client.kernels() == []
    km.context.destroy(linger=0)


async def test_another_process_takes_over(km, jupyter):
    await km.start_kernel()
    told = json.dumps(await km.provisioner.get_provisioner_info())
    other = TorporProvisioner(kernel_spec=KernelSpec(), kernel_id="")
    await other.load_provisioner_info(json.loads(told))
    assert other.kernel_id == km.kernel_id
    assert other.connection_info == km.provisioner.connection_info
    assert other.connection_info is not TorporProvisioner.connection_info
    assert await other.poll() is None
    await other.cleanup(restart=False)
    with pytest.raises(SandboxGone):
        await other.load_provisioner_info(json.loads(told))
    with pytest.raises(ConfigError):
        await other.load_provisioner_info({"kernel_id": "x", "connection_info": {}})


async def test_paths_that_both_sides_see(km, jupyter):
    (jupyter.path / "file.py").write_text("")
    await km.start_kernel()
    resolve = km.provisioner.resolve_path
    assert resolve("file.py") == str(jupyter.path / "file.py")
    assert resolve(str(jupyter.path / "file.py")) == str(jupyter.path / "file.py")
    assert resolve("missing.py") is None
    assert resolve("/etc/passwd") is None
    assert resolve("../../etc/passwd") is None
    await km.shutdown_kernel(now=True)


async def test_the_servers_root_is_the_workspace(jupyter):
    (jupyter.path / "root/below").mkdir(parents=True)
    (jupyter.path / "elsewhere").mkdir()

    class Mapping(AsyncMultiKernelManager):
        root_dir = str(jupyter.path / "root")

    kernels = Mapping()
    for cwd, expected in (("root/below", "root"), ("elsewhere", "elsewhere")):
        kernel_id = await kernels.start_kernel(kernel_name="sandboxed", cwd=str(jupyter.path / cwd))
        state = await jupyter.client.kernel(kernel_id)
        assert state["workspace"]["path"] == str(jupyter.path / expected)
        assert kernels.get_kernel(kernel_id).provisioner._cwd == str(jupyter.path / cwd)
    await kernels.shutdown_all(now=True)
    assert await jupyter.client.kernels() == []
    kernels.context.destroy(linger=0)


SHORT_LIVED = """
import sys
import torpor.client
torpor.client.daemon_argv = lambda: tuple(sys.argv[1:])
from jupyter_client.manager import KernelManager
km = KernelManager(kernel_name="sandboxed")
km.start_kernel()
print(km.kernel_id, flush=True)
import os
os._exit(0)
"""


async def test_kernels_of_a_process_that_just_ends_are_reaped(jupyter):
    command = [sys.executable, "-c", SHORT_LIVED, *DAEMON]
    ran = await asyncio.to_thread(
        subprocess.run, command, check=True, stdout=subprocess.PIPE, timeout=60
    )
    assert ran.stdout.strip()
    await jupyter.until_no_kernel()
    assert jupyter.logged("owner died")


async def test_nbclient(jupyter):
    cell = nbformat.v4.new_code_cell
    notebook = nbformat.v4.new_notebook(cells=[cell("a = 6"), cell("print(a * 7)")])
    client = NotebookClient(notebook, kernel_name="sandboxed", timeout=30)
    await client.async_execute()
    assert notebook.cells[1].outputs[0]["text"] == "42\n"
    assert await jupyter.client.kernels() == []


async def test_torpord_that_cannot_start_is_a_readable_error(km, jupyter, monkeypatch):
    broken = (sys.executable, "-c", "raise SystemExit('this is why')")
    monkeypatch.setattr(torpor.client, "daemon_argv", lambda: broken)
    with pytest.raises(BackendUnavailable, match="this is why"):
        await km.start_kernel()
    assert not km.has_kernel


async def test_a_second_kernel_of_the_same_name_does_no_harm(km, jupyter):
    await km.start_kernel()
    other = AsyncKernelManager(kernel_name="sandboxed", kernel_id=km.kernel_id)
    with pytest.raises(Busy, match="another connection file"):
        await other.start_kernel()
    async with client_of(km) as client:
        assert await run(client, "print(5)") == "5\n"
    await km.shutdown_kernel(now=True)
    other.context.destroy(linger=0)
