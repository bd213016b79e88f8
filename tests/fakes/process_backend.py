"""A backend whose sandbox is an ordinary child process: the real guest in a pid namespace, no gVisor.

Everything else is real, which makes it good for fast tests of daemon, bridge and provisioner. As in a
sandbox the guest is PID 1, and killing the outermost process ends all of it. Faults are arguments.
"""

# ruff: noqa: ASYNC110, ASYNC220, ASYNC222 - a fake may block for a moment

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Awaitable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torpor.link
import torpor_guest
from torpor.backends.base import (
    FROM_GUEST,
    GUEST_STDERR,
    TO_GUEST,
    Build,
    Exit,
    Handle,
    Lineage,
    NotClonable,
    Ready,
    SandboxSpec,
    Saving,
)
from torpor.errors import LaunchError, ProgramNotFound
from torpor.runsc.family import family

GUEST = Path(torpor_guest.__path__[0])
LINK = Path(torpor.link.__path__[0])


@dataclass(frozen=True, slots=True)
class ProcessBackend:
    """``fail_at`` and ``hang_at`` name a step: prepare, fifos, start, started, destroy."""

    fail_at: str = ""
    hang_at: str = ""
    name: str = "process"

    async def prepare(self, spec: SandboxSpec) -> None:
        if not os.path.exists(spec.argv[0]) and shutil.which(spec.argv[0]) is None:
            raise ProgramNotFound(f"the program {spec.argv[0]} does not exist")
        try:
            await self._step("prepare")
            spec.directory.mkdir(mode=0o700)
            await self._step("fifos")
            for name in (TO_GUEST, FROM_GUEST, GUEST_STDERR):
                os.mkfifo(spec.directory / name, 0o600)
            boot = {
                "version": 1,
                "key": spec.key,
                "start": self.start_params(spec),
                "stderr_tail_bytes": 8192,
                "buffer_bytes": 64 << 20,
            }
            (spec.directory / "boot.json").write_text(json.dumps(boot))
            (spec.directory / "opt/torpor").mkdir(parents=True)
            (spec.directory / "opt/torpor_guest").symlink_to(GUEST)
            (spec.directory / "opt/torpor/link").symlink_to(LINK)
        except BaseException:
            shutil.rmtree(spec.directory, ignore_errors=True)
            raise

    def start_params(self, spec: SandboxSpec) -> dict[str, Any]:
        home = {"HOME": "/tmp", "PATH": os.environ["PATH"]}
        home["IPYTHONDIR"] = str(spec.directory / "ipython")  # else it is in the host's /tmp
        return {
            "argv": list(spec.argv),
            "env": {**home, **spec.template.env, **spec.env},
            "cwd": spec.cwd if os.path.isdir(spec.cwd) else "/",
            "start_timeout_s": spec.start_timeout_s,
            "kernel_name": spec.kernel_name,
        }

    def lineage(self, spec: SandboxSpec) -> Lineage:
        raise NotClonable("there is no gVisor here that could save anything")

    async def checkpoint(self, spec: SandboxSpec, handle: Handle) -> None:
        raise LaunchError("there is no gVisor here that could save anything")

    async def build(self) -> Build:
        return Build("none", ())

    def saving(self, handle: Handle, name: str) -> AbstractAsyncContextManager[Saving]:
        raise LaunchError("there is no gVisor here that could save anything")

    async def resume(self, handle: Handle) -> None:
        """Nothing was ever paused."""

    async def freeze(self, handle: Handle) -> None:
        for each in family(handle.pid):
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                os.kill(each.pid, signal.SIGSTOP)

    async def thaw(self, handle: Handle) -> None:
        for each in reversed(family(handle.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(each.pid, signal.SIGCONT)

    async def prepare_saved(self, spec: SandboxSpec, *, ahead: bool = False) -> None:
        raise LaunchError("there is no gVisor here that could restore anything")

    async def stand_ready(self, spec: SandboxSpec) -> Ready:
        raise LaunchError("there is no gVisor here that could restore anything")

    async def start(self, spec: SandboxSpec, *, when: Awaitable[object] | None = None) -> Handle:
        await self._step("start")
        if when is not None:
            await when
        fds = [os.open(spec.directory / n, os.O_RDWR) for n in (TO_GUEST, FROM_GUEST, GUEST_STDERR)]
        try:
            process = subprocess.Popen(
                [
                    *_unshare(),
                    sys.executable,
                    "-I",
                    "-B",
                    f"{spec.directory}/opt/torpor_guest",
                    f"{spec.directory}/boot.json",
                ],
                stdin=fds[0],
                stdout=fds[1],
                stderr=fds[2],
                cwd=spec.directory,
                start_new_session=True,
                env={"PATH": os.environ["PATH"]},
            )
        finally:
            for fd in fds:
                os.close(fd)
        process.returncode = 0  # it outlives us: no warning when this object goes
        (spec.directory / "pid").write_text(str(process.pid))
        try:
            await self._step("started")
        except BaseException:
            await self._kill(process.pid)
            raise
        return Handle(
            backend=self.name,
            sandbox_id=spec.sandbox_id,
            pid=process.pid,
            pid_start=_start_ticks(process.pid) or 0,
            runsc="",
            runsc_build="",
            root="",
            uid=os.geteuid(),
            cgroups=(),
            directory=str(spec.directory),
            workspace=str(spec.workspace) if spec.workspace else None,
            workspace_mode=spec.template.workspace.value,
        )

    async def exited(self, handle: Handle) -> Exit:
        while await self.alive(handle):
            await asyncio.sleep(0.02)
        return Exit(None)

    async def destroy(self, sandbox_id: str, directory: Path) -> None:
        if self.fail_at == "destroy":
            flag = Path(os.environ.get("TORPOR_TEST_FLAG", "/nonexistent"))
            if not flag.exists():
                raise LaunchError("destroy fails on purpose")
        with contextlib.suppress(OSError, ValueError):
            await self._kill(int((directory / "pid").read_text()))
        with contextlib.suppress(OSError, ValueError):
            _remove_guest_folder(json.loads((directory / "boot.json").read_text())["key"])
        shutil.rmtree(directory, ignore_errors=True)

    async def aclose(self) -> None:
        """It keeps nothing ready."""

    async def alive(self, handle: Handle) -> bool:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(handle.pid, os.WNOHANG)
        return _start_ticks(handle.pid) == handle.pid_start

    async def _kill(self, pid: int) -> None:
        # Stopped first: `unshare` must not fork between our look and its end, as its --kill-child
        # takes hold only after the fork.
        children: list[int] = []
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            while _state(pid) not in ("T", "Z", "X", ""):
                await asyncio.sleep(0.001)
            for child in (children := _children(pid)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            os.kill(pid, signal.SIGKILL)
        # Also of the guest, which ends after all that it has started: they write into its folder.
        while any(_start_ticks(each) is not None for each in (pid, *children)):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
            await asyncio.sleep(0.005)

    async def _step(self, name: str) -> None:
        if self.fail_at == name:
            raise LaunchError(f"{name} fails on purpose")
        if self.hang_at == name:
            await asyncio.sleep(3600)


def _unshare() -> list[str]:
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", *user, "--pid", "--fork", "--mount-proc", "--kill-child"]


def _children(pid: int) -> list[int]:
    try:
        return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _state(pid: int) -> str:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return stat[stat.rindex(")") + 2]


def _start_ticks(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = stat[stat.rindex(b")") + 2 :].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def _remove_guest_folder(key: str) -> None:
    """Remove what a killed guest leaves in /tmp, which in a sandbox goes with it."""
    for folder in Path("/tmp").glob(".torpor-*"):
        for file in folder.glob("*.json"):
            if key in file.read_text():
                shutil.rmtree(folder, ignore_errors=True)


def faults(environ: Mapping[str, str]) -> ProcessBackend:
    """Give the backend that ``TORPOR_TEST_FAIL_AT`` and ``TORPOR_TEST_HANG_AT`` describe."""
    return ProcessBackend(
        environ.get("TORPOR_TEST_FAIL_AT", ""), environ.get("TORPOR_TEST_HANG_AT", "")
    )
