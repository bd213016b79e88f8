"""``torpor fork``, ``torpor checkpoint`` and ``torpor rollback``."""

from __future__ import annotations

import asyncio
import secrets
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from torpor.api import CHANNELS, Endpoints
from torpor.cli.command import Command, progress
from torpor.cli.connection_files import write_connection_file
from torpor.cli.ids import one_of
from torpor.cli.reach import client_of, kernels_now
from torpor.cli.transfers import with_progress
from torpor.client_sleep import SleepClient
from torpor.errors import ConfigError
from torpor.paths import Paths


class ForkCommand(Command):
    name = "torpor fork"
    description = """Make a second kernel with the memory of another one, which goes on.

    torpor fork KERNEL

    Prints the connection file: jupyter console --existing FILE. Nobody's process owns the fork: it
    stays until `torpor shutdown`."""
    max_positionals = 1

    def run(self) -> int:
        if not self.extra_args:
            return self.usage_error("name a kernel")
        state, path = asyncio.run(self._run(self.extra_args[0]))
        self.show({**state, "connection_file": path}, f"{state['kernel_id']}\n{path}")
        return 0

    async def _run(self, wanted: str) -> tuple[dict[str, Any], str]:
        known = [str(each["kernel_id"]) for each in await kernels_now(self.paths)]
        kernel_id, client = one_of(wanted, known), SleepClient(client_of(self.paths))
        making = made(self.paths, lambda new_id, ends: client.fork(kernel_id, new_id, ends))
        return await with_progress(client, making, "forking", kernel_id, shown=self.shows_progress)


async def made(
    paths: Paths,
    make: Callable[[str, Endpoints], Awaitable[dict[str, Any]]],
) -> tuple[dict[str, Any], str]:
    """Have ``make`` make a kernel of that id and endpoints; give its state and connection file."""
    new_id, key = str(uuid.uuid4()), secrets.token_hex(16)
    state = await make(new_id, Endpoints("tcp", "127.0.0.1", dict.fromkeys(CHANNELS, 0), key))
    try:
        return state, write_connection_file(paths, state, key)
    except ConfigError:  # nobody could reach it
        await client_of(paths).delete(new_id)
        raise


class _BranchCommand(Command):
    max_positionals = 2

    def run(self) -> int:
        if len(self.extra_args) != 2:
            return self.usage_error("name a kernel and a checkpoint")
        wanted, name = self.extra_args
        started = time.monotonic()
        state = asyncio.run(self._run(wanted, name))
        if self.shows_progress:
            progress(f"done ({time.monotonic() - started:.2f} s)")
        self.show(state, f"{state['kernel_id']}: {state['status']}")
        return 0

    async def _run(self, wanted: str, name: str) -> dict[str, Any]:
        known = [str(each["kernel_id"]) for each in await kernels_now(self.paths)]
        return await self.act(SleepClient(client_of(self.paths)), one_of(wanted, known), name)

    async def act(self, client: SleepClient, kernel_id: str, name: str) -> dict[str, Any]:
        raise NotImplementedError


class CheckpointCommand(_BranchCommand):
    name = "torpor checkpoint"
    description = """Save the whole memory of an idle kernel under a name, and let it go on.

    torpor checkpoint KERNEL NAME

    It stays until `torpor snapshots rm` removes it, also when its kernel is no more: see `torpor
    rollback` and `torpor restore`. Where a store is configured it goes there, too."""

    async def act(self, client: SleepClient, kernel_id: str, name: str) -> dict[str, Any]:
        work = client.checkpoint(kernel_id, name)
        return await with_progress(client, work, "saving", kernel_id, shown=self.shows_progress)


class RollbackCommand(_BranchCommand):
    name = "torpor rollback"
    description = """Have a kernel be as it was at a checkpoint: memory, threads and private files.

    torpor rollback KERNEL NAME    a name, or a generation of `torpor snapshots`

    What it is now becomes a snapshot first. Files of the workspace are not rolled back."""

    async def act(self, client: SleepClient, kernel_id: str, name: str) -> dict[str, Any]:
        to = int(name) if name.isdecimal() else name
        work = client.roll_back(kernel_id, to)
        return await with_progress(
            client, work, "rolling back", kernel_id, shown=self.shows_progress
        )
