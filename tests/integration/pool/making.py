"""Goldens and clones made with the local backend itself, and what they leave in the world."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torpor.backends.base import Handle, Image, SandboxSpec
from torpor.backends.local import LocalBackend, make_local_backend
from torpor.daemon.guest_line import GuestLine
from torpor.errors import LaunchError
from torpor.runsc.launcher import syscalls
from torpor.runsc.plan import WORKSPACE_AT

from tests.integration.backend.world import LocalSubject

IPYKERNEL = (sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}")
LONG_S = 30.0
IMAGE_FILES = {"checkpoint.img", "pages.img", "pages_meta.img"}

# A thread that survives the checkpoint: once a claim has set REPORT, it says in the kernel's output,
# of which ``status`` shows the end, what the kernel has become.
REPORTER = (
    f"FIXED_PLACE = {WORKSPACE_AT!r}"
    + """
import json as _json, os as _os, sys as _sys, threading as _threading, time as _time
_output = _os.dup(getattr(_sys.stdout, "_original_stdstream_copy", None) or 1)
def _facts():
    status = dict(line.rstrip().split(":", 1) for line in open("/proc/1/status"))
    return {
        "cwd": _os.getcwd(), "names": sorted(_os.listdir(".")), "env": _os.environ["REPORT"],
        "host": _os.uname().nodename, "random": _os.urandom(4).hex(),
        "at_fixed_place": _os.listdir(FIXED_PLACE) if _os.path.isdir(FIXED_PLACE) else [],
        "rights": {name: status[name].strip() for name in status if name.startswith("Cap")},
    }
def _report():
    while "REPORT" not in _os.environ:
        _time.sleep(0.01)
    _time.sleep(0.1)
    try:
        told = _facts()
    except BaseException as error:
        told = {"error": repr(error)}
    _os.write(_output, ("@@" + _json.dumps(told) + "\\n").encode())
_threading.Thread(target=_report, daemon=True).start()
"""
)


class Making(LocalSubject):
    """The local backend with the installed guest and ipykernel in it."""

    def backend(self, *, fail_at: str = "", hang_at: str = "") -> LocalBackend:
        async def on_step(step: str) -> None:
            if step == fail_at:
                raise LaunchError(f"{step} fails on purpose")
            if step == hang_at:
                await asyncio.Event().wait()

        backend = make_local_backend(
            self.runsc,
            "test",
            private=(self.folder / "k",),
            home=Path.home(),
            search_path="/usr/local/bin:/usr/bin:/bin",
            slots_folder=self.folder / "uids",
        )
        return replace(backend, on_step=on_step)

    def spec(self, sandbox_id: str = "s1", **changes: Any) -> SandboxSpec:
        fields = {"argv": IPYKERNEL, "env": {}, "cwd": "/", "key": "k" * 32, **changes}
        return super().spec(sandbox_id, **fields)

    def image_folder(self, name: str = "image") -> Path:
        folder = self.folder / name
        folder.mkdir(mode=0o700)
        return folder

    def processes(self, word: str = "") -> dict[int, str]:
        """Give the live processes of these sandboxes whose command line has ``word``."""
        found = {}
        for entry in Path("/proc").iterdir():
            with suppress(OSError, ValueError):
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                if self.folder.name in line and word in line and int(entry.name) != os.getpid():
                    found[int(entry.name)] = line
        return found

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop every process of these sandboxes meanwhile: gVisor answers nobody."""
        pids = [pid for pid, line in self.processes().items() if "runsc" in line.split(" ", 1)[0]]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)


@dataclass(slots=True)
class Running:
    """A started sandbox with a guest in it."""

    backend: LocalBackend
    handle: Handle
    spec: SandboxSpec

    def line(self) -> GuestLine:
        return GuestLine(self.spec.directory)


@asynccontextmanager
async def sandbox(making: Making, spec: SandboxSpec) -> AsyncIterator[Running]:
    """Give a sandbox that was started; afterwards it is destroyed."""
    backend = making.backend()
    await backend.prepare(spec)
    try:
        yield Running(backend, await backend.start(spec), spec)
    finally:
        await backend.destroy(spec.sandbox_id, spec.directory)


@asynccontextmanager
async def golden(
    making: Making, folder: Path, name: str = "golden", *, sealed: bool = True, **changes: Any
) -> AsyncIterator[Running]:
    """Give a sandbox whose kernel is ready to be saved into ``folder``; ``sealed`` as the last step."""
    image = Image(folder, restore=False)
    async with sandbox(making, making.spec(name, **{"image": image, **changes})) as running:
        async with running.line() as line:
            told = await line.event("ready", "failed", timeout_s=LONG_S)
            assert told["event"] == "ready", told
            if sealed:
                await line.call("seal", timeout_s=LONG_S)
                await line.call("check", timeout_s=LONG_S)
        yield running


async def make_image(making: Making, folder: Path, *cells: str, **changes: Any) -> None:
    """Save a kernel that has run ``cells`` into ``folder``."""
    async with golden(making, folder, sealed=False, **changes) as running:
        async with running.line() as line:
            for code in cells:
                reply = await line.call("execute", {"code": code}, timeout_s=LONG_S)
                assert reply.get("status") == "ok", reply
            await line.call("seal", timeout_s=LONG_S)
        await running.backend.checkpoint(running.spec, running.handle)


@asynccontextmanager
async def clone(
    making: Making, folder: Path, name: str, workspace: Path | None, **changes: Any
) -> AsyncIterator[Running]:
    """Give a restored sandbox whose kernel has answered."""
    image = Image(folder, restore=True)
    spec = making.spec(name, **{"image": image, "workspace": workspace, **changes})
    async with sandbox(making, spec) as running:
        async with running.line() as line:
            await line.call("check", timeout_s=LONG_S)
        yield running


def claim(workspace: Path | None, /, **changes: Any) -> dict[str, Any]:
    """Give the parameters of a claim; ``changes`` replace some."""
    start = {"argv": [sys.executable], "env": {}, "cwd": "/"}
    shown = None if workspace is None else {"path": str(workspace), "keep": []}
    params = {
        "start": start,
        "env": {"REPORT": "1"},
        "unset": [],
        "cwd": "/" if workspace is None else str(workspace),
        "workspace": shown,
        "code": None,
    }
    return {**params, **changes}


async def reported(running: Running) -> dict[str, Any]:
    """Give what REPORTER says, once it does."""
    async with asyncio.timeout(LONG_S), running.line() as line:
        while True:
            tail = str((await line.call("status", timeout_s=LONG_S))["stderr_tail"])
            _, found, told = tail.partition("@@")
            if found and told.endswith("\n"):
                facts: dict[str, Any] = json.loads(told)
                return facts
            await asyncio.sleep(0.05)


def image_state(folder: Path) -> tuple[set[str], set[tuple[int, int]], int]:
    """Give the names in an image, the (owner, mode) of its files, and the folder's mode."""
    files = list(folder.iterdir())
    owners = {(each.lstat().st_uid, each.lstat().st_mode & 0o777) for each in files}
    return {each.name for each in files}, owners, folder.stat().st_mode & 0o777


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """Let ``folder`` be a file system of ``size`` meanwhile. Only root can."""
    syscalls.mount("small", str(folder), "tmpfs", 0, f"size={size},mode=0700")
    try:
        yield
    finally:
        syscalls.unmount(str(folder))


IS_ROOT = os.geteuid() == 0
