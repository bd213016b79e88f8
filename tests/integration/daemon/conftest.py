"""A home of a test's own with a real torpord, bridge and guest; kernels are ordinary processes.

With ``TORPOR_TEST_BACKEND=local`` they are in real sandboxes instead, and tests that need a backend
with faults are skipped.

When a test is over, whatever the outcome, the world is looked at: no process, socket, FIFO or folder
may be left.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torpor.client
import zmq.asyncio
from jupyter_client.manager import AsyncKernelManager
from torpor.api import CHANNELS, Endpoints, LaunchRequest
from torpor.client import Client, Interrupted, NotRunning
from torpor.config import user_paths
from torpor.daemon.processes import start_ticks
from torpor.errors import Busy
from torpor.start import daemon_argv

from tests.home import find_runsc
from tests.world import processes_of, reclaim, whole_lines, without_new_children

LOCAL = os.environ.get("TORPOR_TEST_BACKEND") == "local"
FAKE_DAEMON = str(Path(__file__).parents[2] / "fakes/process_daemon.py")
DAEMON = daemon_argv() if LOCAL else (sys.executable, FAKE_DAEMON)
needs_faults = pytest.mark.skipif(LOCAL, reason="needs a backend that fails or hangs on demand")
IPYKERNEL = (sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}")
KEY = "0123456789abcdef"
HANG = "import time; time.sleep(60)"


@dataclass
class Home:
    """One user's Torpor for one test."""

    path: Path

    @property
    def client(self) -> Client:
        return Client(user_paths())

    @property
    def paths(self) -> Any:
        return user_paths()

    def request(self, kernel_id: str = "k1", **changes: Any) -> LaunchRequest:
        endpoints = Endpoints("tcp", "127.0.0.1", dict.fromkeys(CHANNELS, 0), KEY)
        fields: dict[str, Any] = {
            "kernel_id": kernel_id,
            "argv": IPYKERNEL,
            "cwd": str(self.path),
            "client": endpoints,
            "kernel_name": "python3",
        }
        return LaunchRequest(**{**fields, **changes})

    def program(self, code: str) -> tuple[str, ...]:
        return (sys.executable, "-S", "-c", code, "{connection_file}")

    def configure(self, text: str) -> None:
        self.paths.config.mkdir(parents=True, exist_ok=True)
        # What tests the pool says so: others need not share their processors with it.
        text = f"c.TorporDaemon.pool = False\n{text}"
        (self.paths.config / "torpor_config.py").write_text(text)

    def log(self) -> list[dict[str, Any]]:
        try:
            lines = whole_lines(self.paths.log)
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines]

    def logged(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.log() if line["event"] == event]

    def processes(self) -> dict[int, str]:
        """Give every live process of ours but the test's own."""
        found = processes_of(self.path)  # knows sandboxes, whose command lines do not name the home
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                seen = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
                if str(self.path).encode() in seen and start_ticks(int(entry.name)):
                    found[int(entry.name)] = (
                        (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    )
        return found

    def daemons(self) -> list[int]:
        """Give the processes of torpord, without a child that has not become another program yet."""
        found = [pid for pid, line in self.processes().items() if "--ready-fd" in line]
        return without_new_children(found)

    def left(self) -> list[str]:
        """Give everything that a clean world would not have."""
        left = [f"process {pid}: {line}" for pid, line in self.processes().items()]
        for path in self.path.rglob("*"):
            try:
                mode = path.lstat().st_mode
            except FileNotFoundError:
                continue
            if stat.S_ISSOCK(mode) or stat.S_ISFIFO(mode) or stat.S_ISLNK(mode):
                left.append(f"file {path}")
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        left += [f"mount {line}" for line in mounts if str(self.path) in line]
        if self.paths.kernels.is_dir():
            left += [f"folder {path}" for path in self.paths.kernels.iterdir()]
        return left

    async def daemon_pid(self) -> int:
        return int((await self.client.status())["pid"])

    async def kill_daemon(self) -> int:
        pid = await self.daemon_pid()
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: start_ticks(pid) is None)
        return pid

    async def until_no_kernel(self, within_s: float = 15) -> None:
        async with asyncio.timeout(within_s):
            while await self.client.kernels() or list(self.paths.kernels.iterdir()):  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def until_step(self, step: str, within_s: float = 15) -> None:
        """Return once the only launch has come to ``step``, at which it was told to hang."""
        async with asyncio.timeout(within_s):
            while not await self._is_at(step):  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def _is_at(self, step: str) -> bool:
        """Tell by what is there then; it hangs in the same turn of its loop."""
        if step == "ready":
            states = await self.client.kernels()
            bound = any(state["client"]["ports"]["shell"] for state in states)
            return bound and any(HANG in line for line in self.processes().values())
        if step == "prepare":  # of which nothing is on the disk
            return bool(await self.client.kernels())
        made = {"fifos": "*", "start": "*/opt/torpor/link", "started": "*/pid"}
        return any(self.paths.kernels.glob(made[step]))


async def eventually(condition: Callable[[], Any], within_s: float = 10) -> None:
    """Return once ``condition`` holds."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@pytest.fixture
def home(monkeypatch):
    path = Path(tempfile.mkdtemp(prefix="tpd-", dir="/tmp"))
    monkeypatch.setenv("TORPOR_HOME", str(path))
    runsc = find_runsc()
    if LOCAL and runsc:
        monkeypatch.setenv("TORPOR_RUNSC", runsc)
    monkeypatch.setattr(torpor.client, "daemon_argv", lambda: DAEMON)
    found = Home(path)
    found.configure("")
    yield found
    try:
        left = asyncio.run(_close(found))
        assert left == [], "\n".join([*left, *map(str, found.log()[-20:])])
    finally:
        for pid in found.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            reclaim(path)
        finally:
            shutil.rmtree(path, ignore_errors=True)


async def _close(home: Home) -> list[str]:
    """Stop the daemon; give what is left although no kernel should be."""
    try:
        await home.client.status()
        await home.client.shutdown()
    except (NotRunning, Interrupted):  # it ends by itself, perhaps just now
        pass
    except Busy as exc:  # the test left kernels
        return [str(exc)]
    deadline = time.monotonic() + 15  # a bridge that was just starting is waited for
    while (left := home.left()) and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    return left


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
    # Managers that are killed or given up leave their connection files.
    monkeypatch.setenv("TMPDIR", str(home.path))
    monkeypatch.setattr(tempfile, "tempdir", str(home.path))
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
