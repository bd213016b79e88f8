"""``torpor restore``."""

from __future__ import annotations

import asyncio
from typing import Any

from torpor.cli.branch import made
from torpor.cli.command import Command
from torpor.cli.reach import client_of
from torpor.cli.transfers import with_progress
from torpor.client_sleep import SleepClient
from torpor.errors import SandboxGone


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
            lambda new_id, ends: client.restore(kernel_id, number_or_name(which), new_id, ends)
        )
        return await with_progress(client, restoring, shown=not self.json)


def kernel_of(snapshots: list[dict[str, Any]], wanted: str) -> str:
    """Give the one kernel among ``snapshots`` whose id begins so. Raises SandboxGone."""
    known = {str(each["kernel_id"]) for each in snapshots}
    found = known & {wanted} or {each for each in known if wanted and each.startswith(wanted)}
    if len(found) != 1:
        raise SandboxGone(
            f"there are snapshots of {len(found) or 'no'} kernels that begin with {wanted!r}",
            hint="see: torpor snapshots",
        )
    return found.pop()


def number_or_name(which: str) -> int | str | None:
    """Give a generation as a number, a name as it is, and None for nothing."""
    return int(which) if which.isdecimal() else which or None
