"""The provisioner under jupyter_client's own managers."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import torpor.client
import zmq.asyncio
from jupyter_client.ioloop import AsyncIOLoopKernelManager
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager, KernelManager
from jupyter_client.multikernelmanager import AsyncMultiKernelManager
from nbclient import NotebookClient
from torpor.client import Client
from torpor.errors import BackendUnavailable, Busy, ConfigError, LaunchError, SandboxGone
from torpor.provisioner import TorporProvisioner

from tests.integration.daemon.conftest import DAEMON, IPYKERNEL, eventually, needs_faults

TOKEN = "server-token-that-must-not-leak"


def write_spec(home, name="sandboxed", **changes):
    folder = home.path / "jupyter/kernels" / name
    folder.mkdir(parents=True, exist_ok=True)
    spec = {
        "argv": list(IPYKERNEL),
        "display_name": "Python (sandboxed)",
        "language": "python",
        "metadata": {
            "supported_encryption": ["curve"],
            "kernel_provisioner": {"provisioner_name": "torpor-provisioner"},
        },
    }
    (folder / "kernel.json").write_text(json.dumps(spec | changes))


@pytest.fixture
def jupyter(home, monkeypatch):
    """A Jupyter of the test's own, in whose environment there is a token."""
    monkeypatch.setenv("JUPYTER_PATH", str(home.path / "jupyter"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(home.path / "jr"))
    monkeypatch.setenv("IPYTHONDIR", str(home.path / "ipython"))
    monkeypatch.setenv("JUPYTERHUB_API_TOKEN", TOKEN)
    monkeypatch.setenv("JPY_PARENT_PID", "1")
    monkeypatch.chdir(home.path)
    write_spec(home)
    return home


@contextlib.asynccontextmanager
async def client_of(km):
    client = km.client()
    client.start_channels()
    try:
        await client.wait_for_ready(timeout=20)
        yield client
    finally:
        client.stop_channels()


async def run(client, code):
    printed = []

    def hear(message):
        if message["msg_type"] == "stream":
            printed.append(message["content"]["text"])

    reply = await client.execute_interactive(code, output_hook=hear, timeout=20)
    assert reply["content"]["status"] == "ok", reply["content"]
    return "".join(printed)


@pytest.fixture
async def km(jupyter):
    # A context of our own: the manager would close one that it made with the first kernel.
    manager = AsyncKernelManager(kernel_name="sandboxed", context=zmq.asyncio.Context())
    yield manager
    if manager.provisioner is not None:
        await manager.provisioner.cleanup(restart=False)
    manager.context.destroy(linger=0)


async def test_a_whole_life(km, jupyter):
    await km.start_kernel()
    assert km.has_kernel
    assert await km.is_alive()
    async with client_of(km) as client:
        before = km.get_connection_info()
        assert await run(client, "x = 1; print(open('/proc/self/comm').read())")
        await km.interrupt_kernel()
        await km.restart_kernel(now=True)
        await client.wait_for_ready(timeout=20)
        assert await run(client, "print('x' in globals())") == "False\n"
        await km.restart_kernel()
        await client.wait_for_ready(timeout=20)
        assert km.get_connection_info() == before
        kernel = (await jupyter.client.kernels())[0]
        assert kernel["kernel_id"] == km.kernel_id
    await km.shutdown_kernel()
    assert not km.has_kernel
    assert not await km.is_alive()
    assert await jupyter.client.kernels() == []
    assert not os.path.exists(km.connection_file)
    await km.start_kernel()  # the same manager again
    await km.shutdown_kernel(now=True)
    assert await jupyter.client.kernels() == []


async def test_interrupting_a_loop(km):
    await km.start_kernel()
    async with client_of(km) as client:
        message = client.execute("while True: pass")
        await asyncio.sleep(0.5)
        await km.interrupt_kernel()
        while (reply := await client.get_shell_msg(timeout=10))["parent_header"][
            "msg_id"
        ] != message:
            pass
        assert reply["content"]["ename"] == "KeyboardInterrupt"
    await km.shutdown_kernel(now=True)


def test_a_whole_life_in_a_synchronous_manager(jupyter):
    km = KernelManager(kernel_name="sandboxed")
    km.start_kernel()
    client = km.client()
    client.start_channels()
    try:
        for now in (True, False):
            client.wait_for_ready(timeout=20)
            reply = client.execute_interactive("x = 1", timeout=10)
            assert reply["content"]["status"] == "ok"
            km.interrupt_kernel()
            km.restart_kernel(now=now)
        client.wait_for_ready(timeout=20)
        assert km.is_alive()
        km.shutdown_kernel()
        assert not km.is_alive()
    finally:
        client.stop_channels()
        km.context.destroy(linger=0)
        client.context.destroy(linger=0)


async def test_a_synchronous_manager_inside_a_running_loop(jupyter):
    km = KernelManager(kernel_name="sandboxed")
    km.start_kernel()  # goes to a background loop
    assert km.is_alive()
    await asyncio.to_thread(km.restart_kernel, now=True)
    assert km.is_alive()
    km.shutdown_kernel(now=True)
    km.context.destroy(linger=0)


async def test_only_what_is_meant_for_the_kernel_gets_in(km, monkeypatch, jupyter):
    write_spec(jupyter, env={"FROM_SPEC": "1", "TEMPLATED": "${HOME}/x"})
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    env = {**os.environ, "JPY_SESSION_NAME": "/a.ipynb", "MINE": "2"}
    await km.start_kernel(env=env)
    monkeypatch.setenv("JUPYTERHUB_API_TOKEN", "renewed")  # the old one is no explicit wish now
    for _ in range(2):
        async with client_of(km) as client:
            seen = json.loads(
                await run(client, "import os, json; print(json.dumps(dict(os.environ)))")
            )
        assert seen["FROM_SPEC"] == "1"
        assert seen["TEMPLATED"].endswith("/x")
        assert (seen["JPY_SESSION_NAME"], seen["MINE"]) == ("/a.ipynb", "2")
        assert seen["LC_ALL"] == "C.UTF-8"
        assert not {"JUPYTERHUB_API_TOKEN", "JPY_PARENT_PID", "TORPOR_HOME"} & set(seen)
        await km.restart_kernel(now=True)
    await km.shutdown_kernel(now=True)


async def test_the_connection_file(km):
    await km.start_kernel(env={**os.environ, "JPY_SESSION_NAME": "nb"})
    path = Path(km.connection_file)
    told = json.loads(path.read_text())
    assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
    assert told["key"].encode() == km.session.key
    assert told["jupyter_session"] == "nb"
    info = km.provisioner.connection_info
    assert isinstance(info["key"], bytes)
    assert {info[f"{name}_port"] for name in ("shell", "iopub", "stdin", "hb", "control")} == {
        told[f"{name}_port"] for name in ("shell", "iopub", "stdin", "hb", "control")
    }
    await km.restart_kernel(now=True, newports=True)
    assert json.loads(Path(km.connection_file).read_text())["shell_port"] == info["shell_port"]
    await km.shutdown_kernel(now=True)


async def test_the_connection_file_is_there_before_and_after_the_launch(km, jupyter, monkeypatch):
    launch = Client.launch

    async def launching(self, request):
        assert not os.path.exists(km.connection_file)  # it would tell of a kernel that is not there
        return await launch(self, request)

    monkeypatch.setattr(Client, "launch", launching)
    km.transport_encryption = "auto"
    await km._async_pre_start_kernel()
    told = json.loads(Path(km.connection_file).read_text())
    assert told["shell_port"] == km.shell_port != 0
    assert told["curve_publickey"] == km.provisioner.connection_info["curve_publickey"]
    await km.provisioner.pre_launch()
    assert json.loads(Path(km.connection_file).read_text()) == told
    with socket.socket() as other:  # somebody takes a port that we had found
        other.bind((km.ip, km.shell_port))
        await km.start_kernel()
    bound = json.loads(Path(km.connection_file).read_text())
    assert bound["shell_port"] == km.shell_port != told["shell_port"]
    assert bound["curve_publickey"] == told["curve_publickey"]
    async with client_of(km) as client:
        assert await run(client, "print(1)") == "1\n"
    await km.shutdown_kernel(now=True)


async def test_a_failed_start_takes_its_connection_file_with_it(km, jupyter):
    write_spec(jupyter, argv=["no-such-kernel"])
    with pytest.raises(FileNotFoundError, match="no-such-kernel"):
        await km.start_kernel()
    assert not os.path.exists(km.connection_file)
    assert km.shell_port == 0
    assert await jupyter.client.kernels() == []


@pytest.mark.parametrize("ip", ["", "relative"])
async def test_ipc(jupyter, ip):
    km = AsyncKernelManager(kernel_name="sandboxed", transport="ipc")
    if ip:
        km.ip = ip
    await km.start_kernel()
    assert km.transport == "ipc"
    assert km.get_connection_info()["ip"] == (ip or km.ip)
    async with client_of(km) as client:
        assert await run(client, "print(1)") == "1\n"
        await km.restart_kernel(now=True)  # jupyter_client unlinks the sockets on the way
    async with client_of(km) as client:
        assert await run(client, "print(2)") == "2\n"
    (jupyter.path / "elsewhere").mkdir()
    os.chdir(jupyter.path / "elsewhere")
    await km.restart_kernel(now=True)  # it is still the same kernel
    os.chdir(jupyter.path)
    await km.shutdown_kernel(now=True)
    km.context.destroy(linger=0)


@pytest.mark.parametrize("policy", ["auto", "required"])
async def test_curve(jupyter, policy):
    km = AsyncKernelManager(kernel_name="sandboxed", transport_encryption=policy)
    await km.start_kernel()
    told = json.loads(Path(km.connection_file).read_text())
    assert told["curve_publickey"]
    async with client_of(km) as client:
        assert await run(client, "print(1)") == "1\n"
        await km.restart_kernel(now=True)
        await client.wait_for_ready(timeout=20)
    assert json.loads(Path(km.connection_file).read_text()) == told
    with zmq.Context() as context, context.socket(zmq.DEALER) as plain:
        plain.linger, plain.sndtimeo = 0, 500
        plain.connect(km._make_url("shell"))
        with contextlib.suppress(zmq.Again):
            km.session.send(plain, "kernel_info_request")
        assert not plain.poll(1000)
    await km.shutdown_kernel(now=True)
    km.context.destroy(linger=0)


async def test_an_address_that_is_not_ours(jupyter):
    km = AsyncKernelManager(kernel_name="sandboxed", ip="203.0.113.7")
    with pytest.raises(ConfigError, match=r"203\.0\.113\.7"):
        await km.start_kernel()
    assert await jupyter.client.kernels() == []
    km.context.destroy(linger=0)


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
    ended = time.monotonic()
    assert ran.stdout.strip()
    await jupyter.until_no_kernel(within_s=3)
    assert time.monotonic() - ended < 3
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
