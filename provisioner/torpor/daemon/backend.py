"""The local backend with the runsc that configuration and disk have now.

The daemon starts, adopts and destroys without any runsc: only a launch needs one, and then the
error says what to do. A runsc that is installed or upgraded meanwhile counts from the next launch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torpor.backends.base import Backend, Build, Exit, Handle, Lineage, Ready, SandboxSpec, Saving
from torpor.backends.local import LocalBackend, make_local_backend
from torpor.config import SettingsSource, process_environment
from torpor.paths import Paths
from torpor.runsc.version import Runsc, find_runsc

_SPARE_LAUNCHERS = 2
"""One for a kernel that falls asleep, one for it when it wakes right afterwards. 5 MiB each."""


class ConfiguredBackend:
    """A ``Backend`` that looks for its runsc at each launch; see the module's text."""

    name = "local"

    def __init__(self, source: SettingsSource, paths: Paths) -> None:
        """Raises ConfigError: this installation is incomplete."""
        self._source = source
        self._paths = paths
        self._found: Runsc | None = None
        self._found_for: object = None
        self._local: LocalBackend = make_local_backend(
            Path("runsc"),
            "",
            private=(paths.state, paths.runtime, paths.data, paths.config),
            home=Path.home(),
            search_path=process_environment().get("PATH", "/usr/bin:/bin"),
            spare_launchers=_SPARE_LAUNCHERS,
        )

    async def runsc(self) -> Runsc:
        """Give the runsc that a launch would use, good or not. Raises ConfigError."""
        return await asyncio.to_thread(self._find)

    async def prepare(self, spec: SandboxSpec) -> None:
        await (await self._usable()).prepare(spec)

    def start_params(self, spec: SandboxSpec) -> Mapping[str, Any]:
        return self._local.start_params(spec)

    def lineage(self, spec: SandboxSpec) -> Lineage:
        runsc = self._find()
        return replace(self._local, runsc=runsc.require(), runsc_build=runsc.build).lineage(spec)

    async def checkpoint(self, spec: SandboxSpec, handle: Handle) -> None:
        await (await self._usable()).checkpoint(spec, handle)

    async def build(self) -> Build:
        return await (await self._usable()).build()

    def saving(self, handle: Handle, name: str) -> AbstractAsyncContextManager[Saving]:
        return self._local.saving(handle, name)

    async def resume(self, handle: Handle) -> None:
        await self._local.resume(handle)

    async def freeze(self, handle: Handle) -> None:
        await self._local.freeze(handle)

    async def thaw(self, handle: Handle) -> None:
        await self._local.thaw(handle)

    async def prepare_saved(self, spec: SandboxSpec, *, ahead: bool = False) -> None:
        await (await self._usable()).prepare_saved(spec, ahead=ahead)

    async def stand_ready(self, spec: SandboxSpec) -> Ready:
        return await (await self._usable()).stand_ready(spec)

    async def start(self, spec: SandboxSpec, *, when: Awaitable[object] | None = None) -> Handle:
        return await (await self._usable()).start(spec, when=when)

    async def exited(self, handle: Handle) -> Exit:
        return await self._local.exited(handle)

    async def destroy(self, sandbox_id: str, directory: Path) -> None:
        await self._local.destroy(sandbox_id, directory)

    async def aclose(self) -> None:
        await self._local.aclose()

    async def alive(self, handle: Handle) -> bool:
        return await self._local.alive(handle)

    async def _usable(self) -> LocalBackend:
        runsc = await self.runsc()
        return replace(self._local, runsc=runsc.require(), runsc_build=runsc.build)

    def _find(self) -> Runsc:
        """Ask the binary for its version once; again when it, or what is configured, has changed."""
        settings = self._source.read()
        wanted = (settings.runsc_path, settings.allow_old_runsc)
        last = self._found
        if last is not None and last.ok and self._found_for == self._seen(wanted, last):
            return last
        found = find_runsc(self._paths, settings.runsc_path, allow_old=settings.allow_old_runsc)
        self._found, self._found_for = found, self._seen(wanted, found)
        return found

    def _seen(self, wanted: tuple[Any, ...], found: Runsc) -> tuple[Any, ...]:
        return (*wanted, _stamp(found.path), _stamp(self._paths.runsc))


def make_backend(source: SettingsSource, paths: Paths) -> Backend:
    """Give the backend of this machine. Raises ConfigError."""
    return ConfiguredBackend(source, paths)


def _stamp(path: Path | None) -> tuple[int, ...] | None:
    try:
        seen = path.stat() if path is not None else None
    except OSError:
        return None
    return None if seen is None else (seen.st_mtime_ns, seen.st_size, seen.st_ino)
