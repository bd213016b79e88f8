"""``torpor snapshots``."""

from __future__ import annotations

import asyncio
from typing import Any

from torpor.cli.command import Command
from torpor.cli.reach import client_of, has_snapshots
from torpor.cli.text import age, size, table


class SnapshotsCommand(Command):
    name = "torpor snapshots"
    description = """List the saved memory of hibernated kernels.

    The newest of a kernel is what it wakes from; the one before stays until it has answered."""

    def run(self) -> int:
        snapshots = asyncio.run(self._snapshots())
        self.show({"snapshots": snapshots}, _text(snapshots))
        return 0

    async def _snapshots(self) -> list[dict[str, Any]]:
        from torpor.client_sleep import SleepClient

        if not has_snapshots(self.paths):
            return []
        return await SleepClient(client_of(self.paths)).snapshots()


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
