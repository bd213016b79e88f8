"""A local backend with a stand-in guest, and what it leaves in the world."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torpor.backends.base import FROM_GUEST, GUEST_STDERR, TO_GUEST, Exit, Handle, SandboxSpec
from torpor.backends.local import LocalBackend, make_local_backend
from torpor.backends.local_design import GuestCode
from torpor.errors import LaunchError

from tests.contract.backend import Subject
from tests.integration.backend.standin import GUEST

_SETTLE_S = 3.0


class LocalSubject(Subject):
    """The local backend on real runsc, in whatever mode this process has the rights for."""

    steps = LocalBackend.STEPS
    prepare_steps = LocalBackend.PREPARE_STEPS

    def __init__(self, folder: Path, runsc: Path) -> None:
        super().__init__(folder)
        self.runsc = runsc
        self._before = set(_zombie_children())
        """What other tests of this process have left: theirs is the blame."""

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
            guest=GuestCode((sys.executable, "-I", "-S", "-c", GUEST)),
            slots_folder=self.folder / "uids",
        )
        return replace(backend, on_step=on_step)

    def crash(self, handle: Handle) -> None:
        os.kill(handle.pid, signal.SIGKILL)

    def leftovers(self, *, settle: bool = True) -> list[str]:
        """Look again for a moment: the kernel takes its time to bury a pid namespace."""
        ends_at = time.monotonic() + (_SETTLE_S if settle else 0.0)
        while (found := self._look()) and time.monotonic() < ends_at:
            time.sleep(0.05)
        return found

    def _look(self) -> list[str]:
        uids, kernels = self.folder / "uids", self.folder / "k"
        return [
            *_processes(f"-{self.folder.name}", str(self.folder)),
            *(each for each in _zombie_children() if each not in self._before),
            *(
                line
                for line in _text("/proc/self/mountinfo").splitlines()
                if str(self.folder) in line
            ),
            *self._cgroups(),
            *(f"uid {each.name}" for each in uids.glob("[0-9]*")),
            *(str(each) for each in (kernels.iterdir() if kernels.is_dir() else ())),
        ]

    def _cgroups(self) -> list[str]:
        mark = f"-{self.folder.name}"
        bases = [Path(each.base) for each in self.backend().cgroups.hierarchies]
        return [str(each) for base in bases for each in base.glob("torpor-*") if mark in each.name]


def _text(path: str) -> str:
    try:
        return Path(path).read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _processes(mark: str, folder: str) -> list[str]:
    """Find launchers and what became of them: the id, or the folder, is among their arguments."""
    return [
        f"process {pid}: {text[:200]}"
        for pid in os.listdir("/proc")
        if pid.isdigit() and int(pid) != os.getpid()
        if (text := _text(f"/proc/{pid}/cmdline"))
        if mark in text or f"{folder}/k" in text
    ]


def _zombie_children() -> list[str]:
    children = _text(f"/proc/{os.getpid()}/task/{os.getpid()}/children").split()
    states = {pid: _text(f"/proc/{pid}/stat").rpartition(")")[2].split()[:1] for pid in children}
    return [f"zombie {pid}" for pid, state in states.items() if state == ["Z"]]


@dataclass(slots=True)
class Sandbox:
    """A running sandbox with the stand-in guest in it."""

    backend: LocalBackend
    handle: Handle
    spec: SandboxSpec
    _reader: asyncio.StreamReader
    _to_guest: int
    _stderr: int

    async def run(self, source: str, within_s: float = 20.0) -> Any:
        """Run Python in the sandbox and give what it left in ``answer``; its error as RuntimeError."""
        os.write(self._to_guest, json.dumps(source).encode() + b"\n")
        async with asyncio.timeout(within_s):
            reply = json.loads(await self._reader.readline())
        if "error" in reply:
            raise RuntimeError(reply["error"])
        return reply["answer"]

    def send(self, source: str) -> None:
        """Run Python without waiting for its end."""
        os.write(self._to_guest, json.dumps(source).encode() + b"\n")

    async def exited(self, within_s: float = 20.0) -> Exit:
        async with asyncio.timeout(within_s):
            return await self.backend.exited(self.handle)

    def stderr(self) -> str:
        with suppress(BlockingIOError):
            return os.read(self._stderr, 65536).decode(errors="replace")
        return ""


@asynccontextmanager
async def running(
    subject: LocalSubject, spec: SandboxSpec, *, alone: bool = True
) -> AsyncIterator[Sandbox]:
    """Give a booted sandbox; afterwards nothing may be left, unless it is not ``alone``."""
    backend = subject.backend()
    await backend.prepare(spec)
    fds = [
        os.open(spec.directory / name, os.O_RDWR | os.O_NONBLOCK)
        for name in (TO_GUEST, FROM_GUEST, GUEST_STDERR)
    ]
    reader = asyncio.StreamReader(limit=1 << 24)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fds[1], "rb", buffering=0)
    )
    try:
        handle = await backend.start(spec)
        sandbox = Sandbox(backend, handle, spec, reader, fds[0], fds[2])
        async with asyncio.timeout(20):
            assert json.loads(await reader.readline()) == "ready"
        yield sandbox
    finally:
        transport.close()
        os.close(fds[0])
        os.close(fds[2])
        await backend.destroy(spec.sandbox_id, spec.directory)
    assert not alone or subject.leftovers() == []
