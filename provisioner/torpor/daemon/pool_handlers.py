"""The control API's edge for goldens and the pool.

::

    GET    /v1/pool           {"enabled": bool, "shapes": [...], "building": [key], "counters": {}}
    GET    /v1/goldens        {"goldens": [...], "failures": [{"key", "reason", "at", "in_a_row"}]}
    POST   /v1/goldens        {"template", "kernel_name", "argv", "env", "cwd", "workspace"} → a golden
    DELETE /v1/goldens/KEY    {"removed": number}; KEY may be the beginning of one
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from torpor.api import parse_golden_request
from torpor.backends.base import NotClonable, SandboxSpec
from torpor.daemon.goldens import golden_json
from torpor.daemon.handlers import Handler
from torpor.daemon.warm import OFF, Warm
from torpor.errors import ConfigError, LaunchError


class PoolHandler(Handler):
    async def get(self) -> None:
        await self.answer(self._pool())

    async def _pool(self) -> dict[str, Any]:
        warm = self.daemon.warm
        if warm is None:
            return {"enabled": False, "shapes": [], "building": [], "counters": {}}
        return {"enabled": True, **warm.to_json()}


class GoldensHandler(Handler):
    async def get(self) -> None:
        await self.answer(self._list())

    async def _list(self) -> dict[str, Any]:
        warm = self.daemon.warm
        if warm is None:
            return {"goldens": [], "failures": []}
        store = warm.goldens.store
        goldens = await warm.goldens.list()
        failures = await asyncio.to_thread(store.failures)
        return {
            "goldens": [golden_json(golden) for golden in goldens],
            "failures": [
                {"key": key, "reason": each.reason, "at": each.at, "in_a_row": each.in_a_row}
                for key, each in failures.items()
            ],
        }

    async def post(self) -> None:
        await self.answer(self._build(_warm(self)), status=201)

    async def _build(self, warm: Warm) -> dict[str, Any]:
        request = parse_golden_request(self.body())
        settings = await self.daemon.settings()
        template = settings.template(request.template)
        spec = SandboxSpec(
            sandbox_id="golden",
            template=template,
            argv=request.argv,
            env=request.env,
            cwd=request.cwd,
            workspace=None
            if request.workspace is None or template.workspace == "none"
            else Path(request.workspace),
            key="",
            directory=Path("/golden"),
            kernel_name=request.kernel_name,
            start_timeout_s=template.start_timeout_s,
        )
        try:
            lineage = await asyncio.to_thread(self.daemon.parts.backend.lineage, spec)
        except NotClonable as exc:
            raise ConfigError(f"no golden can be built for this kernel: {exc.message}") from exc
        try:
            golden = await warm.goldens.build(lineage)
        except OSError as exc:
            raise LaunchError(f"the golden could not be written: {exc}") from exc
        if not warm.pool.knows(lineage):
            warm.pool.asked(lineage, spec)
        return golden_json(golden)


class GoldenHandler(Handler):
    async def delete(self, key: str) -> None:
        await self.answer(self._remove(_warm(self), key))

    async def _remove(self, warm: Warm, key: str) -> dict[str, Any]:
        goldens = await warm.goldens.list()
        keys = {each.manifest.key for each in goldens if each.manifest.key.startswith(key)}
        for each in keys:
            await warm.goldens.discard(each)
        return {"removed": len(keys)}


def _warm(handler: Handler) -> Warm:
    if handler.daemon.warm is None:
        raise ConfigError(OFF, hint="set TorporDaemon.pool to True and restart the daemon")
    return handler.daemon.warm


def pool_routes() -> list[tuple[str, type[Handler]]]:
    """Give this module's part of the table of the control API."""
    return [
        (r"/v1/pool", PoolHandler),
        (r"/v1/goldens", GoldensHandler),
        (r"/v1/goldens/([0-9a-f]{4,128})", GoldenHandler),
    ]
