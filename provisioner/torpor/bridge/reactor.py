"""One thread's event loop: epoll, timers and "soon", with nothing that ticks while all is quiet.

asyncio would cost 20-40 µs per relayed message (futures, handles, a second selector) and has no
edge for ZMQ's file descriptors, whose readiness must be asked again after every send. So the bridge
has this loop, and everything in it is a callback that never blocks.

Guard: a callback that raises is logged and handed to its owner's ``failed``; one kernel's bug must
not take the others down, and an fd whose handler keeps raising must not spin.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import select
import time
from collections.abc import Callable
from typing import Protocol

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
logger = logging.getLogger(__name__)


class Owner(Protocol):
    """Whoever stands behind a callback."""

    def crashed(self, exc: Exception) -> None:
        """Stop everything that could run the failing callback again; must not raise."""


class Timer:
    """A callback due once; ``cancel`` may be called at any time, also twice or after it ran."""

    __slots__ = ("callback", "owner")

    def __init__(self, owner: Owner, callback: Callable[[], None]) -> None:
        self.owner = owner
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class Reactor:
    """The loop. ``run`` returns after ``stop``; everything else is called from within callbacks."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, tuple[Owner, Callable[[], None]]] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._soon: list[tuple[Owner, Callable[[], None]]] = []
        self._running = False

    def watch(self, fd: int, events: int, owner: Owner, callback: Callable[[], None]) -> None:
        """Call ``callback`` in every turn in which ``fd`` is ready (level-triggered)."""
        self._watched[fd] = (owner, callback)
        self._epoll.register(fd, events)

    def unwatch(self, fd: int) -> None:
        """Forget ``fd``; fine when it was never watched. Must come before its close."""
        if self._watched.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def soon(self, owner: Owner, callback: Callable[[], None]) -> None:
        """Call ``callback`` once, in the next turn, which will not wait."""
        self._soon.append((owner, callback))

    def later(self, delay_s: float, owner: Owner, callback: Callable[[], None]) -> Timer:
        """Call ``callback`` once, ``delay_s`` from now."""
        timer = Timer(owner, callback)
        heapq.heappush(self._timers, (time.monotonic() + delay_s, next(self._order), timer))
        return timer

    def stop(self) -> None:
        """Let ``run`` return at the end of this turn."""
        self._running = False

    def run(self) -> None:
        """Turn until ``stop``."""
        self._running = True
        poll, watched = self._epoll.poll, self._watched
        while self._running:
            for fd, _ in poll(self._wait_s()):
                found = watched.get(fd)  # an earlier callback of this turn may have unwatched it
                if found is not None:
                    self._call(*found)
            if self._soon:
                due, self._soon = self._soon, []
                for owner, callback in due:
                    self._call(owner, callback)
            if self._timers:
                self._fire()

    def close(self) -> None:
        """Give the epoll fd back."""
        self._epoll.close()

    def _call(self, owner: Owner, callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception as exc:
            logger.exception("a callback of %r failed", owner)
            try:
                owner.crashed(exc)
            except Exception:
                logger.exception("and so did what should contain it")

    def _wait_s(self) -> float:
        if self._soon:
            return 0
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        if not self._timers:
            return -1
        return max(0.0, self._timers[0][0] - time.monotonic())

    def _fire(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            callback, timer.callback = timer.callback, None
            if callback is not None:
                self._call(timer.owner, callback)
