"""Finish what must be finished, also while being cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def run_to_end(coro: Coroutine[Any, Any, T], *, within_s: float, name: str) -> T:
    """Await ``coro`` to its end, give its result; deliver a pending cancellation only afterwards.

    However often the caller is cancelled meanwhile, ``coro`` is not. It is itself cancelled when it
    needs more than ``within_s`` seconds.

    Raises:
        TimeoutError: ``coro`` was cut off after ``within_s``.
        asyncio.CancelledError: the caller was cancelled; ``coro`` has ended, and if it failed its
        error
            is the ``__cause__``.
    """
    task = asyncio.create_task(_bounded(coro, within_s), name=name)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})  # unlike ``await task``, does not cancel it
        except asyncio.CancelledError as exc:
            cancelled = exc
    if cancelled is not None:
        raise cancelled from (None if task.cancelled() else task.exception())
    return task.result()


async def _bounded(coro: Coroutine[Any, Any, T], within_s: float) -> T:
    async with asyncio.timeout(within_s):
        return await coro
