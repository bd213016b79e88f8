"""Tasks that outlive the request that caused them: named, held, awaited at the end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from torpor.daemon.logs import log


class Tasks:
    """Holds running tasks; an unexpected error in one is logged, never lost."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()
        self.closing = False
        """Whether all that run are being cancelled: what can wait for the next daemon should."""

    def __len__(self) -> int:
        return len(self._running)

    def start(self, coro: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        """Run ``coro`` until it ends or ``aclose`` cancels it."""
        task = asyncio.create_task(self._guarded(coro, name), name=name)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        # One that is cancelled before it has begun would be reported as never awaited.
        task.add_done_callback(lambda _task: coro.close())
        return task

    async def _guarded(self, coro: Coroutine[Any, Any, Any], name: str) -> None:
        try:
            await coro
        except Exception as exc:
            log("task failed", level=logging.ERROR, error=exc, task=name)

    async def aclose(self) -> None:
        """Cancel all tasks and wait for their end."""
        self.closing = True
        while self._running:
            for task in self._running:
                task.cancel()
            await asyncio.wait(set(self._running))
