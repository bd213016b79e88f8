"""The part of the control API that is about sleep: hibernate, freeze, wake, pin, snapshots."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from functools import partial
from typing import Any
from urllib.parse import quote

from torpor.api import Endpoints
from torpor.client import Client, Interrupted
from torpor.errors import BackendUnavailable, SandboxGone

VERBS = ("hibernate", "freeze", "wake", "pin", "unpin")
_LONGEST_S = 660.0
_TRANSFER_S = 24 * 3600.0
_ATTEMPTS = 2
_UNDONE_S = 15.0
_LOOK_S = 0.1


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
        path, began_s = f"/v1/kernels/{quote(kernel_id, safe='')}/checkpoint", time.time()

        async def made() -> dict[str, Any] | None:
            for each in await self.snapshots():
                if (each["kernel_id"], each["name"]) == (kernel_id, name) and (
                    datetime.fromisoformat(each["created_at"]).timestamp() >= began_s
                ):
                    return await self._client.kernel(kernel_id)
            return None

        return await self._once(path, {"name": name}, made)

    async def roll_back(self, kernel_id: str, to: str | int) -> dict[str, Any]:
        """Have a kernel be as in one of its snapshots; give its state. Raises as ``do``.

        It is not repeated when torpord goes away meanwhile: somebody may have gone on with it.
        """
        path = f"/v1/kernels/{quote(kernel_id, safe='')}/rollback"
        try:
            return await self._client.call(
                "POST", path, {"to": to}, timeout_s=_LONGEST_S, again=False
            )
        except Interrupted as exc:
            raise BackendUnavailable(
                f"torpord went away while kernel {kernel_id} was rolled back",
                hint="look at the kernel; if it is not as it was then, roll it back again",
            ) from exc

    async def drop(self, kernel_id: str, generation: int, place: str = "") -> dict[str, Any]:
        """Remove one snapshot for good, here and in the store; none is fine.

        ``place``: "disk" or "store", to remove it only there. Gives ``{"removed", "bytes",
        "from_store"}``; ``bytes`` are those of the disk.

        Raises:
            Busy: its kernel sleeps in it and no other place surely has it, or something is being
                restored from it.
            StoreUnavailable: the store does not answer; nothing was removed.
        """
        path = f"/v1/snapshots/{quote(kernel_id, safe='')}/{generation}"
        path += f"?from={place}" if place else ""
        return dict(await self._client.call("DELETE", path, timeout_s=_LONGEST_S))

    async def move(self, kernel_id: str, verb: str, which: int | str | None) -> dict[str, Any]:
        """``push`` a snapshot to the store, or ``fetch`` it; twice is fine.

        ``which``: a generation, a name, or None for the newest.

        Raises:
            SnapshotUnusable: there is none, it is damaged, or was tampered with.
            StoreUnavailable, ConfigError, NoRoom: the store, or the disk, does not take it.
        """
        path = f"/v1/snapshots/{quote(kernel_id, safe='')}/{verb}"
        return await self._client.call("POST", path, {"which": which}, timeout_s=_TRANSFER_S)

    async def transfers(self) -> list[dict[str, Any]]:
        """Give the snapshots that are on their way, and how far they are."""
        return list((await self._client.call("GET", "/v1/transfers"))["transfers"])

    async def restore(
        self,
        kernel_id: str,
        which: int | str | None,
        new_id: str,
        client: Endpoints,
        *,
        lease: bool = False,
    ) -> dict[str, Any]:
        """Make a kernel ``new_id`` from a snapshot, here or in the store, and give its state.

        Otherwise as ``fork``; ``which`` as in ``move``.
        """
        path = f"/v1/snapshots/{quote(kernel_id, safe='')}/restore"
        body = {"which": which, "kernel_id": new_id, "client": client.to_json(), "lease": lease}
        return await self._once(path, body, partial(self._made, new_id), timeout_s=_TRANSFER_S)

    async def fork(
        self, kernel_id: str, new_id: str, client: Endpoints, *, lease: bool = False
    ) -> dict[str, Any]:
        """Make a kernel ``new_id`` with the memory of another and give its state.

        Ports of ``client`` may be 0: the state has those that were bound. With ``lease`` it ends
        with this process. Raises as ``do``; nothing is left then.
        """
        path = f"/v1/kernels/{quote(kernel_id, safe='')}/fork"
        body = {"kernel_id": new_id, "client": client.to_json(), "lease": lease}
        return await self._once(path, body, partial(self._made, new_id))

    async def _made(self, kernel_id: str) -> dict[str, Any] | None:
        """Give a new kernel once it is complete; None when it is not, and what there was has gone."""
        until = time.monotonic() + _UNDONE_S
        while True:
            try:
                state = await self._client.kernel(kernel_id)
            except SandboxGone:
                return None
            if state["status"] != "starting" or time.monotonic() >= until:
                return state
            await asyncio.sleep(_LOOK_S)

    async def _once(
        self,
        path: str,
        body: Mapping[str, Any],
        done: Callable[[], Awaitable[dict[str, Any] | None]],
        *,
        timeout_s: float = _LONGEST_S,
    ) -> dict[str, Any]:
        """Send what must not be done twice; again only if torpord went away before it was ``done``."""
        for _ in range(_ATTEMPTS):
            try:
                return await self._client.call("POST", path, body, timeout_s=timeout_s, again=False)
            except Interrupted:
                if (state := await done()) is not None:
                    return state
        return await self._client.call("POST", path, body, timeout_s=timeout_s, again=False)

    async def snapshots(self) -> list[dict[str, Any]]:
        """Give what is on disk and in the store, by kernel and generation."""
        return list((await self.overview())["snapshots"])

    async def overview(self) -> dict[str, Any]:
        """Give the same with what there is to say of the store: ``{"snapshots", "store"}``."""
        return await self._client.call("GET", "/v1/snapshots")
