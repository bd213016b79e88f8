"""Has a kernel stand still, and asks its guest meanwhile what a snapshot of it must name."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torpor.bridge.client import BridgeRefused
from torpor.daemon.bridge_keeper import BridgeKeeper
from torpor.errors import Busy

HOLD_S = 6.0
_PATIENCE_S = {"busy": 0.2, "finishing": 2.0}
"""How long it is asked again, by what the bridge says: that it has replied, and is not idle yet, passes."""
_PAUSE_S = 0.02
_MAPPED_S = 5.0


@dataclass(frozen=True, slots=True)
class Still:
    """What is known of a kernel that stands still.

    ``memory``: what the bridge must know while it sleeps. ``told``: what the guest says is mapped,
    open and connected, which may be anything.
    """

    memory: dict[str, Any]
    told: Mapping[str, Any]


async def held(bridge: BridgeKeeper, kernel_id: str, workspace: str | None) -> Still:
    """Have the bridge hold a kernel. Who asks right after a reply is not refused: "idle" comes later.

    Whatever is raised, it may be held all the same, and is to be released.

    Raises:
        Busy: it has something to do, or its guest does not answer.
        BridgeRefused, BackendUnavailable: the bridge cannot.
    """
    began = time.monotonic()
    while True:
        try:
            return await _asked(bridge, kernel_id, workspace)
        except BridgeRefused as exc:
            if time.monotonic() - began >= _PATIENCE_S.get(exc.reason, 0.0):
                raise Busy(f"kernel {kernel_id} cannot sleep now: {exc}") from exc
        await asyncio.sleep(_PAUSE_S)


async def _asked(bridge: BridgeKeeper, kernel_id: str, workspace: str | None) -> Still:
    """Ask both at once. Nothing is passed to the kernel any more when the guest tells what it sees.

    The bridge takes one request after the other, and diverts what comes for a kernel with the first.
    """
    hold = bridge.call("hold", within_s=HOLD_S + 2, kernel_id=kernel_id, timeout_s=HOLD_S)
    tell = bridge.rpc(kernel_id, "mapped", {"workspace": workspace}, timeout_s=_MAPPED_S)
    holding = asyncio.create_task(hold, name="hold")
    telling = asyncio.create_task(tell, name="mapped")
    both = {holding, telling}
    try:  # no TaskGroup: there an error takes the place of a cancel that comes at the same time
        await asyncio.wait(both, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for each in both:
            each.cancel()
        await asyncio.wait(both)
    if (why := _failure(telling)) and not _failure(holding):
        raise Busy(f"the guest of kernel {kernel_id} does not answer: {why}") from why
    return Still(dict(holding.result().get("memory") or {}), telling.result())


def _failure(task: asyncio.Task[Any]) -> BaseException | None:
    return None if task.cancelled() else task.exception()
