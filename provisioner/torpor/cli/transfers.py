"""Progress of what torpord moves, for whoever waits for it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

from torpor.cli.command import progress
from torpor.cli.text import size
from torpor.client_sleep import SleepClient
from torpor.errors import SandboxError

T = TypeVar("T")
_EVERY_S = 1.0


async def with_progress(client: SleepClient, work: Coroutine[Any, Any, T], *, shown: bool) -> T:
    """Give what ``work`` gives; meanwhile, every second, say what is on its way if ``shown``."""
    task = asyncio.create_task(work)
    try:
        while not (await asyncio.wait({task}, timeout=_EVERY_S))[0]:
            if shown:
                with contextlib.suppress(SandboxError):
                    for each in await client.transfers():
                        progress(transfer_text(each))
    finally:
        task.cancel()
        await asyncio.wait({task})
    return task.result()


def transfer_text(transfer: dict[str, Any]) -> str:
    """Say how far one transfer is. Pure."""
    word = "pushing" if transfer["direction"] == "push" else "fetching"
    whole = transfer["total_bytes"]
    how_far = f"{size(transfer['done_bytes'])} of {size(whole)}" if whole else "just begun"
    return f"{word} {transfer['kernel_id']} {transfer['generation']}: {how_far}"
