"""A bridge process and real guests (no sandbox) for tests: what the daemon and its backend would do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torpor.link
import torpor_guest
import zmq
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_core.utils import ensure_event_loop
from torpor.bridge.client import BridgeClient
from torpor.bridge.spawn import ensure_bridge
from torpor.paths import Paths

from tests.host_kernels import host_env

T = TypeVar("T")
GUEST_KEY = "0123456789abcdef0123456789abcdef"
IPYKERNEL = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
FIFOS = {"fifo_in": "to_guest", "fifo_out": "from_guest", "fifo_err": "guest_stderr"}


def paths_in(folder: Path) -> Paths:
    """Give the folders of one test's Torpor."""
    return Paths(folder / "state", folder / "run", folder / "data", folder / "config")


def start_params(argv: list[str] | None = None) -> dict[str, Any]:
    """Give StartParams for ipykernel, or for ``argv``."""
    return {
        "argv": argv or IPYKERNEL,
        "env": host_env(LANG="C.UTF-8"),
        "cwd": "/tmp",
        "start_timeout_s": 30,
        "kernel_name": "python3",
    }


async def soon(condition: Callable[[], Any], within_s: float = 10.0) -> bool:
    """Whether ``condition()`` comes to hold; it may be a coroutine function.

    The looks are counted, not timed: whoever is waited for has had the processor in between.
    """
    for _ in range(int(within_s / 0.01)):
        found = condition()
        if await found if asyncio.iscoroutine(found) else found:
            return True
        await asyncio.sleep(0.01)
    return False


class Sandbox:
    """A guest process with its FIFOs, as a backend makes them. ``kill`` ends guest and kernel."""

    def __init__(self, folder: Path, start: dict[str, Any] | None) -> None:
        folder.mkdir(parents=True)
        self.fifos = {}
        for field, name in FIFOS.items():
            os.mkfifo(folder / name, 0o600)
            self.fifos[field] = str(folder / name)
        boot = {
            "version": 1,
            "key": GUEST_KEY,
            "start": start,
            "stderr_tail_bytes": 8192,
            "buffer_bytes": 268_435_456,
        }
        (folder / "boot.json").write_text(json.dumps(boot))
        code = folder / "opt"
        (code / "torpor").mkdir(parents=True)
        (code / "torpor_guest").symlink_to(torpor_guest.__path__[0])
        (code / "torpor" / "link").symlink_to(torpor.link.__path__[0])
        fds = [os.open(self.fifos[name], os.O_RDWR) for name in FIFOS]
        try:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-I",
                    "-B",
                    "-S",
                    str(code / "torpor_guest"),
                    str(folder / "boot.json"),
                ],
                stdin=fds[0],
                stdout=fds[1],
                stderr=fds[2],
                start_new_session=True,
            )
        finally:
            for fd in fds:
                os.close(fd)

    def kill(self) -> None:
        """End the guest, then its kernel: a guest that is killed takes its children with it."""
        children = _children(self.process.pid)
        for pid in [self.process.pid, *children]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def _children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    direct = [int(word) for word in text.split()]
    return [*direct, *(grandchild for child in direct for grandchild in _children(child))]


class World:
    """One bridge and what hangs on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths = paths_in(folder)
        self.sandboxes: list[Sandbox] = []
        self.clients: list[BlockingKernelClient | AsyncKernelClient] = []
        self.connections: dict[str, dict[str, Any]] = {}
        self.requests: dict[str, dict[str, Any]] = {}
        self.bridge: BridgeClient
        self._thread = ThreadPoolExecutor(1, "client")

    async def run(self, call: Callable[..., T], *args: Any, **options: Any) -> T:
        """Do something blocking, always in the same thread: jupyter_client keeps a loop for each."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: call(*args, **options))

    async def connect(self) -> BridgeClient:
        """Get hold of the bridge, as a daemon does."""
        self.bridge = await ensure_bridge(self.paths)
        return self.bridge

    async def bridge_pid(self) -> int:
        return int((await self.bridge.call("hello", version="test"))["pid"])

    async def open(
        self,
        kernel_id: str = "k1",
        *,
        transport: str = "tcp",
        curve: bool = False,
        key: str | None = None,
        argv: list[str] | None = None,
        wait: bool = True,
    ) -> dict[str, Any]:
        """Start a guest with a kernel and open it in the bridge; give the connection file's content."""
        sandbox = Sandbox(self.folder / f"{kernel_id}-{len(self.sandboxes)}", start_params(argv))
        self.sandboxes.append(sandbox)
        ip = "127.0.0.1" if transport == "tcp" else str(self.folder / f"{kernel_id}-ipc")
        public, secret = zmq.curve_keypair() if curve else (None, None)
        client = {
            "transport": transport,
            "ip": ip,
            "ports": dict.fromkeys(("shell", "iopub", "stdin", "control", "hb"), 0),
            "key": secrets.token_hex(16) if key is None else key,
            "signature_scheme": "hmac-sha256",
            "curve_publickey": public.decode() if public else None,
            "curve_secretkey": secret.decode() if secret else None,
        }
        request = {"kernel_id": kernel_id, "client": client, "guest_key": GUEST_KEY}
        request |= {"resume": False, **sandbox.fifos}
        opened = await self.bridge.call("open", **request)
        client["ports"] = opened["ports"]
        self.requests[kernel_id] = request
        if wait:
            await self.event(kernel_id, "ready")
        self.connections[kernel_id] = connection_file(client)
        return self.connections[kernel_id]

    async def event(self, kernel_id: str, kind: str, *, failing: bool = True) -> dict[str, Any]:
        """Wait for one guest event; ``failing`` on a failure."""
        async for event in self.bridge.events():
            if event["kernel_id"] != kernel_id:
                continue
            assert event["event"] != "link_failed", event
            body = event.get("body", {})
            if body.get("event") == kind:
                return dict(body)
            assert not failing or body.get("event") != "failed", body
        raise AssertionError("the bridge hung up")

    def client(self, kernel_id: str = "k1") -> BlockingKernelClient:
        """Give a started blocking client.

        Without a heartbeat: for one that beats late it would take the kernel for dead.
        """
        client = BlockingKernelClient()
        client.load_connection_info(self.connections[kernel_id])
        client.start_channels(hb=False)
        self.clients.append(client)
        return client

    async def async_client(self, kernel_id: str = "k1") -> AsyncKernelClient:
        """Give a started asynchronous client."""
        client = AsyncKernelClient()
        client.load_connection_info(self.connections[kernel_id])
        client.start_channels(hb=False)
        self.clients.append(client)
        await client.wait_for_ready(timeout=20)
        return client

    async def aclose(self) -> None:
        """End everything, the bridge included."""
        await self.run(self._stop_clients)
        self._thread.shutdown()
        for sandbox in self.sandboxes:
            sandbox.kill()
        with contextlib.suppress(Exception):
            await self.bridge.call("shutdown", force=True)
        await self.bridge.aclose()

    def _stop_clients(self) -> None:
        for client in self.clients:
            client.stop_channels()
        ensure_event_loop().close()


def connection_file(client: dict[str, Any]) -> dict[str, Any]:
    """Give what a Jupyter client reads, from the client part of an ``open`` request."""
    ports = {f"{name}_port": port for name, port in client["ports"].items()}
    found = {
        "transport": client["transport"],
        "ip": client["ip"],
        "key": client["key"].encode(),
        "signature_scheme": client["signature_scheme"],
        **ports,
    }
    if client["curve_publickey"]:
        found["curve_publickey"] = client["curve_publickey"].encode()
        found["curve_secretkey"] = client["curve_secretkey"].encode()
    return found


@contextlib.asynccontextmanager
async def world_in(folder: Path) -> AsyncIterator[World]:
    """Give a world with a running bridge, and end it."""
    world = World(folder)
    await world.connect()
    try:
        yield world
    finally:
        await world.aclose()
