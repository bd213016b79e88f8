"""The process itself: started once, found again, ended in order, and leaving nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from torpor.bridge import spawn
from torpor.bridge.client import BridgeClient, BridgeRefused
from torpor.bridge.protocol import EXIT_ALREADY_RUNNING
from torpor.bridge.server import Server
from torpor.bridge.spawn import bridge_argv, ensure_bridge
from torpor.errors import BackendUnavailable, VersionMismatch

from tests.integration.bridge.echo_guest import output
from tests.integration.bridge.harness import GUEST_KEY, World, paths_in, soon
from tests.integration.bridge.raw import Raw, client_side, zmq_context
from tests.integration.bridge.standin import Standin


async def test_many_starters_get_one_bridge(tmp_path: Path) -> None:
    paths = paths_in(tmp_path)
    clients = await asyncio.gather(*(ensure_bridge(paths) for _ in range(6)))
    try:
        pids = {(await client.call("hello", version="x"))["pid"] for client in clients}
        assert len(pids) == 1
        assert os.stat(paths.bridge_socket).st_mode & 0o777 == 0o600
        assert os.stat(paths.runtime).st_mode & 0o777 == 0o700
        second = subprocess.run(bridge_argv(sys.executable, paths), check=False)  # noqa: ASYNC221
        assert second.returncode == EXIT_ALREADY_RUNNING
    finally:
        await clients[0].call("shutdown")
        for client in clients:
            await client.aclose()


async def gone(pid: int, within_s: float = 10.0) -> bool:
    """Whether a process that is not our child comes to its end."""

    def is_gone() -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return False

    return await soon(is_gone, within_s)


async def test_it_is_detached_and_ends_when_idle(tmp_path: Path) -> None:
    paths = paths_in(tmp_path)
    paths.state.mkdir()
    argv = [*bridge_argv(sys.executable, paths), "--idle-exit-s", "0.6"]

    async def connected() -> tuple[BridgeClient, int]:
        """Start it until it is still there when we are; give also its process."""
        for _ in range(20):
            started = await asyncio.create_subprocess_exec(*argv)
            assert await started.wait() in (0, EXIT_ALREADY_RUNNING)
            client = None
            try:
                client = await BridgeClient.connect(paths.bridge_socket)
                return client, (await client.call("hello", version="x"))["pid"]
            except BackendUnavailable:
                if client is not None:
                    await client.aclose()
            await asyncio.sleep(0.05)
        raise AssertionError("it is always gone already")

    client, pid = await connected()
    assert os.getsid(pid) == pid != os.getsid(0)
    await asyncio.sleep(1)
    await client.call("list")
    await client.aclose()
    assert await gone(pid)
    assert not paths.bridge_socket.exists()
    assert "ends" in paths.bridge_log.read_text()


async def test_terminating_it_keeps_what_the_next_one_needs(world: World, tmp_path: Path) -> None:
    guest = Standin(tmp_path / "guest")
    world.sandboxes.append(guest)  # type: ignore[arg-type]
    request = {"kernel_id": "k1", "client": client_side(), "guest_key": GUEST_KEY, **guest.fifos}
    await world.bridge.call("open", **request)
    with pytest.raises(BridgeRefused) as refused:
        await world.bridge.call("shutdown")
    assert refused.value.reason == "busy"
    pid = await world.bridge_pid()
    os.kill(pid, signal.SIGTERM)
    assert await gone(pid)
    assert (world.paths.runtime / "bridge" / "k1.marks").exists()
    with pytest.raises(BackendUnavailable):
        await world.bridge.call("list")
    await world.bridge.aclose()
    await world.connect()
    assert await world.bridge_pid() != pid


async def test_another_version_is_replaced_unless_it_is_needed(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = await world.bridge_pid()
    monkeypatch.setattr(spawn, "VERSION", "99")
    guest = Standin(tmp_path / "guest")
    world.sandboxes.append(guest)  # type: ignore[arg-type]
    request = {"kernel_id": "k1", "client": client_side(), "guest_key": GUEST_KEY, **guest.fifos}
    await world.bridge.call("open", **request)
    with pytest.raises(VersionMismatch, match="running kernels"):
        await ensure_bridge(world.paths)
    await world.bridge.call("close", kernel_id="k1")
    monkeypatch.setattr(spawn, "START_TIMEOUT_S", 1.5)
    for _ in range(5):  # it may be out of time before the old one was told to end
        with pytest.raises(BackendUnavailable):
            await ensure_bridge(world.paths)  # every new one is of the old version, too
        if await gone(old, 1.0):
            break
    assert await gone(old)
    monkeypatch.undo()
    await world.bridge.aclose()
    await world.connect()


async def test_a_python_that_cannot_start_it(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailable, match="cannot run"):
        await ensure_bridge(paths_in(tmp_path), python="/does/not/exist")
    with pytest.raises(BackendUnavailable, match="exit status 1"):
        await ensure_bridge(paths_in(tmp_path), python="/bin/false")


BAD_REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("unknown_op", {"op": "boo"}),
    ("bad_request", {"op": "status"}),
    ("bad_request", {"op": "status", "kernel_id": "../x"}),
    ("unknown_kernel", {"op": "status", "kernel_id": "k9"}),
    ("bad_request", {"op": "open", "kernel_id": "k9"}),
    ("bad_request", {"op": "open", "kernel_id": "k9", "client": client_side(transport="udp")}),
    ("bad_request", {"op": "open", "kernel_id": "k9", "client": client_side(ports={"hb": -1})}),
    ("bad_request", {"op": "open", "kernel_id": "k9", "client": client_side(curve_publickey="x")}),
]


async def test_bad_requests_are_answered(world: World) -> None:
    for code, request in BAD_REQUESTS:
        with pytest.raises(BridgeRefused) as refused:
            await world.bridge.call(**request)
        assert (refused.value.reason, request) == (code, request)
    assert (await world.bridge.call("list"))["kernels"] == []


async def test_open_is_all_or_nothing(world: World, tmp_path: Path) -> None:
    guest = Standin(tmp_path / "guest")
    world.sandboxes.append(guest)  # type: ignore[arg-type]
    pid = await world.bridge_pid()
    good = {"kernel_id": "k1", "client": client_side(), "guest_key": GUEST_KEY, **guest.fifos}
    opened = await world.bridge.call("open", **good)
    before = len(os.listdir(f"/proc/{pid}/fd"))
    taken = client_side(ports=opened["ports"])
    for change, reason in (
        ({"client": taken}, "bind"),
        ({"fifo_out": str(tmp_path / "missing")}, "fifo"),
        ({"client": client_side(signature_scheme="rot13")}, "bad_request"),
    ):
        with pytest.raises(BridgeRefused) as refused:
            await world.bridge.call("open", **{**good, "kernel_id": "k2", **change})
        assert refused.value.reason == reason
    with pytest.raises(BridgeRefused) as refused:
        await world.bridge.call("open", **good)
    assert refused.value.reason == "exists"
    # libzmq closes in the background
    assert await soon(lambda: len(os.listdir(f"/proc/{pid}/fd")) == before)
    assert (await world.bridge.call("list"))["kernels"] == ["k1"]
    assert sorted(path.name for path in (world.paths.runtime / "bridge").iterdir()) == ["k1.marks"]


@pytest.mark.parametrize("transport", ["tcp", "ipc"])
async def test_addresses_can_be_taken_again_at_once(
    world: World, tmp_path: Path, transport: str
) -> None:
    guest = Standin(tmp_path / "guest")
    world.sandboxes.append(guest)  # type: ignore[arg-type]
    ip = str(tmp_path / "s") if transport == "ipc" else "127.0.0.1"
    client = client_side(transport=transport, ip=ip)
    request = {"kernel_id": "k1", "client": client, "guest_key": GUEST_KEY, **guest.fifos}
    for turn in range(30):
        opened = await world.bridge.call("open", **request)
        client["ports"] = opened["ports"]
        if transport == "ipc":
            await asyncio.sleep(0.01)
            assert len(list(tmp_path.glob("s-*"))) == 5, turn
        await world.bridge.call("close", kernel_id="k1")


async def test_a_bug_in_one_kernel_does_not_reach_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, to plant the bug."""
    (tmp_path / "run").mkdir()
    server = Server(tmp_path / "run")
    thread = threading.Thread(target=server.run)
    thread.start()
    bridge = await BridgeClient.connect(tmp_path / "run" / "bridge.sock")
    guests = [Standin(tmp_path / name) for name in ("g1", "g2")]
    for kernel_id, guest in zip(("k1", "k2"), guests, strict=True):
        await bridge.call(
            "open", kernel_id=kernel_id, client=client_side(), guest_key=GUEST_KEY, **guest.fifos
        )

    def buggy(parts: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(server.kernels["k1"].guest, "receive", buggy)
    guests[0].ready()
    async for event in bridge.events():
        if event["event"] == "link_failed":
            break
    status = await bridge.call("status", kernel_id="k1")
    assert (status["link"], "a bug" in status["link_error"]) == ("failed", True)
    assert await bridge.call("rpc", kernel_id="k2", method="status", params={})
    for guest in guests:
        await asyncio.to_thread(guest.close)
    await bridge.call("shutdown", force=True)
    await bridge.aclose()
    await asyncio.to_thread(thread.join)


async def test_nothing_is_left_after_close(tmp_path: Path) -> None:
    """In this process, to count descriptors: open, use and close, over and over."""
    runtime = tmp_path / "run"
    runtime.mkdir()
    server = Server(runtime)
    thread = threading.Thread(target=server.run)
    thread.start()
    bridge = await BridgeClient.connect(runtime / "bridge.sock")
    counts: list[int] = []
    few: list[bool] = []

    def as_few_as_ever() -> bool:
        return len(os.listdir("/proc/self/fd")) <= min(counts[2:])

    for turn in range(6):
        transport = "ipc" if turn % 2 else "tcp"
        client = client_side(
            transport=transport, ip=str(tmp_path / "s") if turn % 2 else "127.0.0.1"
        )
        guest = Standin(tmp_path / f"guest{turn}")
        opened = await bridge.call(
            "open", kernel_id="k", client=client, guest_key=GUEST_KEY, **guest.fifos
        )
        if transport == "tcp":
            with zmq_context() as context:
                raw = Raw(context, opened["ports"])
                dealer, listener = raw.dealer(), raw.listener()
                dealer.send_multipart(raw.request(code="1"))
                await asyncio.to_thread(dealer.recv_multipart)
                guest.publish(output(1, 100_000))
                await asyncio.to_thread(listener.recv_multipart)
        await bridge.call("close", kernel_id="k")
        await bridge.call("close", kernel_id="k")
        await asyncio.to_thread(guest.close)
        if turn < 3:
            await asyncio.sleep(0.4)  # libzmq closes in the background
        else:  # pyzmq keeps a few from the first shared frame on
            few.append(await soon(as_few_as_ever))
        counts.append(len(os.listdir("/proc/self/fd")))
    assert list((runtime / "bridge").iterdir()) == []
    assert list(tmp_path.glob("s-*")) == []
    await bridge.call("shutdown")
    await bridge.aclose()
    await asyncio.to_thread(thread.join)
    assert all(few), counts


async def test_three_hundred_kernels(world: World, tmp_path: Path) -> None:
    guest = Standin(tmp_path / "guest")
    world.sandboxes.append(guest)  # type: ignore[arg-type]
    pid = await world.bridge_pid()
    start = time.monotonic()
    for index in range(300):
        folder = tmp_path / str(index)
        folder.mkdir()
        for name in ("in", "out"):
            os.mkfifo(folder / name)
        await world.bridge.call(
            "open",
            kernel_id=f"k{index}",
            client=client_side(),
            guest_key=GUEST_KEY,
            fifo_in=str(folder / "in"),
            fifo_out=str(folder / "out"),
        )
    opened_s = time.monotonic() - start
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    await asyncio.sleep(2)
    later = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    ticks = int(later[11]) + int(later[12]) - int(fields[11]) - int(fields[12])
    assert ticks <= 4, "300 idle kernels must cost nothing"
    await world.bridge.call(
        "open", kernel_id="good", client=client_side(), guest_key=GUEST_KEY, **guest.fifos
    )
    for index in range(300):
        await world.bridge.call("close", kernel_id=f"k{index}")
    assert opened_s < 20


async def test_a_connection_that_talks_nonsense_is_closed(world: World) -> None:
    for line in (b"hello\n", b"[]\n", b'{"op": "list"}\n', b"[" * 100_000 + b"\n"):
        reader, writer = await asyncio.open_unix_connection(str(world.paths.bridge_socket))
        writer.write(line)
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
    assert (await world.bridge.call("list"))["kernels"] == []
