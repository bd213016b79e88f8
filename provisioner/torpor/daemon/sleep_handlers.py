"""The control API about sleep: ``/v1/kernels/ID/VERB`` and the list of snapshots."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from torpor.api import Endpoints, parse_endpoints
from torpor.daemon.describe import described
from torpor.daemon.handlers import Handler
from torpor.daemon.kernel import Kernel
from torpor.daemon.logs import about
from torpor.daemon.processes import Process
from torpor.errors import Busy, ConfigError
from torpor.lifecycle.idle import Tier
from torpor.snapshot.build import Listed
from torpor.snapshot.manifest import is_kernel_id


class SleepHandler(Handler):
    """``hibernate wake freeze pin unpin``; each answers with the kernel's state."""

    async def post(self, kernel_id: str, verb: str) -> None:
        await self.answer(self._do(self.daemon.supervisor.get(kernel_id), verb))

    async def _do(self, kernel: Kernel, verb: str) -> dict[str, Any]:
        sleeper, parts = self.daemon.supervisor.sleeper, self.daemon.parts
        with about(kernel.row.kernel_id):
            if verb == "hibernate":
                await sleeper.hibernate(kernel)
            elif verb == "freeze":
                await sleeper.freeze(kernel)
            elif verb == "wake":
                await sleeper.wake(kernel)
            else:
                kernel.row = replace(kernel.row, pinned=verb == "pin")
                parts.registry.put_kernel(kernel.row)
        self.daemon.tiers.nudge(kernel.row.kernel_id)
        return await described(kernel, parts)


class BranchHandler(Handler):
    """``checkpoint`` with ``{"name"}``, ``rollback`` with ``{"to": name or generation}``."""

    async def post(self, kernel_id: str, verb: str) -> None:
        kernel, body = self.daemon.supervisor.get(kernel_id), self.body()
        which = body.get("name" if verb == "checkpoint" else "to")
        usable = str if verb == "checkpoint" else (str, int)
        if not isinstance(which, usable) or isinstance(which, bool):
            raise ConfigError(f"{verb} needs the name of a checkpoint, not {which!r:.100}")
        await self.answer(self._do(kernel, verb, which))

    async def _do(self, kernel: Kernel, verb: str, which: int | str) -> dict[str, Any]:
        sleeper = self.daemon.supervisor.sleeper
        with about(kernel.row.kernel_id):
            if verb == "checkpoint":
                await sleeper.checkpoint(kernel, str(which))
            else:
                await sleeper.roll_back(kernel, which)
        self.daemon.tiers.nudge(kernel.row.kernel_id)
        return await described(kernel, self.daemon.parts)


class ForkHandler(Handler):
    """``fork`` with ``{"kernel_id", "client": Endpoints, "lease"}``; answers with the fork's state."""

    async def post(self, kernel_id: str) -> None:
        source, body = self.daemon.supervisor.get(kernel_id), self.body()
        name = body.get("kernel_id")
        if not isinstance(name, str) or not is_kernel_id(name):
            raise ConfigError(f"{name!r:.100} cannot be the id of a kernel")
        client = parse_endpoints(body.get("client"))
        await self.answer(self._do(source, name, client, self.owner(bool(body.get("lease")))))

    async def _do(
        self, source: Kernel, name: str, client: Endpoints, owner: Process | None
    ) -> dict[str, Any]:
        kernel = await self.daemon.forker.fork(source, name, client, owner)
        return await described(kernel, self.daemon.parts)


class SnapshotsHandler(Handler):
    async def get(self) -> None:
        await self.answer(self._list())

    async def _list(self) -> dict[str, Any]:
        kernels = self.daemon.supervisor.kernels
        store = self.daemon.parts.snapshots
        return {
            "snapshots": [_shown(each, each.kernel_id in kernels) for each in await store.list()]
        }


class SnapshotHandler(Handler):
    """``DELETE /v1/snapshots/KERNEL/GENERATION``."""

    async def delete(self, kernel_id: str, generation: str) -> None:
        await self.answer(self._drop(kernel_id, int(generation)))

    async def _drop(self, kernel_id: str, generation: int) -> dict[str, Any]:
        kernel = self.daemon.supervisor.kernels.get(kernel_id)
        if kernel is not None:
            async with kernel.lock:
                if kernel.tier is Tier.ASLEEP and kernel.row.generation == generation:
                    raise Busy(
                        f"kernel {kernel_id} sleeps in generation {generation}",
                        hint="wake it first, or end it with `torpor shutdown`",
                    )
        store = self.daemon.parts.snapshots.store
        removed = await asyncio.to_thread(store.drop, kernel_id, generation)
        return {"removed": len(removed), "bytes": sum(each.size_bytes for each in removed)}


def _shown(listed: Listed, has_kernel: bool) -> dict[str, Any]:
    return {
        "kernel_id": listed.kernel_id,
        "generation": listed.generation,
        "name": listed.name,
        "created_at": listed.created_at,
        "template": listed.template,
        "kernel_name": listed.kernel_name,
        "bytes": listed.size_bytes,
        "has_kernel": has_kernel,
    }


def sleep_routes() -> list[tuple[str, type[Handler]]]:
    """Give what to add to the table of the control API, before its general part."""
    verbs = "hibernate|wake|freeze|pin|unpin"
    return [
        (rf"/v1/kernels/([A-Za-z0-9._-]+)/({verbs})", SleepHandler),
        (r"/v1/kernels/([A-Za-z0-9._-]+)/(checkpoint|rollback)", BranchHandler),
        (r"/v1/kernels/([A-Za-z0-9._-]+)/fork", ForkHandler),
        (r"/v1/snapshots", SnapshotsHandler),
        (r"/v1/snapshots/([A-Za-z0-9._-]+)/([0-9]{1,9})", SnapshotHandler),
    ]
