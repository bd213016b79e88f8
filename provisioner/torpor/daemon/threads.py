"""Work that may hang, in threads of its own: asyncio's few threads are for what ends."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from functools import partial
from typing import TypeVar

T = TypeVar("T")
_LEAVE_S = 5.0


async def in_thread(
    work: Callable[[Callable[[], bool]], T], *, name: str, stop: threading.Event | None = None
) -> T:
    """Give what ``work`` gives; it is told by what it is given, or ``stop``, when to end early.

    If cancelled, tells it so and waits some seconds for its end; one that hangs is left behind and
    keeps nobody from ending.
    """
    stop = stop or threading.Event()
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        try:
            result = work(stop.is_set)
        except BaseException as exc:  # whoever awaits gets it, whatever it is
            outcome = partial(_fail, future, exc)
        else:
            outcome = partial(_finish, future, result)
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(outcome)

    threading.Thread(target=run, name=name, daemon=True).start()
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        stop.set()
        with contextlib.suppress(asyncio.CancelledError):  # the first one is raised below
            await asyncio.wait({future}, timeout=_LEAVE_S)
        if future.done():
            future.exception()  # nobody else will look
        raise


def _finish(future: asyncio.Future[T], result: T) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[T], exc: BaseException) -> None:
    if not future.done():
        future.set_exception(exc)
