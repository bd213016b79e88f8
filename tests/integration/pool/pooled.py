"""A Torpor home whose pool is on, and what a person sees of it: the log, ``torpor pool``, the disk."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torpor.client
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager
from torpor.client import Client, Interrupted, NotRunning
from torpor.client_pool import PoolClient
from torpor.config import user_paths
from torpor.paths import Paths

from tests.e2e.cells import value
from tests.e2e.sleeping import daemon_pid
from tests.home import start, stop, torpor_home
from tests.world import wait_clean, whole_lines

POOL = "c.TorporDaemon.pool = True\n"
_FAULTY = str(Path(__file__).with_name("faulty_daemon.py"))
# Its command line has to name torpor.daemon, by which tests/world.py knows a daemon.
_RUN_FAULTY = f"import runpy; runpy.run_path({_FAULTY!r}, run_name='__main__')  # torpor.daemon"
FAULTY_DAEMON = (sys.executable, "-P", "-c", _RUN_FAULTY)


def eventually(condition: Callable[[], Any], what: str, within_s: float = 30) -> Any:
    """Give what ``condition`` gives as soon as that is true; AssertionError after ``within_s``."""
    ends_at = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < ends_at, f"not in {within_s:g} s: {what}"
        time.sleep(0.03)
    return found


@dataclass(frozen=True)
class PoolHome:
    """One user's Torpor for some tests."""

    path: Path

    @property
    def paths(self) -> Paths:
        return user_paths()

    @property
    def goldens_folder(self) -> Path:
        return self.paths.goldens

    def configure(self, text: str) -> None:
        """Make ``text`` the configuration, at once or not at all."""
        file = self.path / "config/torpor_config.py"
        file.with_suffix(".new").write_text(text)
        os.replace(file.with_suffix(".new"), file)

    def log(self) -> list[dict[str, Any]]:
        try:
            lines = whole_lines(self.paths.log)
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines]

    def logged(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.log() if line["event"] == event]

    def launches(self) -> list[str]:
        """Give how each kernel so far was started, the oldest first."""
        return [str(line["how"]) for line in self.logged("launched")]

    def last_why(self) -> str:
        return str(self.logged("launched")[-1]["why"])

    def pool(self) -> dict[str, Any]:
        return asyncio.run(PoolClient(Client(user_paths())).pool())

    def goldens(self) -> dict[str, Any]:
        return asyncio.run(PoolClient(Client(user_paths())).goldens())

    def counters(self) -> dict[str, int]:
        counters: dict[str, int] = self.pool()["counters"]
        return counters

    def ready(self) -> int:
        return sum(int(shape["ready"]) for shape in self.pool()["shapes"])

    def until_ready(self, count: int = 1, within_s: float = 30) -> None:
        eventually(lambda: self.ready() >= count, f"{count} clones wait", within_s)

    def unclaimed(self) -> dict[str, int]:
        """Give sandbox -> pid of what is nobody's: clones, and goldens being made."""
        with closing(sqlite3.connect(f"file:{self.paths.registry}?mode=ro", uri=True)) as db:
            rows = [json.loads(body) for (body,) in db.execute("SELECT body FROM sandboxes")]
        found = {row["sandbox_id"]: row["handle"] for row in rows if not row["kernel_id"]}
        return {name: int(handle["pid"]) for name, handle in found.items() if handle}

    def clones(self) -> list[int]:
        """Give the pids of the clones that were restored and are nobody's."""
        found = []
        for pid in self.unclaimed().values():
            with suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if b"restore" in words:
                    found.append(pid)
        return found

    def processes_of_sandbox(self, name: str) -> list[int]:
        """Give the pids of all of gVisor's processes of one sandbox."""
        found = []
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if entry.name.isdigit() and name.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
        return found

    def daemon_pid(self) -> int:
        return daemon_pid(self.path)

    def daemon_runs(self) -> bool:
        try:
            asyncio.run(Client(user_paths()).status())
        except (NotRunning, Interrupted):  # it has ended, or does so just now
            return False
        return True

    def kill_daemon(self) -> None:
        pid = self.daemon_pid()
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: not Path(f"/proc/{pid}/exe").exists(), "the daemon is dead")

    def stop_daemon(self) -> None:
        self.torpor("daemon", "stop")

    def torpor(self, *argv: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "torpor", *argv]
        return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)

    def build(self, workspace: Path) -> dict[str, Any]:
        """Build the golden of kernels that are started in ``workspace``, and let clones wait."""
        done = self.torpor("golden", "build", "sandboxed", "--workspace", str(workspace), "--json")
        body: dict[str, Any] = json.loads(done.stdout)
        assert done.returncode == 0, body
        return body

    def plant(self, golden: Path) -> Path:
        """Put a copy of all of another home's goldens here; give the folder of the one build."""
        self.goldens_folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        shutil.rmtree(self.goldens_folder, ignore_errors=True)
        shutil.copytree(golden, self.goldens_folder)
        return self.build_folder()

    def build_folder(self) -> Path:
        [manifest] = self.goldens_folder.glob("*/*/manifest.json")
        return manifest.parent

    def drafts(self) -> list[str]:
        return [each.name for each in self.goldens_folder.glob(".draft-*")]

    def incomplete(self) -> list[str]:
        """Give everything below the goldens that is no part of a complete build."""
        whole = {manifest.parent for manifest in self.goldens_folder.glob("*/*/manifest.json")}
        builds = [each for each in self.goldens_folder.glob("[0-9a-f]*/*") if each.is_dir()]
        return [*self.drafts(), *(str(each) for each in builds if each not in whole)]


@contextmanager
def pool_home(config: str = "", **environ: str) -> Iterator[PoolHome]:
    """Give a home with its pool on; afterwards nothing may be left, or half-made on the disk."""
    with torpor_home(POOL + config, **environ) as path:
        home = PoolHome(path)
        yield home
        if home.daemon_runs():
            wait_clean_kernels(home)


def wait_clean_kernels(home: PoolHome) -> None:
    """Return once no kernel is left; the clones that wait may stay."""
    eventually(lambda: not asyncio.run(Client(user_paths()).kernels()), "all kernels are removed")


@contextmanager
def kernel(workspace: Path, **kwargs: Any) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    """Start a kernel and shut it down afterwards; it must work, in its own workspace."""
    km, kc = start(workspace, **kwargs)
    try:
        works(kc, workspace)
        yield km, kc
    finally:
        stop(km, kc)


def works(kc: BlockingKernelClient, workspace: Path) -> None:
    """A value comes back, and what the kernel writes lands in its workspace and nowhere else."""
    token = os.urandom(8).hex()
    code = f"import os; open('made', 'w').write('{token}'); os.getcwd() + ' {token}'[::-1]"
    assert value(kc, code) == repr(f"{workspace}{token[::-1]} ")
    assert (workspace / "made").read_text() == token
    (workspace / "made").unlink()


@contextmanager
def faulty(fault: str, **environ: str) -> Iterator[None]:
    """Let daemons that are started meanwhile be those of ``faulty_daemon.py``."""
    before = torpor.client.daemon_argv
    torpor.client.daemon_argv = lambda: FAULTY_DAEMON
    saved = {name: os.environ.get(name) for name in ("TORPOR_TEST_FAULT", *environ)}
    os.environ.update(TORPOR_TEST_FAULT=fault, **environ)
    try:
        yield
    finally:
        torpor.client.daemon_argv = before
        for name, text in saved.items():
            if text is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = text


def nothing_is_left(home: PoolHome) -> None:
    """Stop the daemon: no process, mount, socket or folder may remain, nothing half-made either."""
    done = home.torpor("daemon", "stop")
    assert done.returncode == 0, done.stderr
    wait_clean(home.path, services=True)
    assert home.incomplete() == []
