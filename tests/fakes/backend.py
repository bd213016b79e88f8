"""A backend with no process at all: directories and FIFOs are real, sandboxes are entries of a dict.

For fast tests of what stands on a backend. It passes `tests.contract.backend.BackendContract` as the
real one does. Faults are constructor arguments.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torpor.backends.base import FROM_GUEST, GUEST_STDERR, TO_GUEST, Exit, Handle, SandboxSpec
from torpor.errors import ConfigError, LaunchError

_pids = itertools.count(1 << 22)  # beyond what the kernel hands out by default


@dataclass(slots=True)
class FakeWorld:
    """What outlives a backend: the running sandboxes, with what ended those that did."""

    live: dict[str, asyncio.Future[str | None]] = field(default_factory=dict)


@dataclass(slots=True)
class FakeBackend:
    """``fail_at`` and ``hang_at`` name one of ``STEPS``; ``world`` is shared to play a restart."""

    fail_at: str = ""
    hang_at: str = ""
    world: FakeWorld = field(default_factory=FakeWorld)
    handles: dict[str, Handle] = field(default_factory=dict)

    name = "fake"
    PREPARE_STEPS = ("folders", "fifos")
    STEPS = (*PREPARE_STEPS, "process", "link")

    @property
    def live(self) -> set[str]:
        return set(self.world.live)

    async def prepare(self, spec: SandboxSpec) -> None:
        if not os.access(spec.argv[0], os.X_OK):
            raise ConfigError(f"the kernel's program {spec.argv[0]!r} cannot be used")
        if spec.directory.exists():
            raise LaunchError(f"sandbox folder {spec.directory} exists already")
        try:
            await self._step("folders")
            spec.directory.mkdir(mode=0o700, parents=True)
            await self._step("fifos")
            for name in (TO_GUEST, FROM_GUEST, GUEST_STDERR):
                os.mkfifo(spec.directory / name, 0o600)
        except BaseException:
            shutil.rmtree(spec.directory, ignore_errors=True)
            raise

    def start_params(self, spec: SandboxSpec) -> Mapping[str, Any]:
        return {"argv": list(spec.argv), "env": dict(spec.env), "cwd": spec.cwd}

    async def start(self, spec: SandboxSpec, *, when: Awaitable[object] | None = None) -> Handle:
        if not spec.directory.is_dir():
            raise LaunchError(f"sandbox folder {spec.directory} is not prepared")
        try:
            await self._step("process")
            self.world.live[spec.sandbox_id] = asyncio.get_running_loop().create_future()
            await self._step("link")
            if when is not None:
                await when
        except BaseException:
            self.world.live.pop(spec.sandbox_id, None)
            raise
        pid = next(_pids)
        return Handle(
            backend=self.name,
            sandbox_id=spec.sandbox_id,
            pid=pid,
            pid_start=pid,
            runsc="",
            runsc_build="",
            root="",
            uid=os.geteuid(),
            cgroups=(),
            directory=str(spec.directory),
            workspace=None,
            workspace_mode="none",
        )

    def end(self, sandbox_id: str, reason: str | None = None) -> None:
        """Let a sandbox end by itself, as a crash would."""
        self.world.live.pop(sandbox_id).set_result(reason)

    async def exited(self, handle: Handle) -> Exit:
        ending = self.world.live.get(handle.sandbox_id)
        return Exit(None if ending is None else await asyncio.shield(ending))

    async def destroy(self, sandbox_id: str, directory: Path) -> None:
        if sandbox_id in self.world.live:
            self.end(sandbox_id)
        shutil.rmtree(directory, ignore_errors=True)

    async def aclose(self) -> None:
        """It keeps nothing ready."""

    async def alive(self, handle: Handle) -> bool:
        return handle.sandbox_id in self.world.live

    async def _step(self, name: str) -> None:
        if self.fail_at == name:
            raise LaunchError(f"{name} fails on purpose")
        if self.hang_at == name:
            await asyncio.Event().wait()
