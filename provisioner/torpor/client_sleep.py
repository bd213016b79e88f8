"""The part of the control API that is about sleep: hibernate, freeze, wake, pin, snapshots."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from torpor.api import Endpoints
from torpor.client import Client

VERBS = ("hibernate", "freeze", "wake", "pin", "unpin")
_LONGEST_S = 660.0


class SleepClient:
    """Asks torpord about sleeping kernels, through ``client``."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def do(self, kernel_id: str, verb: str) -> dict[str, Any]:
        """Do one of ``VERBS`` and give the kernel's state. Twice is fine.

        Raises:
            SandboxGone: there is no such kernel.
            Busy: it cannot sleep now; the message says why.
            NoRoom, LaunchError: its memory could not be saved; it goes on.
            SnapshotUnusable, AtCapacity, LaunchError: it could not be woken; it sleeps on.
        """
        path = f"/v1/kernels/{quote(kernel_id, safe='')}/{verb}"
        return await self._client.call("POST", path, {}, timeout_s=_LONGEST_S)

    async def checkpoint(self, kernel_id: str, name: str) -> dict[str, Any]:
        """Save a kernel under a name and let it go on; give its state. Raises as ``do``."""
        path = f"/v1/kernels/{quote(kernel_id, safe='')}/checkpoint"
        return await self._client.call("POST", path, {"name": name}, timeout_s=_LONGEST_S)

    async def roll_back(self, kernel_id: str, to: str | int) -> dict[str, Any]:
        """Have a kernel be as in one of its snapshots; give its state. Raises as ``do``."""
        path = f"/v1/kernels/{quote(kernel_id, safe='')}/rollback"
        return await self._client.call("POST", path, {"to": to}, timeout_s=_LONGEST_S)

    async def drop(self, kernel_id: str, generation: int) -> dict[str, int]:
        """Remove one snapshot for good; give ``{"removed", "bytes"}``. None is fine.

        Raises:
            Busy: its kernel sleeps in it, or something is being restored from it.
        """
        path = f"/v1/snapshots/{quote(kernel_id, safe='')}/{generation}"
        return dict(await self._client.call("DELETE", path))

    async def fork(
        self, kernel_id: str, new_id: str, client: Endpoints, *, lease: bool = False
    ) -> dict[str, Any]:
        """Make a kernel ``new_id`` with the memory of another and give its state.

        Ports of ``client`` may be 0: the state has those that were bound. With ``lease`` it ends
        with this process. Raises as ``do``; nothing is left then.
        """
        path = f"/v1/kernels/{quote(kernel_id, safe='')}/fork"
        body = {"kernel_id": new_id, "client": client.to_json(), "lease": lease}
        return await self._client.call("POST", path, body, timeout_s=_LONGEST_S)

    async def snapshots(self) -> list[dict[str, Any]]:
        """Give what is on disk, by kernel and generation."""
        return list((await self._client.call("GET", "/v1/snapshots"))["snapshots"])
