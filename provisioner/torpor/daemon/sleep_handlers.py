"""The control API about sleep: ``/v1/kernels/ID/VERB``. For snapshots see store_handlers.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torpor.api import Endpoints, parse_endpoints
from torpor.daemon.describe import described
from torpor.daemon.handlers import Handler
from torpor.daemon.kernel import Kernel
from torpor.daemon.logs import about
from torpor.daemon.processes import Process
from torpor.errors import ConfigError, SandboxGone
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
                if kernel.ended:
                    raise SandboxGone(
                        f"kernel {kernel.row.kernel_id} has ended: {kernel.reason}",
                        hint="restart it for a fresh one, or `torpor shutdown` what is left of it",
                    )
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


def sleep_routes() -> list[tuple[str, type[Handler]]]:
    """Give what to add to the table of the control API, before its general part."""
    verbs = "hibernate|wake|freeze|pin|unpin"
    return [
        (rf"/v1/kernels/([A-Za-z0-9._-]+)/({verbs})", SleepHandler),
        (r"/v1/kernels/([A-Za-z0-9._-]+)/(checkpoint|rollback)", BranchHandler),
        (r"/v1/kernels/([A-Za-z0-9._-]+)/fork", ForkHandler),
    ]
