"""Many chunks at once, few in memory: the pace of sending and fetching, and how both are stopped."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from torpor.snapshot.errors import TransferCancelled

T = TypeVar("T")


def never() -> bool:
    """Say that nobody has cancelled."""
    return False


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a transfer is: of the image, and how much of that went over the wire."""

    done_bytes: int
    total_bytes: int
    wire_bytes: int


class Stop:
    """One transfer's end before its time: somebody cancelled, or a part of it failed."""

    def __init__(self, cancelled: Callable[[], bool] = never) -> None:
        self._cancelled = cancelled
        self._ended = threading.Event()
        self.cause: BaseException | None = None

    def end(self, cause: BaseException | None = None) -> None:
        """Have all parts end; the first ``cause`` is why."""
        if not self._ended.is_set():
            self.cause = cause
            self._ended.set()

    def check(self) -> None:
        """Raise TransferCancelled when this is the end."""
        if self._ended.is_set() or self._cancelled():
            raise TransferCancelled(
                "the transfer was cancelled", hint="a push goes on where it was when it is repeated"
            )


def in_threads(jobs: Iterable[Callable[[], T]], threads: int, stop: Stop) -> Iterator[T]:
    """Do ``jobs`` in ``threads``; give the results in order.

    ``jobs`` is asked for another one only while at most ``threads`` wait or work. When one fails, or
    whoever takes the results ends early, the others are told to stop and waited for.
    """

    def done(job: Callable[[], T]) -> T:
        try:
            return job()
        except BaseException as exc:
            stop.end(exc)
            raise

    with ThreadPoolExecutor(threads, thread_name_prefix="torpor-transfer") as pool:
        pending: deque[Future[T]] = deque()
        try:
            for job in jobs:
                stop.check()
                pending.append(pool.submit(done, job))
                if len(pending) > threads:
                    yield pending.popleft().result()
            while pending:
                stop.check()
                yield pending.popleft().result()
        except BaseException as exc:
            stop.end(exc)
            for each in pending:
                each.cancel()
            if isinstance(exc, TransferCancelled) and stop.cause not in (None, exc):
                raise stop.cause from None  # it came first
            raise
