"""Calls of a store that end: in time, repeated where they fail, and with errors of ours.

Each is made in a thread of its own, which is left behind where a file system hangs.
"""

from __future__ import annotations

import errno
import itertools
import queue
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn, TypeVar

from torpor.errors import ConfigError
from torpor.snapshot.errors import NoRoom, StoreUnavailable
from torpor.snapshot.remote.shown import Hidden
from torpor.snapshot.remote.transfer import Stop

T = TypeVar("T")
_POLL_S = 0.1
_LONGEST_PAUSE_S = 10.0
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long each call may take, how often it is made, and the first pause between two."""

    timeout_s: float = 60.0
    tries: int = 4
    pause_s: float = 0.5


class Left:
    """Counts the calls that hang though nobody waits for them: each has a thread, and keeps it."""

    def __init__(self, most: int = 32) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._now = 0

    def require_few(self) -> None:
        """Raise TimeoutError when there are too many for another call."""
        if self._now >= self._most:
            raise TimeoutError(f"{self._now} calls before this one have not been answered yet")

    def add(self, change: int) -> None:
        """Count one more, or one less."""
        with self._lock:
            self._now += change


class NoPlace(OSError):
    """Not even what a store is in is there."""


@dataclass(frozen=True, slots=True)
class Calls:
    """How one store is called. ``shown`` is the store for people; ``hidden`` is never in an error.

    ``left``: the calls that nobody waits for any more.
    """

    shown: str
    patience: Patience
    stop: Stop
    hidden: Hidden = field(default_factory=Hidden)
    left: Left = field(default_factory=Left)

    def make(self, what: str, call: Callable[[], T]) -> T:
        """Give what ``call`` gives; ``what`` it does is for people. It must be safe to repeat.

        Raises:
            TransferCancelled: ``stop`` says so, be it in the middle of the call.
            StoreUnavailable: the store did not answer in time, or failed as often as it was asked.
            ConfigError: it refuses, or is not there.
            NoRoom: it is full.
        """
        for attempt in itertools.count(1):
            try:
                return self._once(call)
            except PermissionError as exc:
                self._refused(what, exc)
            except NoPlace as exc:
                raise ConfigError(
                    f"there is no such place as {self.shown}",
                    hint="make it first, or correct the URL",
                ) from exc
            except OSError as exc:
                if exc.errno in _FULL:
                    raise NoRoom(
                        f"the store {self.shown} is full", hint="make room there, or drop snapshots"
                    ) from exc
                self._again(what, attempt, exc)
            except _Failed as exc:
                self._again(what, attempt, exc.cause)
        raise AssertionError("unreachable")

    def _refused(self, what: str, exc: Exception) -> NoReturn:
        raise ConfigError(
            f"the store {self.shown} refuses {what}: {self._words(exc)}",
            hint="check its credentials and rights",
        ) from exc

    def _words(self, exc: Exception) -> str:
        return self.hidden.out_of(f"{type(exc).__name__} {exc}")[:300]

    def _again(self, what: str, attempt: int, exc: Exception) -> None:
        if attempt >= self.patience.tries:
            raise StoreUnavailable(
                f"the store {self.shown} failed {attempt} times at {what}: {self._words(exc)}",
                hint="nothing is lost; try again when it can be reached",
            ) from exc
        pause_s = min(self.patience.pause_s * 2 ** (attempt - 1), _LONGEST_PAUSE_S)
        until = time.monotonic() + pause_s * random.uniform(0.5, 1)
        while (left_s := until - time.monotonic()) > 0:
            self.stop.check()
            time.sleep(min(left_s, _POLL_S))

    def _once(self, call: Callable[[], T]) -> T:
        """Give what ``call`` gives, in time and unless stopped."""
        results: queue.SimpleQueue[Callable[[], T]] = queue.SimpleQueue()
        is_left, ended, lock = False, False, threading.Lock()

        def run() -> None:
            nonlocal ended
            try:
                result = call()
            except Exception as exc:  # what a file system raises can be anything
                failure = exc if isinstance(exc, OSError) else _Failed(exc)
                results.put(lambda: _raise(failure))
            else:
                results.put(lambda: result)
            with lock:
                ended = True
                self.left.add(-1 if is_left else 0)

        self.stop.check()
        self.left.require_few()
        threading.Thread(target=run, name="torpor-store", daemon=True).start()
        until = time.monotonic() + self.patience.timeout_s
        try:
            while (left_s := until - time.monotonic()) > 0:
                try:
                    given = results.get(timeout=min(left_s, _POLL_S))
                except queue.Empty:
                    self.stop.check()
                else:
                    return given()
        finally:
            with lock:
                is_left = not ended
                self.left.add(1 if is_left else 0)
        raise TimeoutError(f"no answer in {self.patience.timeout_s:g} s")


class _Failed(Exception):
    """A file system's own kind of failure."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


def _raise(exc: Exception) -> NoReturn:
    raise exc
