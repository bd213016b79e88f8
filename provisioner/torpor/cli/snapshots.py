"""``torpor snapshots``."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from traitlets import Enum

from torpor.cli.command import FLAGS, Command, progress
from torpor.cli.reach import client_of, has_snapshots
from torpor.cli.restore import kernel_of, number_or_name
from torpor.cli.text import age, size, table
from torpor.cli.transfers import with_progress
from torpor.errors import SandboxGone

if TYPE_CHECKING:
    from torpor.client_sleep import SleepClient


class SnapshotsCommand(Command):
    name = "torpor snapshots"
    description = """List the saved memory of hibernated kernels, on disk and in the store.

    torpor snapshots                                 list it; WHERE is disk, store, or both
    torpor snapshots push KERNEL [GENERATION|NAME]   send one to the store now
    torpor snapshots fetch KERNEL [GENERATION|NAME]  bring one from the store to the disk
    torpor snapshots rm KERNEL GENERATION|NAME       remove one for good, wherever it is;
                                                     with --disk or --store only there

    The newest of a kernel is what it wakes from; the one before stays until it has answered. Those
    with a name stay until they are removed here, also when their kernel is no more. Where a store is
    configured (c.Torpor.store), snapshots go there by themselves; see also `torpor restore`."""
    max_positionals = 3
    flags: dict[str, Any] = {  # noqa: RUF012
        **FLAGS,
        "disk": ({"SnapshotsCommand": {"place": "disk"}}, "Remove it from this disk only."),
        "store": ({"SnapshotsCommand": {"place": "store"}}, "Remove it from the store only."),
    }

    place = Enum(["", "disk", "store"], "", help="Where `rm` removes; '' is everywhere.").tag(
        config=True
    )

    def run(self) -> int:
        verb, *rest = [*self.extra_args, ""]
        words = rest[:-1]
        if self.place and verb != "rm":
            return self.usage_error("--disk and --store are for rm")
        if not verb:
            found = asyncio.run(self._overview())
            self.show(found, _text(found["snapshots"], found["store"]))
            return 0
        if verb == "rm" and len(words) == 2:
            removed = asyncio.run(self._remove(*words))
            also = ", and from the store" if removed["from_store"] else ""
            self.show(
                removed, f"{removed['removed']} removed, {size(removed['bytes'])} of disk{also}"
            )
            return 0
        if verb in ("push", "fetch") and words:
            return asyncio.run(self._move(verb, *words))
        return self.usage_error("push|fetch KERNEL [GENERATION|NAME], rm KERNEL GENERATION|NAME")

    async def _remove(self, kernel: str, which: str) -> dict[str, Any]:
        kernel_id, generation = wanted((await self._overview())["snapshots"], kernel, which)
        return await self._client().drop(kernel_id, generation, self.place)

    async def _move(self, verb: str, kernel: str, which: str = "") -> int:
        client, started = self._client(), time.monotonic()
        kernel_id = kernel_of((await self._overview())["snapshots"], kernel)
        moving = client.move(kernel_id, verb, number_or_name(which))
        row = await with_progress(client, moving, shown=not self.json)
        if not self.json:
            progress(f"done ({time.monotonic() - started:.2f} s)")
        self.show(row, f"{kernel_id} {row['generation']}: {size(row['bytes'])}, {_where(row)}")
        return 0

    async def _overview(self) -> dict[str, Any]:
        if not has_snapshots(self.paths):
            return {"snapshots": [], "store": None}
        return await self._client().overview()

    def _client(self) -> SleepClient:
        from torpor.client_sleep import SleepClient

        return SleepClient(client_of(self.paths))


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


def _text(snapshots: list[dict[str, Any]], store: dict[str, Any] | None) -> str:
    lines = []
    if snapshots:
        headers = [
            "KERNEL",
            "GENERATION",
            "NAME",
            "KIND",
            "TEMPLATE",
            "SIZE",
            "WHERE",
            "STORED",
            "MADE",
        ]
        here = sum(each["bytes"] for each in snapshots if "disk" in each["on"])
        lines = [table(headers, [_row(each) for each in snapshots]), f"{size(here)} on this disk"]
        lines += [
            f"{each['kernel_id']} {each['generation']}: {each['trouble']}"
            for each in snapshots
            if each["trouble"]
        ]
    else:
        lines = ["no snapshots"]
    if store:
        sealed = "encrypted" if store["encrypted"] else "not encrypted"
        stored = sum(each["stored_bytes"] or 0 for each in snapshots)
        lines.append(f"store {store['url']} ({sealed}): {size(stored)}")
        if store["note"]:
            lines.append(f"  {store['note']}")
    return "\n".join(lines)


def _where(each: dict[str, Any]) -> str:
    return " + ".join(each["on"])


def _row(each: dict[str, Any]) -> list[str]:
    stored = each["stored_bytes"]
    return [
        each["kernel_id"] + ("" if each["has_kernel"] else " (no kernel any more)"),
        str(each["generation"]),
        each["name"] or "-",
        each["kernel_name"] or "-",
        each["template"] or "-",
        size(each["bytes"]),
        _where(each),
        "-" if stored is None else size(stored),
        age(each["created_at"]),
    ]
