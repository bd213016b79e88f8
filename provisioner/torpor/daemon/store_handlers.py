"""The control API about where snapshots are::

    GET    /v1/snapshots                       {"snapshots": [Row], "store": Store | null}
    DELETE /v1/snapshots/KERNEL/GENERATION     from the disk and from the store
           ?from=disk|store                    from one of them; what a kernel sleeps in only where
                                               the other surely has it
    POST   /v1/snapshots/KERNEL/push|fetch     {"which": generation, name or null} → Row
    POST   /v1/snapshots/KERNEL/restore        {"which", "kernel_id", "client", "lease"} → KernelState
    GET    /v1/transfers                       {"transfers": [{"kernel_id", "generation",
        "direction": "push|fetch", "done_bytes", "total_bytes", "wire_bytes"}]}

    Row    {"kernel_id", "generation", "name", "created_at", "template", "kernel_name", "bytes",
            "has_kernel", "on": ["disk", "store"], "stored_bytes": 123 | null, "trouble": ""}
    Store  {"url", "encrypted", "local": "keep|drop", "note": "" or why it cannot be looked at}

Keys and options of a store are never in an answer.
"""

from __future__ import annotations

import asyncio
from contextlib import nullcontext, suppress
from typing import Any

from torpor.api import Endpoints, parse_endpoints
from torpor.daemon.describe import described
from torpor.daemon.handlers import Handler
from torpor.daemon.logs import about
from torpor.daemon.processes import Process
from torpor.errors import Busy, ConfigError, SandboxError
from torpor.golden.collect import Removed
from torpor.lifecycle.idle import Tier
from torpor.snapshot.build import Listed
from torpor.snapshot.manifest import is_kernel_id
from torpor.snapshot.remote.retention import Stored

_LOOK_S = 10.0
Which = int | str | None


class SnapshotsHandler(Handler):
    async def get(self) -> None:
        await self.answer(self._list())

    async def _list(self) -> dict[str, Any]:
        stores, troubles = self.daemon.parts.stores, self.daemon.tiering.troubles
        listed = await self.daemon.parts.snapshots.list()
        settings = await stores.settings()
        note = await stores.look(_LOOK_S) if settings else ""
        rows: dict[tuple[str, int], dict[str, Any]] = {}
        for here in listed:
            rows[here.kernel_id, here.generation] = _shown(here) | {"on": ["disk"]}
        for kernel_id, generation, why in await asyncio.to_thread(stores.local.unusable):
            row = _unknown(kernel_id, generation)
            rows[kernel_id, generation] = row | {"on": ["disk"], "trouble": why}
        found = stores.known if not note else (*stores.known, *stores.pushed.values())
        for stored in found if settings else ():
            key = (stored.kernel_id, stored.generation)
            on = ["disk", "store"] if "disk" in rows.get(key, {}).get("on", ()) else ["store"]
            trouble = rows.get(key, {}).get("trouble", "")
            rows[key] = _shown(stored) | {
                "on": on,
                "stored_bytes": stored.stored_bytes,
                "trouble": trouble,
            }
        for kernel_id, generation, why in stores.unusable if settings else ():
            row = rows.setdefault((kernel_id, generation), _unknown(kernel_id, generation))
            row |= {"trouble": why}
        for each in self.daemon.supervisor.kernels.values():
            key = (each.row.kernel_id, each.row.generation)
            if each.tier is Tier.ASLEEP and key not in rows:  # a store that was not seen yet has it
                rows[key] = _unknown(*key) | {"trouble": note or "it is nowhere to be found"}
        for key, row in rows.items():
            row["has_kernel"] = key[0] in self.daemon.supervisor.kernels
            if key in troubles:
                row["trouble"] = troubles[key].reason
        if not note and "store" in troubles:
            note = troubles["store"].reason
        store = settings and {
            "url": stores.shown or settings.remote.url.partition("://")[0],
            "encrypted": settings.encrypted,
            "local": settings.local.value,
            "note": note,
        }
        return {"snapshots": [rows[key] for key in sorted(rows)], "store": store}


class SnapshotHandler(Handler):
    async def delete(self, kernel_id: str, generation: str) -> None:
        place = self.get_query_argument("from", "")
        await self.answer(self._drop(kernel_id, int(generation), place))

    async def _drop(self, kernel_id: str, generation: int, place: str) -> dict[str, Any]:
        """The store first: where that fails, all is as it was."""
        if place not in ("", "disk", "store"):
            raise ConfigError(f"{place!r:.40} is no place", hint='"disk" or "store"; none: both')
        stores, from_store = self.daemon.parts.stores, False
        removed: tuple[Removed, ...] = ()
        kernel = self.daemon.supervisor.kernels.get(kernel_id)

        def is_needed() -> bool:
            return bool(
                kernel and kernel.tier is Tier.ASLEEP and kernel.row.generation == generation
            )

        with about(kernel_id):
            if not place and is_needed():  # it may be on its way here for a wake
                await self._require_other(kernel_id, generation, place)
            stores.going.add((kernel_id, generation))
            try:
                await stores.release(kernel_id)
                async with kernel.lock if kernel else nullcontext():
                    if is_needed():
                        await self._require_other(kernel_id, generation, place)
                    if place != "disk":
                        from_store = await stores.remove(kernel_id, generation)
                    if place != "store":
                        removed = await asyncio.to_thread(stores.local.drop, kernel_id, generation)
            finally:
                stores.going.discard((kernel_id, generation))
        self.daemon.tiering.troubles.pop((kernel_id, generation), None)
        stores.news.set()
        return {
            "removed": int(bool(removed) or from_store),
            "bytes": sum(each.size_bytes for each in removed),
            "from_store": from_store,
        }

    async def _require_other(self, kernel_id: str, generation: int, place: str) -> None:
        """Raise Busy unless what a kernel sleeps in stays whole in the other place."""
        stores = self.daemon.parts.stores
        if (place == "disk" and await stores.has(kernel_id, generation)) or (
            place == "store" and await stores.is_sound_here(kernel_id, generation)
        ):
            return
        nowhere = {"disk": ", and the store does not have it", "store": ", and the disk does not"}
        raise Busy(
            f"kernel {kernel_id} sleeps in generation {generation}{nowhere.get(place, '')}",
            hint="wake it first, or end it with `torpor shutdown`",
        )


class MoveHandler(Handler):
    """``push`` and ``fetch``."""

    async def post(self, kernel_id: str, verb: str) -> None:
        await self.answer(self._move(kernel_id, verb, _which(self.body())))

    async def _move(self, kernel_id: str, verb: str, which: Which) -> dict[str, Any]:
        stores = self.daemon.parts.stores
        if await stores.settings() is None:
            raise ConfigError("no store is configured", hint="set c.Torpor.store")
        with about(kernel_id):
            generation = await stores.find(kernel_id, which)
            if verb == "push":
                stored = await stores.push(kernel_id, generation)
                on = ["disk", "store"]
                return _shown(stored) | {"on": on, "stored_bytes": stored.stored_bytes}
            snapshot = await stores.fetch(kernel_id, generation)
            there = False
            with suppress(SandboxError, OSError):  # it is here, whoever does not answer
                there = await stores.has(kernel_id, generation)
            return {
                "kernel_id": kernel_id,
                "generation": generation,
                "name": snapshot.manifest.name,
                "bytes": snapshot.manifest.size_bytes,
                "on": ["disk", "store"] if there else ["disk"],
            }


class RestoreHandler(Handler):
    """A new kernel from any snapshot, also one of a kernel that never was on this machine."""

    async def post(self, kernel_id: str) -> None:
        body = self.body()
        name = body.get("kernel_id")
        if not isinstance(name, str) or not is_kernel_id(name):
            raise ConfigError(f"{name!r:.100} cannot be the id of a kernel")
        client, owner = parse_endpoints(body.get("client")), self.owner(bool(body.get("lease")))
        await self.answer(self._do(kernel_id, _which(body), name, client, owner))

    async def _do(
        self, kernel_id: str, which: Which, name: str, client: Endpoints, owner: Process | None
    ) -> dict[str, Any]:
        kernel = await self.daemon.forker.restore(kernel_id, which, name, client, owner)
        return await described(kernel, self.daemon.parts)


class TransfersHandler(Handler):
    async def get(self) -> None:
        await self.answer(self._transfers())

    async def _transfers(self) -> dict[str, Any]:
        return {"transfers": [each.to_json() for each in self.daemon.parts.stores.transfers]}


def _which(body: Any) -> Which:
    which = body.get("which") if isinstance(body, dict) else None
    if isinstance(which, bool) or not isinstance(which, int | str | None):
        raise ConfigError(f"{which!r:.100} is neither a generation nor a name")
    return which


def _shown(each: Listed | Stored) -> dict[str, Any]:
    return {
        "kernel_id": each.kernel_id,
        "generation": each.generation,
        "name": each.name,
        "created_at": each.created_at,
        "template": each.template,
        "kernel_name": each.kernel_name,
        "bytes": each.size_bytes,
        "stored_bytes": None,
        "trouble": "",
    }


def _unknown(kernel_id: str, generation: int) -> dict[str, Any]:
    return {
        "kernel_id": kernel_id,
        "generation": generation,
        "name": "",
        "created_at": None,
        "template": "",
        "kernel_name": "",
        "bytes": 0,
        "stored_bytes": None,
        "on": ["store"],
        "trouble": "",
    }


def store_routes() -> list[tuple[str, type[Handler]]]:
    """Give what to add to the table of the control API, before its general part."""
    kernel = r"/v1/snapshots/([A-Za-z0-9._-]+)"
    return [
        (r"/v1/snapshots", SnapshotsHandler),
        (r"/v1/transfers", TransfersHandler),
        (kernel + r"/([0-9]{1,9})", SnapshotHandler),
        (kernel + r"/(push|fetch)", MoveHandler),
        (kernel + r"/restore", RestoreHandler),
    ]
