"""The provisioner under jupyter_client's own managers."""

import asyncio
import contextlib
import json
import os
import socket
import stat
from pathlib import Path

import pytest
import zmq.asyncio
from jupyter_client.manager import AsyncKernelManager, KernelManager
from torpor.client import Client
from torpor.errors import ConfigError

from tests.integration.daemon.conftest import (
    client_of,
    run,
    write_spec,
)


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
        message = client.execute("print('on', flush=True)\nwhile True: pass")
        # Before the cell runs ipykernel takes no interrupt.
        while (heard := await client.get_iopub_msg(timeout=10))["msg_type"] != "stream":
            pass
        assert heard["parent_header"]["msg_id"] == message
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
