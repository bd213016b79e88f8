"""``torpor pool``."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torpor.cli.command import Command
from torpor.cli.reach import client_of, daemon_status
from torpor.cli.text import table
from torpor.paths import Paths

if TYPE_CHECKING:
    from torpor.client_pool import PoolClient

OFF = "the pool is switched off"
SWITCH_ON = "set TorporDaemon.pool to True and restart the daemon"
NOT_RUNNING = "torpord does not run; it starts by itself with the first kernel"
KEY_CHARACTERS = 12
"""So much of a golden's key is shown; the logs show as much."""


class PoolCommand(Command):
    name = "torpor pool"
    description = """Show the clones that wait to become somebody's kernel, and why there are so many.

    Each line is one kind of kernel: a golden and a workspace. Starts nothing: where no daemon runs
    no clone waits."""

    def run(self) -> int:
        document = asyncio.run(_pool_now(self.paths))
        self.show(document, pool_text(document))
        return 0


def pool_client(paths: Paths) -> PoolClient:
    """Give the client for goldens and the pool; like ``client_of``, imported when it is needed."""
    from torpor.client_pool import PoolClient

    return PoolClient(client_of(paths))


async def _pool_now(paths: Paths) -> dict[str, Any]:
    if await daemon_status(paths) is None:
        return {"running": False, "enabled": None, "shapes": [], "building": [], "counters": {}}
    return {"running": True, **await pool_client(paths).pool()}


def pool_text(document: Mapping[str, Any]) -> str:
    """Give what people see of the pool's state. Pure."""
    if not document["running"]:
        return f"no clones: {NOT_RUNNING}"
    if not document["enabled"]:
        return f"{OFF}: every kernel is started cold\n  to switch it on: {SWITCH_ON}"
    shapes, lines = document["shapes"], ["no clones: no kernel was started lately"]
    if shapes:
        headers = ["GOLDEN", "KERNEL", "TEMPLATE", "WORKSPACE", "READY", "STARTING", "REASON"]
        lines = [table(headers, [_row(shape) for shape in shapes])]
    lines += [_failure(shape) for shape in shapes if shape.get("last_failure")]
    lines += [building_text(document), _totals(document)]
    return "\n".join(line for line in lines if line)


def building_text(document: Mapping[str, Any]) -> str:
    """Give the line that says which goldens are being built; "" when none is."""
    keys = ", ".join(key[:KEY_CHARACTERS] for key in document["building"])
    return f"being built: {keys}" if keys else ""


def first_line(text: str) -> str:
    """Give the first line of ``text``, cut to a readable length: what follows is often a traceback."""
    line = text.strip().partition("\n")[0].strip()
    return line if len(line) <= 200 else f"{line[:197]}..."


def _row(shape: Mapping[str, Any]) -> list[str]:
    return [
        shape["golden"][:KEY_CHARACTERS],
        shape["kernel_name"] or "-",
        shape["template"],
        shape["workspace"] or "-",
        str(shape["ready"]),
        str(shape["starting"]),
        shape["reason"],
    ]


def _failure(shape: Mapping[str, Any]) -> str:
    times = "" if shape["failures"] == 1 else f" {shape['failures']} times in a row"
    key = shape["golden"][:KEY_CHARACTERS]
    return f"a clone of {key} could not be restored{times}: {first_line(shape['last_failure'])}"


def _totals(document: Mapping[str, Any]) -> str:
    shapes, counters = document["shapes"], document["counters"]
    ready, starting = (sum(shape[name] for shape in shapes) for name in ("ready", "starting"))
    starts = ", ".join(f"{counters.get(how, 0)} {how}" for how in ("claimed", "cloned", "created"))
    failed = f", {counters['build_failed']} failed" if counters.get("build_failed") else ""
    return (
        f"clones: {ready} ready, {starting} starting, {counters.get('sick', 0)} sick so far; "
        f"starts: {starts}; goldens: {counters.get('built', 0)} built{failed}"
    )
