"""Sandboxes that are nobody's yet: one that becomes a golden, one that waits as a clone.

Each has its row in the registry, under no kernel, before anything of it exists; a daemon that dies
leaves them to the sweep of the next. ``Unclaimed`` keeps the sweep of this one away.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from torpor.backends.base import Handle, Image, Lineage, SandboxSpec
from torpor.daemon.guest_line import GuestLine
from torpor.daemon.parts import Parts
from torpor.daemon.records import SandboxRow
from torpor.errors import ConfigError, LaunchError, SandboxError
from torpor.golden.build import Golden
from torpor.lifecycle import run_to_end

NOBODY = ""
CHECK_S = 10.0
_REHEARSALS = 2
FIRST_CELL = """
try:
    get_ipython().display_formatter.format(1 + 1)
except NameError:
    pass
"""
"""What the first cell of most people does: formatting a result is part of it."""
_UNDO_S = 30.0


@dataclass(slots=True, eq=False)
class Clone:
    """A kernel that was restored and has answered, waiting to become somebody's.

    ``row`` is its sandbox; ``ready_at`` the loop's time. Whoever takes it from the pool owns it.
    """

    row: SandboxRow
    handle: Handle
    golden: Golden
    lineage: Lineage
    ready_at: float
    folder: tuple[int, int] | None
    """Which folder its workspace is, as ``folder_identity`` says; it may be replaced meanwhile."""
    watch: asyncio.Task[Any] | None = None


def folder_identity(path: str | None) -> tuple[int, int] | None:
    """Give what tells a folder from another one that has its path later; None when there is none."""
    if path is None:
        return None
    try:
        seen = os.stat(path)
    except OSError:
        return None
    return (seen.st_dev, seen.st_ino) if stat.S_ISDIR(seen.st_mode) else None


class Unclaimed:
    """Makes sandboxes that no kernel claims, and destroys them."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.held = parts.unclaimed
        """Sandboxes that are being made or wait; the sweep leaves them alone."""

    @asynccontextmanager
    async def sandbox(self, spec: SandboxSpec) -> AsyncIterator[tuple[SandboxSpec, Handle]]:
        """Start a sandbox of its own for ``spec``; it is destroyed when the context ends.

        Raises:
            SandboxError: as ``Backend.prepare`` and ``start``; nothing is left.
        """
        row = self._row()
        spec = replace(spec, sandbox_id=row.sandbox_id, directory=row.directory)
        try:
            yield spec, await self._start(spec, row)
        finally:
            await self.destroy(row.sandbox_id)

    async def restore(
        self, golden: Golden, lineage: Lineage, spec: SandboxSpec, *, to_wait: bool
    ) -> Clone:
        """Give a new clone of ``golden`` whose kernel has answered, with the workspace of ``spec``.

        One that is ``to_wait`` has done once, for nobody, what its claim and its first cell will do:
        restored memory is slow when it is first touched. All or nothing, also when cancelled. The
        caller holds the golden.

        Raises:
            SandboxError: it could not be restored, or does not answer.
        """
        folder = folder_identity(lineage.workspace)
        if lineage.workspace is not None and folder is None:
            raise ConfigError(f"the workspace {lineage.workspace} is not a folder any more")
        row = self._row()
        spec = replace(
            spec,
            sandbox_id=row.sandbox_id,
            directory=row.directory,
            key=golden.manifest.guest_key,
            image=Image(golden.image, restore=True, read_only=lineage.read_only),
        )
        try:
            handle = await self._start(spec, row)
            row = replace(row, handle=handle.to_json())
            ended = asyncio.create_task(
                self._parts.backend.exited(handle), name=f"exit of {row.sandbox_id}"
            )
            try:
                await self._check(spec, ended, rehearse=to_wait)
            finally:
                ended.cancel()
                await asyncio.wait({ended})
        except BaseException:
            await self.destroy(row.sandbox_id)
            raise
        return Clone(row, handle, golden, lineage, asyncio.get_running_loop().time(), folder)

    async def destroy(self, sandbox_id: str) -> None:
        """Remove every trace of a sandbox; what would not go away is left to the sweep."""
        try:
            with contextlib.suppress(SandboxError, TimeoutError):
                await run_to_end(
                    self._parts.free_sandbox(sandbox_id),
                    within_s=_UNDO_S,
                    name=f"destroy {sandbox_id}",
                )
        finally:
            self.held.discard(sandbox_id)

    def _row(self) -> SandboxRow:
        sandbox_id = f"t{secrets.token_hex(8)}"
        row = SandboxRow(sandbox_id, NOBODY, self._parts.paths.kernels / sandbox_id)
        self.held.add(sandbox_id)
        self._parts.registry.put_sandbox(row)
        return row

    async def _start(self, spec: SandboxSpec, row: SandboxRow) -> Handle:
        backend = self._parts.backend
        await backend.prepare(spec)
        handle = await backend.start(spec)
        self._parts.registry.put_sandbox(replace(row, handle=handle.to_json()))
        return handle

    async def _check(self, spec: SandboxSpec, ended: asyncio.Task[Any], *, rehearse: bool) -> None:
        """Ask the restored kernel for its kernel_info; fail as soon as its sandbox ends."""

        async def ask() -> None:
            async with GuestLine(spec.directory) as line:
                await line.call("check", timeout_s=CHECK_S)
                for _ in range(_REHEARSALS if rehearse else 0):
                    await line.call("execute", {"code": FIRST_CELL}, timeout_s=CHECK_S)
                    await line.call("rehearse", timeout_s=CHECK_S)

        asking = asyncio.create_task(ask(), name=f"check {spec.sandbox_id}")
        try:
            await asyncio.wait({asking, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                reason = ended.result().reason or "it ended by itself"
                raise LaunchError(f"the clone could not be restored: {reason}")
            asking.result()
        finally:
            asking.cancel()
            await asyncio.wait({asking})
