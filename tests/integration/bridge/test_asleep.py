"""A kernel that is asleep: what its clients see, and what happens to what they want."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from pathlib import Path

import pytest
import zmq
from jupyter_client.blocking.client import BlockingKernelClient

from tests.integration.bridge.bench import cpu_s
from tests.integration.bridge.harness import connection_file
from tests.integration.bridge.sleeper import (
    KERNEL_INFO,
    TOPIC,
    Bed,
    receive,
)
from tests.integration.bridge.standin import Standin
from tests.integration.bridge.test_hold import ask, overheard
from tests.integration.bridge.test_waking import reopened

RECORDED = Path(__file__).with_name("presence-ipykernel-7.4.0.json")


async def test_looking_wakes_nobody(bed: Bed) -> None:
    listener = bed.raw.listener()
    assert await overheard(bed, listener, 1) == ["welcome"]
    for channel in ("shell", "control"):
        socket = bed.raw.dealer(channel)
        reply = await ask(bed, socket, "kernel_info_request")
        assert (reply["msg_type"], reply["content"]) == ("kernel_info_reply", KERNEL_INFO)
        reply = await ask(bed, socket, "comm_info_request")
        comms = {"c1": {"target_name": "t"}, "c2": {"target_name": "u"}}
        assert reply["content"] == {"status": "ok", "comms": comms}
        reply = await ask(bed, socket, "comm_info_request", target_name="t")
        assert reply["content"]["comms"] == {"c1": {"target_name": "t"}}
        reply = await ask(bed, socket, "comm_info_request", target_name="none")
        assert reply["content"]["comms"] == {}
    heart = bed.raw.context.socket(zmq.REQ)
    heart.rcvtimeo = 5_000
    heart.connect(f"tcp://127.0.0.1:{bed.raw.ports['hb']}")
    heart.send(b"ping")
    assert await asyncio.to_thread(heart.recv) == b"ping"
    kinds = ["kernel_info_request", *["comm_info_request"] * 3] * 2
    expected = [f"{state} {kind}" for kind in kinds for state in ("busy", "idle")]
    assert await overheard(bed, listener, 16) == expected
    status = await bed.status()
    names = ("state", "waiting", "link", "guest", "execution_state")
    assert [status[name] for name in names] == ["asleep", 0, "closed", "ready", "idle"]
    assert bed.told("intent") == []


async def test_two_clients_get_their_own_answers(bed: Bed) -> None:
    sockets = [bed.raw.dealer(identity=name) for name in (b"one", b"two")]
    requests = [bed.raw.request("kernel_info_request") for _ in sockets]
    for socket, request in zip(sockets, requests, strict=True):
        socket.send_multipart(request)
    for socket, request in zip(sockets, requests, strict=True):
        reply = bed.raw.read(await receive(socket))
        assert reply["parent_header"]["msg_id"] == json.loads(request[2])["msg_id"]
        socket.rcvtimeo = 100
        with pytest.raises(zmq.Again):
            await receive(socket)


@pytest.mark.parametrize("kind", ["kernel_info", "comm_info", "interrupt", "shutdown"])
async def test_answers_look_like_a_kernels(bed: Bed, kind: str) -> None:
    """Every frame as ipykernel forms it, except for what is unique in each message."""
    recorded = json.loads(RECORDED.read_text())[kind]
    listener, control = bed.raw.listener(), bed.raw.dealer("control")
    await receive(listener)
    content = {"restart": False} if kind == "shutdown" else {}
    request = bed.raw.request(f"{kind}_request", **content)
    control.send_multipart(request)
    found = {"control": [await receive(control)]}
    found["iopub"] = [await receive(listener) for _ in recorded["iopub"]]
    for channel, messages in found.items():
        for parts, expected in zip(messages, recorded[channel], strict=True):
            cut = parts.index(b"<IDS|MSG>")
            topics = [part.decode().removeprefix(TOPIC) for part in parts[:cut]]
            assert topics == expected["topics"]
            bed.raw.session.deserialize(parts[cut + 1 :])  # the signature
            header, parent, metadata = (json.loads(part) for part in parts[cut + 2 : cut + 5])
            assert list(header) == expected["header"]
            assert header["msg_type"] == expected["msg_type"]
            assert parent == json.loads(request[2])
            assert metadata == expected["metadata"]
            assert len(parts) == cut + 6
            if expected["content"] is not None:
                assert json.loads(parts[cut + 5]) == expected["content"]


@pytest.mark.parametrize("restart", [False, True])
async def test_shutdown_is_left_to_the_daemon(bed: Bed, restart: bool) -> None:
    control = bed.raw.dealer("control")
    reply = await ask(bed, control, "shutdown_request", restart=restart)
    assert reply["content"] == {"status": "ok", "restart": restart}
    event = {"event": "shutdown_wanted", "kernel_id": "k1", "restart": restart}
    await bed.until(lambda: bed.told("shutdown_wanted") == [event])
    assert bed.told("intent") == []
    if restart:
        dealer = bed.raw.dealer()
        dealer.send_multipart(bed.raw.request(code="1"))
        await bed.waits(1)
        fresh = Standin(bed.folder / "fresh")
        bed.world.sandboxes.append(fresh)  # type: ignore[arg-type]
        await bed.call("relink", **fresh.fifos)
        await receive(dealer)
        status = await bed.status()
        assert (status["state"], status["waiting"], status["link"]) == ("awake", 0, "open")
    else:
        await bed.call("close")
        assert list((bed.world.paths.runtime / "bridge").iterdir()) == []


def nudge(client: BlockingKernelClient) -> tuple[str, str]:
    """Do what jupyter_server does before a websocket opens; give the types it was content with."""
    shell, control = client.shell_channel, client.control_channel
    for _ in range(20):
        client.session.send(shell.socket, "kernel_info_request")
        client.session.send(control.socket, "kernel_info_request")
        until = time.monotonic() + 0.5
        reply = published = None
        while time.monotonic() < until and not (reply and published):
            if reply is None and (shell.socket.poll(10) or control.socket.poll(10)):
                channel = shell if shell.socket.poll(0) else control
                reply = channel.get_msg(timeout=1)["msg_type"]
            if published is None and client.iopub_channel.socket.poll(10):
                published = client.iopub_channel.get_msg(timeout=1)["msg_type"]
        if reply and published:
            return reply, published
    raise AssertionError("nudged in vain")


async def test_a_nudge_is_content_and_wakes_nobody(bed: Bed) -> None:
    bed.world.connections["k1"] = connection_file(
        {"curve_publickey": None, **bed.request["client"], "ports": bed.raw.ports}
    )
    client = await bed.world.run(bed.world.client)
    reply, published = await bed.world.run(nudge, client)
    assert reply == "kernel_info_reply"
    assert published in ("status", "iopub_welcome")
    await bed.world.run(client.wait_for_ready, timeout=10)
    assert bed.told("intent") == []
    assert (await bed.status())["state"] == "asleep"


@pytest.mark.slow
async def test_five_thousand_polls_are_cheap(bed: Bed) -> None:
    pid, dealer, listener = await bed.world.bridge_pid(), bed.raw.dealer(), bed.raw.listener()
    await receive(listener)
    before, start = cpu_s(pid), time.monotonic()

    def poll() -> int:
        answers = states = 0
        for number in range(5_000):
            dealer.send_multipart(bed.raw.request("kernel_info_request"))
            if number >= 50:  # as many are under way at any time
                dealer.recv_multipart()
                answers += 1
            while listener.poll(0):
                listener.recv_multipart()
                states += 1
        while answers < 5_000:
            dealer.recv_multipart()
            answers += 1
        while states < 10_000:
            listener.recv_multipart()
            states += 1
        return states

    assert await asyncio.to_thread(poll) == 10_000
    print(f"{cpu_s(pid) - before:.2f} s of CPU, {time.monotonic() - start:.2f} s")
    assert cpu_s(pid) - before < 4
    assert bed.told("intent") == []
    status = await bed.status()
    assert (status["state"], status["counters"]["answered"]) == ("asleep", 5_000)
    assert [name for name in status["counters"] if name.startswith("dropped")] == []


async def test_who_asks_and_never_listens_holds_up_only_himself(bed: Bed) -> None:
    deaf, good = bed.raw.dealer(), bed.raw.dealer()
    deaf.rcvhwm = 1
    pid = await bed.world.bridge_pid()

    def flood() -> None:
        for _ in range(30_000):
            deaf.send_multipart(bed.raw.request("kernel_info_request"), zmq.NOBLOCK)

    with pytest.raises(zmq.Again):
        await asyncio.to_thread(flood)
    rss = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
    assert rss < 400 << 20
    bed.raw.session.digest_history_size = 0
    assert (await ask(bed, good, "kernel_info_request"))["content"] == KERNEL_INFO


@pytest.mark.parametrize("kind", ["execute_request", "debug_request", "comm_msg", "odd"])
async def test_intent_is_told_once_and_waits(bed: Bed, kind: str) -> None:
    shell, control = bed.raw.dealer(), bed.raw.dealer("control")
    shell.send_multipart(bed.raw.request(kind, code="1"))
    await bed.waits(1)
    control.send_multipart(bed.raw.request(kind, code="2"))
    await bed.waits(2)
    assert bed.told("intent") == [{"event": "intent", "kernel_id": "k1", "msg_type": kind}]
    assert (await ask(bed, control, "kernel_info_request"))["content"] == KERNEL_INFO
    assert await bed.wake() == {"waiting": 2, "asked": True}
    await bed.until(lambda: bed.guest.heard == ["comm_info_request", kind, kind])
    assert (await bed.status())["state"] == "awake"


async def test_a_notebook_that_is_opened_again_wakes_nobody(bed: Bed) -> None:
    """JupyterLab asks each kernel for its debugger, too."""
    control = bed.raw.dealer("control", identity=b"lab")
    del bed.request["kernel_id"]
    await bed.wake()
    asked = await ask(bed, control, "debug_request", command="debugInfo", seq=7)
    await bed.fall_asleep()
    for restart in (False, True):
        if restart:
            await reopened(bed)
        again = await ask(bed, control, "debug_request", command="debugInfo", seq=8)
        assert again["content"] == {**asked["content"], "request_seq": 8}
    await bed.wake()
    await ask(bed, control, "debug_request", command="setBreakpoints", seq=9)
    await bed.fall_asleep()
    assert bed.told("intent") == []
    control.send_multipart(bed.raw.request("debug_request", command="debugInfo", seq=10))
    await bed.waits(1)
    assert len(bed.told("intent")) == 1


async def test_an_answer_to_a_question_is_intent(bed: Bed) -> None:
    stdin = bed.raw.dealer("stdin")
    stdin.send_multipart(bed.raw.request("input_reply", value="1"))
    await bed.waits(1)
    assert bed.told("intent")[0]["msg_type"] == "input_reply"
    await bed.wake()
    await bed.until(lambda: bed.guest.heard == ["comm_info_request", "input_reply"])


async def test_strangers_wake_nobody(bed: Bed) -> None:
    dealer = bed.raw.dealer()
    forged = bed.raw.request(code="1")
    dealer.send_multipart([forged[0], b"0" * 64, *forged[2:]])
    odd = bed.raw.session.msg("x")
    odd["header"]["msg_type"] = 7
    dealer.send_multipart(bed.raw.session.serialize(odd))
    dealer.send_multipart([b"nonsense"])
    await ask(bed, dealer, "kernel_info_request")
    status = await bed.status()
    assert status["waiting"] == 0
    assert bed.told("intent") == []
    assert status["counters"]["dropped.client.bad_signature"] == 1
    assert status["counters"]["dropped.client.no_msg_type"] == 1
    assert status["counters"]["dropped.client.no_delimiter"] == 1


async def test_what_no_link_takes_wakes_nobody_and_is_answered(bed: Bed) -> None:
    listener, dealer = bed.raw.listener(), bed.raw.dealer()
    assert await overheard(bed, listener, 1) == ["welcome"]
    dealer.send_multipart(bed.raw.request(code="1") + [b""] * 5_000)
    reply = bed.raw.read(await receive(dealer))
    assert (reply["msg_type"], reply["content"]["status"]) == ("execute_reply", "error")
    assert "5,007 parts" in reply["content"]["evalue"]
    said = [f"{what} execute_request" for what in ("busy", "error", "idle")]
    assert await overheard(bed, listener, 3) == said
    await ask(bed, dealer, "kernel_info_request")
    status = await bed.status()
    assert (status["state"], status["waiting"]) == ("asleep", 0)
    assert bed.told("intent") == []
    assert status["counters"]["dropped.client.too_large"] == 1


async def test_twenty_megabytes_wait_and_arrive(bed: Bed) -> None:
    dealer, code = bed.raw.dealer(), os.urandom(10 << 20).hex()
    dealer.send_multipart(bed.raw.request(code=code))
    await bed.waits(1)
    dealer.send_multipart(bed.raw.request(code="after"))
    await bed.waits(2)
    await bed.wake()
    for _ in range(2):
        assert bed.raw.read(await receive(dealer))["content"]["status"] == "ok"
    ran = bed.guest.ran
    assert [hashlib.sha256(text.encode()).hexdigest() for text in ran] == [
        hashlib.sha256(text.encode()).hexdigest() for text in (code, "after")
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("count", "size"), [(30_000, 10), (120, 1 << 20)])
async def test_what_does_not_fit_stays_with_the_clients(bed: Bed, count: int, size: int) -> None:
    dealer, control = bed.raw.dealer(), bed.raw.dealer("control")
    dealer.sndhwm = 0

    def send() -> None:
        for number in range(count):
            dealer.send_multipart(bed.raw.request(code=f"{number}.".ljust(size, "x")))

    sending = asyncio.create_task(asyncio.to_thread(send))
    most = 10_000 if size < 1_000 else 64
    await bed.waits(most)
    await asyncio.sleep(0.3)
    status = await bed.status()
    assert status["waiting"] == most
    assert (await ask(bed, control, "kernel_info_request"))["content"] == KERNEL_INFO
    await bed.wake()
    await sending
    await bed.until(lambda: len(bed.guest.ran) == count, 60)
    assert [int(code.split(".")[0]) for code in bed.guest.ran] == list(range(count))
    status = await bed.status()
    assert (status["waiting"], status["state"]) == (0, "awake")
    assert [name for name in status["counters"] if name.startswith("dropped.client")] == []
