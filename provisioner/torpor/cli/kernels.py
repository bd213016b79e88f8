"""``torpor kernels``."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from torpor.cli.command import Command
from torpor.cli.pool import first_line
from torpor.cli.reach import kernels_now
from torpor.cli.text import age, table
from torpor.snapshot.outside import words


class KernelsCommand(Command):
    name = "torpor kernels"
    description = """List the kernels that this user's daemon holds.

    START says how a kernel was started, quickest first: claimed (a clone that waited), cloned (from
    a golden), created (cold), and for the slower two why. SLEEP says why a kernel is awake, frozen or
    hibernated, and what comes next.
    Starts nothing: where no daemon runs there are no kernels."""

    def run(self) -> int:
        kernels = asyncio.run(kernels_now(self.paths))
        self.show({"kernels": kernels}, _text(kernels))
        return 0


def _text(kernels: list[dict[str, Any]]) -> str:
    if not kernels:
        return "no kernels"
    headers = [
        "KERNEL",
        "NAME",
        "TEMPLATE",
        "STATUS",
        "STATE",
        "START",
        "SLEEP",
        "STARTED",
        "ACTIVE",
    ]
    return table([*headers, "WORKSPACE"], [_row(kernel) for kernel in kernels])


def start_text(kernel: Mapping[str, Any]) -> str:
    """Give how a kernel was started and, unless that was the quickest way, why. Pure."""
    start = kernel.get("start") or {}
    how, why = start.get("how") or "-", start.get("why")
    return f"{how}: {first_line(why)}" if why else how


def sleep_text(sleep: Mapping[str, Any]) -> str:
    """Give why a kernel is in its tier and, if it has lost something in its last sleep, what. Pure."""
    outlook, lost = sleep.get("outlook") or "-", words(sleep.get("lost") or ())
    if not lost:
        return outlook
    more = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
    return f"{outlook}; woke with changes: {lost[0]}{more}"


def _row(kernel: Mapping[str, Any]) -> list[str]:
    workspace = kernel.get("workspace") or {}
    path = workspace.get("path")
    status = str(kernel.get("status", "-"))
    if status in ("exited", "gone", "hibernated") and kernel.get("reason"):
        status = f"{status}: {kernel['reason']}"
    return [
        str(kernel.get("kernel_id", "-")),
        str(kernel.get("kernel_name") or "-"),
        str(kernel.get("template") or "-"),
        status,
        str(kernel.get("execution_state") or "-"),
        start_text(kernel),
        sleep_text(kernel.get("sleep") or {}),
        age(kernel.get("created_at")),
        age(kernel.get("last_activity")),
        f"{path} ({workspace.get('mode', '?')})" if path else "-",
    ]
