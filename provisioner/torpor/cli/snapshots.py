"""``torpor snapshots``."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from traitlets import Bool, Enum

from torpor.cli.command import FLAGS, Command, progress
from torpor.cli.confirm import is_sure
from torpor.cli.reach import client_of, has_snapshots
from torpor.cli.snapshots_text import overview_text, removal_question, where
from torpor.cli.text import size
from torpor.cli.transfers import with_progress
from torpor.cli.which import kernel_of, meant, number_or_name, wanted
from torpor.errors import SandboxError, StoreUnavailable

if TYPE_CHECKING:
    from torpor.client_sleep import SleepClient


class SnapshotsCommand(Command):
    name = "torpor snapshots"
    description = """List the saved memory of hibernated kernels, on disk and in the store.

    torpor snapshots                       list it; WHERE is disk, store, or both
    torpor snapshots push KERNEL [WHICH]   send one to the store now
    torpor snapshots fetch KERNEL [WHICH]  bring one from the store to the disk
    torpor snapshots rm KERNEL WHICH       remove one for good, wherever it is;
                                           with --disk or --store only there
    torpor snapshots rm KERNEL --all       remove all of one kernel
    torpor snapshots rm --all              remove all that is on this disk, there
                                           and in the store

    WHICH is a generation or a name; without it the newest is meant. --all leaves what a kernel sleeps
    in, and asks first, unless --yes. `rm --all --store` removes all that is in the store, also what
    kernels of other machines sleep in.

    The newest of a kernel is what it wakes from; the one before stays until it has answered. Those
    with a name stay until they are removed here, also when their kernel is no more. Where a store is
    configured (c.Torpor.store), snapshots go there by themselves; see also `torpor restore`."""
    max_positionals = 3
    flags: dict[str, Any] = {  # noqa: RUF012
        **FLAGS,
        "disk": ({"SnapshotsCommand": {"place": "disk"}}, "Remove it from this disk only."),
        "store": ({"SnapshotsCommand": {"place": "store"}}, "Remove it from the store only."),
        "all": ({"SnapshotsCommand": {"everything": True}}, "Remove all that no kernel sleeps in."),
        "yes": ({"SnapshotsCommand": {"yes": True}}, "Do not ask."),
    }

    place = Enum(["", "disk", "store"], "", help="Where `rm` removes; '' is everywhere.").tag(
        config=True
    )
    everything = Bool(
        False, help="Whether `rm` removes all that no kernel sleeps in; off: the one that is named."
    ).tag(config=True)
    yes = Bool(False, help="Whether --all is meant; off: somebody is asked.").tag(config=True)

    def run(self) -> int:
        verb, *rest = [*self.extra_args, ""]
        words = rest[:-1]
        if self.place and verb != "rm":
            return self.usage_error("--disk and --store are for rm")
        if self.everything:
            if verb != "rm" or len(words) > 1:
                return self.usage_error("--all is for rm, with a kernel or without")
            return asyncio.run(self._remove_all(*words))
        if not verb:
            found = asyncio.run(self._overview())
            self.show(found, overview_text(found["snapshots"], found["store"]))
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
        return self.usage_error("push|fetch KERNEL [WHICH], rm KERNEL WHICH, or rm [KERNEL] --all")

    async def _remove(self, kernel: str, which: str) -> dict[str, Any]:
        kernel_id, generation = wanted((await self._overview())["snapshots"], kernel, which)
        return await self._client().drop(kernel_id, generation, self.place)

    async def _remove_all(self, kernel: str = "") -> int:
        client, rows = self._client(), (await self._overview())["snapshots"]
        if kernel:
            kernel_id = kernel_of(rows, kernel)
            rows = [each for each in rows if each["kernel_id"] == kernel_id]
        elif not self.place:
            # Kernels of other machines may sleep in what is only in the store.
            rows = [each for each in rows if "disk" in each["on"]]
        if self.place:
            rows = [each for each in rows if self.place in each["on"]]
        else:
            needed = await self._slept_in()
            rows = [each for each in rows if (each["kernel_id"], each["generation"]) not in needed]
        if rows and not is_sure(removal_question(rows, self.place), yes=self.yes):
            progress("nothing was done")
            return 1
        document: dict[str, Any] = {"removed": 0, "bytes": 0, "from_store": 0, "errors": []}
        for each in rows:
            try:
                removed = await client.drop(each["kernel_id"], each["generation"], self.place)
            except SandboxError as exc:
                which = {"kernel": each["kernel_id"], "generation": each["generation"]}
                document["errors"].append({**which, **exc.to_json()})
                self.say_error(exc)
                continue
            for name in ("removed", "bytes", "from_store"):
                document[name] += int(removed[name])
        also = f", {document['from_store']} from the store" if document["from_store"] else ""
        self.show(
            document, f"{document['removed']} removed, {size(document['bytes'])} of disk{also}"
        )
        return int(bool(document["errors"]))

    async def _slept_in(self) -> set[tuple[str, int]]:
        """Give the snapshots without which a kernel that there is would be lost."""
        kernels = await client_of(self.paths).kernels()
        return {
            (each["kernel_id"], each["sleep"]["generation"])
            for each in kernels
            if each["sleep"]["tier"] == "asleep"
        }

    async def _move(self, verb: str, kernel: str, which: str = "") -> int:
        client, started = self._client(), time.monotonic()
        before = await self._overview()
        kernel_id = kernel_of(before["snapshots"], kernel)
        row = meant(before["snapshots"], kernel_id, which)
        place = {"push": "store", "fetch": "disk"}[verb]
        if row is not None and verb == "push" and row["on"] == ["store"]:
            return self._in_store(before, row)
        there = row is not None and place in row["on"]
        moving = client.move(kernel_id, verb, number_or_name(which))
        doing = {"push": "pushing", "fetch": "fetching"}[verb]
        moved = await with_progress(client, moving, doing, kernel_id, shown=self.shows_progress)
        if self.shows_progress:
            progress(f"done ({time.monotonic() - started:.2f} s)")
        # Where it is now, not where a move of this kind leaves one as a rule.
        after = (await self._overview())["snapshots"]
        found = meant(after, kernel_id, str(moved["generation"])) or {"on": [place]}
        moved |= {"on": found["on"]}
        note = " (it was there already)" if there else ""
        text = f"{kernel_id} {moved['generation']}: {size(moved['bytes'])}, {where(moved)}{note}"
        self.show(moved, text)
        return 0

    def _in_store(self, overview: dict[str, Any], row: dict[str, Any]) -> int:
        """Say of a snapshot to be pushed that it is only in the store, if that is certain."""
        named = f"generation {row['generation']} of kernel {row['kernel_id']}"
        note = (overview["store"] or {}).get("note")
        if note or row["trouble"]:
            raise StoreUnavailable(
                f"{named} is not on this disk, and the store has it only as far as is known: "
                f"{note or row['trouble']}",
                hint="try again when the store answers",
            )
        self.show(row, f"{named} is in the store already, and not on this disk")
        return 0

    async def _overview(self) -> dict[str, Any]:
        if not has_snapshots(self.paths):
            return {"snapshots": [], "store": None}
        return await self._client().overview()

    def _client(self) -> SleepClient:
        from torpor.client_sleep import SleepClient

        return SleepClient(client_of(self.paths))
