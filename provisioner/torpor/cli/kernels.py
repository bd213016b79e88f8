"""``torpor kernels``."""

from __future__ import annotations

import asyncio
import textwrap
from collections.abc import Mapping
from typing import Any

from torpor.cli.command import Command
from torpor.cli.pool import first_line
from torpor.cli.reach import kernels_now
from torpor.cli.text import age, table
from torpor.snapshot.outside import words

_COLUMNS = 100
_HEADERS = ("KERNEL", "NAME", "TEMPLATE", "STATUS", "STATE", "STARTED", "ACTIVE")
_NAME, _TEMPLATE, _LEAST = 1, 2, 8
"""The columns that are clipped where all would be wider, and to how much at least."""


class KernelsCommand(Command):
    name = "torpor kernels"
    description = """List the kernels that this user's daemon holds.

    Below each is how it was started, quickest first: claimed (a clone that waited), cloned (from a
    golden), created (cold), and for the slower two why; then why it is awake, frozen or hibernated,
    and what comes next; then its workspace.
    Starts nothing: where no daemon runs there are no kernels."""

    def run(self) -> int:
        kernels = asyncio.run(kernels_now(self.paths))
        self.show({"kernels": kernels}, _text(kernels))
        return 0


def _text(kernels: list[dict[str, Any]]) -> str:
    if not kernels:
        return "no kernels"
    rows = _fitting([_row(each) for each in kernels])
    header, *lines = table(_HEADERS, rows).splitlines()
    for index, (kernel, row) in enumerate(zip(kernels, rows, strict=True)):
        lines[index] = "\n".join([lines[index], *_below(kernel, row)])
    return "\n".join([header, *lines])


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
    return [
        str(kernel.get("kernel_id", "-")),
        str(kernel.get("kernel_name") or "-"),
        str(kernel.get("template") or "-"),
        str(kernel.get("status", "-")),
        str(kernel.get("execution_state") or "-").replace("unknown", "-"),
        age(kernel.get("created_at")),
        age(kernel.get("last_activity")),
    ]


def _below(kernel: Mapping[str, Any], row: list[str]) -> list[str]:
    """Give the lines that say what its ``row`` does not; each is as wide as people read."""
    workspace = kernel.get("workspace") or {}
    path, status = workspace.get("path"), str(kernel.get("status", "-"))
    reason = kernel.get("reason") if status in ("exited", "gone", "hibernated") else None
    said = {
        "name": kernel["kernel_name"] if "…" in row[_NAME] else "",
        "template": kernel["template"] if "…" in row[_TEMPLATE] else "",
        status: reason or "",
        "start": start_text(kernel),
        "sleep": sleep_text(kernel.get("sleep") or {}),
        "workspace": f"{path} ({workspace.get('mode', '?')})" if path else "-",
    }
    lines: list[str] = []
    for name, text in said.items():
        if text not in ("", "-"):
            lines += textwrap.wrap(
                f"{name}: {text}",
                _COLUMNS,
                initial_indent="  ",
                subsequent_indent="    ",
                break_long_words=False,
                break_on_hyphens=False,
            )
    return lines


def _fitting(rows: list[list[str]]) -> list[list[str]]:
    """Give the rows with names so short that all columns fit."""
    widths = [max(map(len, column)) for column in zip(_HEADERS, *rows, strict=True)]
    room = _COLUMNS - sum(widths) - 2 * (len(widths) - 1) + widths[_NAME] + widths[_TEMPLATE]
    template = min(widths[_TEMPLATE], max(_LEAST, room - widths[_NAME]))
    name = max(_LEAST, room - template)
    return [
        [*row[:_NAME], _clipped(row[_NAME], name), _clipped(row[_TEMPLATE], template), *row[3:]]
        for row in rows
    ]


def _clipped(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
