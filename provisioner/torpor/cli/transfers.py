"""Says on a terminal what is going on, for how long already, and how far a transfer is."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from torpor.cli.text import size
from torpor.errors import SandboxError

if TYPE_CHECKING:
    from torpor.client_sleep import SleepClient

T = TypeVar("T")
_EVERY_S = 1.0
_CLEAR = "\r\x1b[K"


async def with_progress(
    client: SleepClient, work: Coroutine[Any, Any, T], doing: str, kernel_id: str, *, shown: bool
) -> T:
    """Give what ``work`` gives; meanwhile one line says what it is ``doing``, if ``shown``.

    The line comes after a second, is written over, and goes when the work is done. While a snapshot
    of that kernel is on its way, it says so instead.
    """
    if not shown:
        return await work
    loop = asyncio.get_running_loop()
    started, written = loop.time(), False
    task = asyncio.create_task(work)
    try:
        while not (await asyncio.wait({task}, timeout=_EVERY_S))[0]:
            line = await _transfer(client, kernel_id) or f"{doing} {kernel_id}"
            _write(f"{line}, {loop.time() - started:.0f} s")
            written = True
    finally:
        task.cancel()
        await asyncio.wait({task})
        if written:
            print(_CLEAR, end="", file=sys.stderr, flush=True)
    return task.result()


async def _transfer(client: SleepClient, kernel_id: str) -> str:
    with contextlib.suppress(SandboxError, TimeoutError):
        async with asyncio.timeout(_EVERY_S):
            for each in await client.transfers():
                if each["kernel_id"] == kernel_id:
                    return transfer_text(each)
    return ""


def transfer_text(transfer: dict[str, Any]) -> str:
    """Say how far one transfer is. Pure."""
    word = "pushing" if transfer["direction"] == "push" else "fetching"
    whole = transfer["total_bytes"]
    how_far = f"{size(transfer['done_bytes'])} of {size(whole)}" if whole else "just begun"
    return f"{word} {transfer['kernel_id']} {transfer['generation']}: {how_far}"


def _write(line: str) -> None:
    # One that the terminal wraps could not be written over.
    columns = shutil.get_terminal_size().columns
    print(f"{_CLEAR}{f'  {line}'[: columns - 1]}", end="", file=sys.stderr, flush=True)
