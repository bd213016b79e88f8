"""A real client, the real bridge process, a real guest and a real ipykernel: what people do with them."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable
from typing import Any

import pytest
from jupyter_client.blocking.client import BlockingKernelClient

from tests.integration.bridge.harness import World, soon

TIMEOUT_S = 30


def outputs(client: BlockingKernelClient, code: str, **options: Any) -> list[dict[str, Any]]:
    """Execute ``code`` and give every output message it caused."""
    found: list[dict[str, Any]] = []
    options.setdefault("output_hook", found.append)
    client.execute_interactive(code, timeout=TIMEOUT_S, **options)
    return found


def text(messages: list[dict[str, Any]]) -> str:
    streams = (m["content"] for m in messages if m["msg_type"] == "stream")
    return "".join(content["text"] for content in streams)


async def ready(world: World) -> BlockingKernelClient:
    client = world.client()
    await world.run(client.wait_for_ready, timeout=TIMEOUT_S)
    return client


@pytest.mark.parametrize("transport", ["tcp", "ipc"])
@pytest.mark.parametrize("curve", [False, True])
async def test_execute_over_every_transport(world: World, transport: str, curve: bool) -> None:
    await world.open(transport=transport, curve=curve)
    client = await ready(world)
    assert text(await world.run(outputs, client, "print(6 * 7)")) == "42\n"
    status = await world.bridge.call("status", kernel_id="k1")
    assert (status["link"], status["guest"], status["execution_state"]) == ("open", "ready", "idle")
    assert [name for name in status["counters"] if name.startswith("dropped")] == []


async def test_unsigned_when_the_key_is_empty(world: World) -> None:
    await world.open(key="")
    client = await ready(world)
    assert text(await world.run(outputs, client, "print('x')")) == "x\n"


@pytest.mark.parametrize("ask", ["input('? ')", "__import__('getpass').getpass('? ')"])
async def test_questions_reach_the_client_that_asked(world: World, ask: str) -> None:
    await world.open()
    client = await ready(world)

    def answer(message: dict[str, Any]) -> None:
        assert message["content"]["prompt"] == "? "
        client.input("torpor")

    found = await world.run(
        outputs, client, f"print({ask}.upper())", allow_stdin=True, stdin_hook=answer
    )
    assert "TORPOR" in text(found)


COMM = """
from comm import create_comm
import comm
def target(channel, message):
    channel.send({"echo": message["content"]["data"]},
    buffers=[bytes(reversed(message["buffers"][0]))])
comm.get_comm_manager().register_target("t", target)
"""


async def test_comm_with_a_buffer(world: World) -> None:
    await world.open()
    client = await ready(world)

    def talk() -> dict[str, Any]:
        outputs(client, COMM)
        content = {"comm_id": "c", "target_name": "t", "data": {"n": 1}}
        client.session.send(client.shell_channel.socket, "comm_open", content, buffers=[b"abc"])
        return wait_for(client, "comm_msg")

    message = await world.run(talk)
    assert message["content"]["data"] == {"echo": {"n": 1}}
    assert bytes(message["buffers"][0]) == b"cba"


def wait_for(client: BlockingKernelClient, kind: str) -> dict[str, Any]:
    while True:
        message = client.get_iopub_msg(timeout=TIMEOUT_S)
        if message["msg_type"] == kind:
            return dict(message)


BIG = """
import comm, hashlib
def target(channel, message):
    channel.send({"sha": hashlib.sha256(message["buffers"][0]).hexdigest()},
    buffers=[message["buffers"][0]])
comm.get_comm_manager().register_target("t", target)
"""


async def test_hundred_megabytes_each_way(world: World) -> None:
    await world.open()
    client = await ready(world)
    blob = os.urandom(1 << 20) * 100

    def talk() -> dict[str, Any]:
        outputs(client, BIG)
        content = {"comm_id": "c", "target_name": "t", "data": {}}
        client.session.send(client.shell_channel.socket, "comm_open", content, buffers=[blob])
        return wait_for(client, "comm_msg")

    message = await world.run(talk)
    assert message["content"]["data"]["sha"] == hashlib.sha256(blob).hexdigest()
    assert memoryview(message["buffers"][0]) == blob


async def test_five_thousand_prints_arrive_in_order(world: World) -> None:
    await world.open()
    client = await ready(world)
    code = "for i in range(5000): print(i, flush=True)"
    found = await world.run(outputs, client, code)
    assert text(found) == "".join(f"{i}\n" for i in range(5000))


@pytest.mark.parametrize("code", ["while True: pass", "import time; time.sleep(60)"])
@pytest.mark.parametrize("how", ["message", "signal"])
async def test_interrupt(world: World, code: str, how: str) -> None:
    await world.open()
    client = await ready(world)

    def start() -> str:
        ident = client.execute(f"print('on', flush=True)\n{code}")
        wait_for(client, "stream")
        return ident

    ident = await world.run(start)
    if how == "message":
        request = client.session.msg("interrupt_request", {})
        client.control_channel.send(request)
    else:
        await world.bridge.call("rpc", kernel_id="k1", method="signal", params={"signum": 2})
    reply = await world.run(reply_to, client.get_shell_msg, ident)
    assert reply["content"]["ename"] == "KeyboardInterrupt"


def reply_to(get: Callable[..., dict[str, Any]], ident: str) -> dict[str, Any]:
    while True:
        reply = get(timeout=TIMEOUT_S)
        if reply["parent_header"]["msg_id"] == ident:
            return reply


async def test_asynchronous_client(world: World) -> None:
    await world.open()
    client = await world.async_client()
    found: list[dict[str, Any]] = []
    await client.execute_interactive("print('async')", timeout=TIMEOUT_S, output_hook=found.append)
    assert text(found) == "async\n"


async def test_restart_in_the_same_sandbox_keeps_the_endpoints(world: World) -> None:
    await world.open()
    client = await ready(world)
    await world.run(outputs, client, "x = 1")
    await world.bridge.call("rpc", kernel_id="k1", method="restart", params={"start": None})
    body = await world.event("k1", "ready")
    assert body["generation"] == 2
    reply = await world.run(client.execute, "x", reply=True, timeout=TIMEOUT_S)
    assert reply["content"]["ename"] == "NameError"


async def test_death_is_reported_and_stops_the_heart(world: World) -> None:
    await world.open()
    client = await ready(world)
    client.hb_channel.start()
    await asyncio.sleep(1.2)  # it asks once a second, and until then says that it beats
    assert await soon(client.hb_channel.is_beating, 20)
    client.execute("import os; os.kill(os.getpid(), 9)")
    body = await world.event("k1", "exited")
    assert body["exit_code"] == -9
    status = await world.bridge.call("status", kernel_id="k1")
    assert (status["guest"], status["exit_code"]) == ("exited", -9)
    assert await soon(lambda: not client.hb_channel.is_beating(), 20)
