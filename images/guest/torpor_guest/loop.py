"""An event loop of one thread: epoll and a few timers. Callbacks must not block."""

from __future__ import annotations

import select
import time

TYPE_CHECKING = False  # as mypy knows it; typing itself takes 20 ms to import
if TYPE_CHECKING:
    from collections.abc import Callable


READ = select.EPOLLIN
WRITE = select.EPOLLOUT


class Timer:
    """A callback that is due at ``due_s`` (monotonic clock); ``cancel`` is fine at any time."""

    __slots__ = ("call", "due_s")

    def __init__(self, due_s: float, call: Callable[[], None] | None) -> None:
        self.due_s = due_s
        self.call = call

    def cancel(self) -> None:
        """Never call it."""
        self.call = None


class Loop:
    """Calls back when descriptors are ready or timers due; ``after_each`` runs after a round."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._calls: dict[int, Callable[[int], None]] = {}
        self._events: dict[int, int] = {}
        self._timers: list[Timer] = []
        self._stopped = False
        self.after_each: Callable[[], None] = lambda: None

    def watch(self, fd: int, events: int, call: Callable[[int], None]) -> None:
        """Call ``call(events)`` whenever ``fd`` is ready; errors and hang-ups always count."""
        self._calls[fd] = call
        self._events[fd] = events
        self._epoll.register(fd, events)

    def change(self, fd: int, events: int) -> None:
        """Watch ``fd`` for other events from now on; no system call if they are the same."""
        if self._events[fd] != events:
            self._events[fd] = events
            self._epoll.modify(fd, events)

    def forget(self, fd: int) -> None:
        """Stop watching ``fd``; call it before closing. Fine for one that is not watched."""
        if self._calls.pop(fd, None) is not None:
            del self._events[fd]
            self._epoll.unregister(fd)

    def after(self, delay_s: float, call: Callable[[], None]) -> Timer:
        """Call ``call`` once, ``delay_s`` seconds from now."""
        timer = Timer(time.monotonic() + delay_s, call)
        self._timers.append(timer)
        return timer

    def stop(self) -> None:
        """Make ``run`` return after the current round."""
        self._stopped = True

    def run(self) -> None:
        """Serve until ``stop``."""
        while not self._stopped:
            for fd, events in self._epoll.poll(self._wait_s()):
                call = self._calls.get(fd)  # an earlier callback may have forgotten it
                if call is not None:
                    call(events)
            if self._timers:
                self._fire()
            self.after_each()

    def close(self) -> None:
        """Release the epoll descriptor."""
        self._epoll.close()

    def _wait_s(self) -> float:
        if not self._timers:
            return -1
        return max(0.0, min(timer.due_s for timer in self._timers) - time.monotonic())

    def _fire(self) -> None:
        now_s = time.monotonic()
        due = [timer for timer in self._timers if timer.call is None or timer.due_s <= now_s]
        if not due:
            return
        self._timers = [timer for timer in self._timers if timer not in due]
        for timer in due:
            if timer.call is not None:
                timer.call()
