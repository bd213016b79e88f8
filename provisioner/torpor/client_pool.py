"""The part of the control API that is about goldens and the pool."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torpor.client import Client

_LONGEST_BUILD_S = 600.0


class PoolClient:
    """Asks torpord about its pool, through ``client``."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def pool(self) -> dict[str, Any]:
        """Give ``{"enabled", "shapes": [...], "building": [key], "counters": {}}``."""
        return await self._client.call("GET", "/v1/pool")

    async def goldens(self) -> dict[str, Any]:
        """Give ``{"goldens": [...], "failures": [...]}``."""
        return await self._client.call("GET", "/v1/goldens")

    async def build(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Build the golden that would serve a ``GoldenRequest``, unless there is one; give it.

        The pool then keeps as many clones of it as if somebody had started such a kernel.

        Raises:
            ConfigError: nothing can be cloned from such a request; the message says why.
            LaunchError: it could not be built.
        """
        return await self._client.call("POST", "/v1/goldens", request, timeout_s=_LONGEST_BUILD_S)

    async def remove(self, key: str) -> int:
        """Remove the goldens whose key begins so, with their clones; give how many there were."""
        return int((await self._client.call("DELETE", f"/v1/goldens/{key}"))["removed"])
