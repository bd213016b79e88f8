"""``torpor daemon start|stop|status``."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from traitlets import Bool

from torpor.cli.command import FLAGS, Command, progress
from torpor.cli.connection_files import remove_connection_files
from torpor.cli.reach import client_of, daemon_status, left_kernels
from torpor.cli.text import age
from torpor.errors import Busy

if TYPE_CHECKING:  # httpx takes longer to load than most of these commands take to run
    from torpor.client import Client

NOT_RUNNING = 3
_BUSY_HINT = (
    "end them with `torpor shutdown`, or with --kernels; or stop it with --force: kernels that are "
    "awake go on, those that sleep sleep on, and nobody wakes them until it runs again"
)


class StartCommand(Command):
    name = "torpor daemon start"
    description = """Start the daemon, if it does not run.

    Normally it starts by itself with the first kernel and ends by itself after the last."""

    def run(self) -> int:
        if asyncio.run(daemon_status(self.paths)) is None:
            progress("starting torpord")
        status = asyncio.run(client_of(self.paths).ensure())
        self.show({"running": True, **status}, _text(status))
        return 0


class StopCommand(Command):
    name = "torpor daemon stop"
    description = """Stop the daemon. Refused while it holds kernels, unless --force or --kernels.

    With --kernels they are destroyed first, with all that is in their memory.
    With --force those that are awake go on: their messages pass through the bridge, a process of its
    own. Those that sleep sleep on, and nobody wakes them: a message for them waits. So do starts,
    restarts and signals. The next daemon takes all of them over; any command that needs one, such as
    `torpor kernels`, starts it, and so does a Jupyter server that has kernels."""
    flags: dict[str, Any] = {  # noqa: RUF012
        **FLAGS,
        "force": ({"StopCommand": {"force": True}}, "Stop it also while it holds kernels."),
        "kernels": ({"StopCommand": {"kernels": True}}, "Destroy its kernels first."),
    }

    force = Bool(
        False,
        help="Stop it also while it holds kernels; off, because new ones then start it again.",
    ).tag(config=True)
    kernels = Bool(
        False, help="Destroy its kernels first; off, because what they remember is lost."
    ).tag(config=True)

    def run(self) -> int:
        was = asyncio.run(daemon_status(self.paths))
        left: list[dict[str, Any]] = []
        if was is not None:
            client = client_of(self.paths)
            if self.kernels:
                asyncio.run(_destroy_kernels(client))
            elif self.force:
                left = asyncio.run(client.kernels())
            progress(f"stopping torpord (pid {was.get('pid')})")
            try:
                asyncio.run(client.shutdown(force=self.force))
            except Busy as exc:
                raise Busy(exc.message, hint=_BUSY_HINT) from exc
        text = "torpord did not run" if was is None else "torpord has stopped"
        self.show(
            {"running": False, "stopped": was is not None}, "\n".join([text, *left_text(left)])
        )
        return 0


class StatusCommand(Command):
    name = "torpor daemon status"
    description = "Show whether the daemon runs. Exit code: 0 it runs, 3 it does not."

    def run(self) -> int:
        status = asyncio.run(daemon_status(self.paths))
        if status is None:
            text = "torpord does not run; it starts by itself with the first kernel"
            if left_kernels(self.paths):
                text = "torpord does not run, and may have left kernels: `torpor kernels` starts it"
            self.show({"running": False}, text)
            return NOT_RUNNING
        self.show({"running": True, **status}, _text(status))
        return 0


class DaemonCommand(Command):
    name = "torpor daemon"
    description = "Start or stop the daemon, or show its state."
    subcommands: dict[str, Any] = {  # noqa: RUF012
        "start": (StartCommand, "Start the daemon, if it does not run."),
        "stop": (StopCommand, "Stop the daemon."),
        "status": (StatusCommand, "Show whether the daemon runs."),
    }


async def _destroy_kernels(client: Client) -> None:
    kernels = await client.kernels()
    if kernels:
        progress(f"destroying {len(kernels)} kernel(s)")
    deleting = (client.delete(kernel["kernel_id"]) for kernel in kernels)
    for failed in await asyncio.gather(*deleting, return_exceptions=True):
        if failed is not None:
            raise failed
    remove_connection_files(client.paths, [kernel["kernel_id"] for kernel in kernels])


def left_text(kernels: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say what becomes of the kernels of a daemon that has stopped, and how they come back. Pure."""
    tiers = [each["sleep"]["tier"] for each in kernels if each["status"] not in ("exited", "gone")]
    awake = tiers.count("awake")
    lines = [f"  kernels that are awake and go on: {awake}"] if awake else []
    if asleep := len(tiers) - awake:
        lines.append(f"  kernels that sleep, and that nobody wakes until torpord runs: {asleep}")
    if lines:
        lines.append(
            "  `torpor kernels` starts it again, as does a Jupyter server that has kernels"
        )
    return lines


def _text(status: Mapping[str, Any]) -> str:
    bridge, runsc = status.get("bridge") or {}, status.get("runsc") or {}
    rows = {
        "torpord": f"{status.get('version')}, pid {status.get('pid')}",
        "started": f"{age(status.get('started_at'))} ago",
        "kernels": status.get("kernels"),
        "bridge": f"pid {bridge['pid']}" if bridge.get("pid") else "not running",
        "runsc": f"{runsc.get('build') or 'none'} {runsc.get('path') or ''}".strip(),
        "state": status.get("state_dir"),
    }
    return "\n".join(f"{name:8} {value}" for name, value in rows.items())
