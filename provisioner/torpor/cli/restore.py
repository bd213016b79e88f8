"""``torpor restore``."""

from __future__ import annotations

import asyncio
from typing import Any

from torpor.cli.branch import made
from torpor.cli.command import Command
from torpor.cli.reach import client_of
from torpor.cli.transfers import with_progress
from torpor.cli.which import kernel_of, number_or_name
from torpor.client_sleep import SleepClient


class RestoreCommand(Command):
    name = "torpor restore"
    description = """Make a new kernel from a snapshot; the snapshot stays as it is.

    torpor restore KERNEL [GENERATION|NAME]    the newest, unless it is said

    Of a kernel that is no more, or of one that another machine has sent to the same store. It fits
    where runsc, processor, template, workspace and the libraries mapped into the kernel are the same;
    otherwise it is refused, and says why. Prints the connection file: jupyter console --existing
    FILE. Nobody's process owns the kernel: it stays until `torpor shutdown`."""
    max_positionals = 2

    def run(self) -> int:
        if not self.extra_args:
            return self.usage_error("name a kernel (see `torpor snapshots`)")
        state, path = asyncio.run(self._run(*self.extra_args))
        self.show({**state, "connection_file": path}, f"{state['kernel_id']}\n{path}")
        return 0

    async def _run(self, wanted: str, which: str = "") -> tuple[dict[str, Any], str]:
        client = SleepClient(client_of(self.paths))
        kernel_id = kernel_of(await client.snapshots(), wanted)
        restoring = made(
            self.paths,
            lambda new_id, ends: client.restore(kernel_id, number_or_name(which), new_id, ends),
        )
        return await with_progress(
            client, restoring, "restoring", kernel_id, shown=self.shows_progress
        )
