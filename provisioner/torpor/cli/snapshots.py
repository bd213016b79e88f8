"""``torpor snapshots``."""

from __future__ import annotations

import asyncio
from typing import Any

from torpor.cli.command import Command
from torpor.cli.reach import client_of, has_snapshots
from torpor.cli.text import age, size, table
from torpor.errors import SandboxGone


class SnapshotsCommand(Command):
    name = "torpor snapshots"
    description = """List the saved memory of hibernated kernels.

    torpor snapshots                               list them
    torpor snapshots rm KERNEL GENERATION|NAME     remove one for good

    The newest of a kernel is what it wakes from; the one before stays until it has answered. Those
    with a name stay until they are removed here, also when their kernel is no more."""
    max_positionals = 3

    def run(self) -> int:
        if self.extra_args:
            if len(self.extra_args) != 3 or self.extra_args[0] != "rm":
                return self.usage_error("rm KERNEL GENERATION|NAME, or nothing")
            removed = asyncio.run(self._remove(*self.extra_args[1:]))
            self.show(removed, f"{removed['removed']} removed, {size(removed['bytes'])}")
            return 0
        snapshots = asyncio.run(self._snapshots())
        self.show({"snapshots": snapshots}, _text(snapshots))
        return 0

    async def _remove(self, kernel: str, which: str) -> dict[str, int]:
        from torpor.client_sleep import SleepClient

        kernel_id, generation = wanted(await self._snapshots(), kernel, which)
        return await SleepClient(client_of(self.paths)).drop(kernel_id, generation)

    async def _snapshots(self) -> list[dict[str, Any]]:
        from torpor.client_sleep import SleepClient

        if not has_snapshots(self.paths):
            return []
        return await SleepClient(client_of(self.paths)).snapshots()


def wanted(snapshots: list[dict[str, Any]], kernel: str, which: str) -> tuple[str, int]:
    """Give kernel and generation of the one snapshot that is meant. Raises SandboxGone."""
    found = {
        (each["kernel_id"], each["generation"])
        for each in snapshots
        if each["kernel_id"].startswith(kernel) and which in (each["name"], str(each["generation"]))
    }
    if len(found) != 1:
        raise SandboxGone(
            f"{len(found) or 'no'} snapshots are {which!r} of {kernel!r}",
            hint="see: torpor snapshots",
        )
    return found.pop()


def _text(snapshots: list[dict[str, Any]]) -> str:
    if not snapshots:
        return "no snapshots"
    headers = ["KERNEL", "GENERATION", "NAME", "KIND", "TEMPLATE", "SIZE", "MADE"]
    total = sum(each["bytes"] for each in snapshots)
    return f"{table(headers, [_row(each) for each in snapshots])}\n{size(total)} in all"


def _row(each: dict[str, Any]) -> list[str]:
    return [
        each["kernel_id"] + ("" if each["has_kernel"] else " (no kernel any more)"),
        str(each["generation"]),
        each["name"] or "-",
        each["kernel_name"] or "-",
        each["template"],
        size(each["bytes"]),
        age(each["created_at"]),
    ]
