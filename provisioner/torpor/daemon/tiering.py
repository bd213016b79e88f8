"""Sends snapshots to the store, lets copies on the disk go, and keeps the store tidy: one loop.

What is due is worked out anew each time from the disk and from the kernels, so a daemon that died
leaves nothing to remember: the next one pushes again, and what is in the store is not sent again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial

from torpor.daemon.kernel import Kernel
from torpor.daemon.known_store import Key
from torpor.daemon.logs import about, log
from torpor.daemon.stores import Stores
from torpor.daemon.tasks import Tasks
from torpor.errors import (
    BackendUnavailable,
    Busy,
    ConfigError,
    SandboxError,
    SnapshotUnusable,
    StoreUnavailable,
    TransferCancelled,
)
from torpor.lifecycle import Status
from torpor.snapshot.build import Listed
from torpor.snapshot.remote.configured import LocalCopy, StoreSettings

AT_ONCE = 2
_LOOK_S = 5.0
_MOVING_S = 0.3
"""A kernel that is falling asleep or waking is looked at again after so long."""
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 300.0
_HOUR_S = 3600.0
_COPY = "copy of "
_RETAIN_SHARE = 20.0
"""Tidying takes at most one part in so many of the time."""


@dataclass(slots=True)
class Trouble:
    """Why something could not be done, and when it is tried again (``time.monotonic``)."""

    reason: str
    pause_s: float
    again_at: float


class Tiering:
    """Carries out ``c.Torpor.store``. ``kernels`` are those of this daemon, and change."""

    def __init__(self, stores: Stores, kernels: Mapping[str, Kernel], tasks: Tasks) -> None:
        self.troubles: dict[Key | str, Trouble] = {}
        """What does not work now: of a snapshot, or of the store as a whole ("store")."""
        self._stores = stores
        self._kernels = kernels
        self._tasks = tasks
        self._underway: dict[Key | str, asyncio.Task[None]] = {}
        self._settings: StoreSettings | None = None
        self._retained_at = -_HOUR_S
        self._retain_took_s = 0.0
        self._retain_due = True

    async def run(self) -> None:
        """Do what is due until cancelled."""
        while True:
            self._stores.news.clear()
            try:
                pause_s = await self._round()
            except Exception as exc:
                log("snapshots not tiered", level=logging.WARNING, error=exc)
                pause_s = _LOOK_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._stores.news.wait()

    async def _round(self) -> float:
        """Start what is due; give after how many seconds to look again at the latest."""
        settings = await self._stores.settings()
        if settings is None:
            self._stores.leaving.clear()  # where should they leave
            return _LOOK_S
        if settings != self._settings:  # what did not work may work now
            self._settings = settings
            self.troubles.clear()
        for kernel_id in sorted(self._stores.leaving):
            self._start(kernel_id, partial(self._forget, kernel_id))
        listed = await asyncio.to_thread(self._stores.local.list)
        self._forget_troubles({(each.kernel_id, each.generation) for each in listed})
        now, soon, first = time.time(), _LOOK_S, set[str]()
        for each in listed:  # by kernel and generation: the store refuses what is older than it has
            key, kernel = (each.kernel_id, each.generation), self._kernels.get(each.kernel_id)
            if kernel and kernel.lock.locked():
                soon = min(soon, _MOVING_S)
            elif (due_s := self._due_s(each, settings, now)) is not None:
                if due_s > 0:
                    soon = min(soon, due_s)
                elif each.kernel_id not in first:
                    self._start(key, partial(self._push, key))
                if key not in self.troubles:
                    first.add(each.kernel_id)
            elif settings.local is LocalCopy.DROP and (
                kernel is None or key in self._stores.pushed
            ):
                self._start(f"{_COPY}{key[0]} {key[1]}", partial(self._drop, key))
        rest_s = self._rest_s()
        if rest_s <= 0:
            self._start("retention", self._retain)
        soon = min(soon, max(rest_s, _MOVING_S))
        pauses = [each.again_at - time.monotonic() for each in self.troubles.values()]
        return max(0.05, min([soon, *(pause for pause in pauses if pause > 0)]))

    def _forget_troubles(self, there: Collection[Key]) -> None:
        """Forget what was wrong with snapshots that are not on the disk any more."""
        old = time.monotonic() - _LONGEST_PAUSE_S
        for key, trouble in list(self.troubles.items()):
            gone = key not in there if isinstance(key, tuple) else trouble.again_at < old
            if gone:
                del self.troubles[key]

    def _due_s(self, listed: Listed, settings: StoreSettings, now: float) -> float | None:
        """Give in how many seconds to push a snapshot; None when it is not to be, or there."""
        key = (listed.kernel_id, listed.generation)
        if key in self._stores.pushed or key in self._stores.going:
            return None
        if listed.name:
            return 0.0
        kernel = self._kernels.get(listed.kernel_id)
        if kernel is None or key in self._stores.passing:
            return None
        if settings.local is LocalCopy.DROP:  # whatever lies there is to be nowhere else
            return max(0.0, listed.created_s + settings.after_s - now)
        if kernel.row.status is not Status.ASLEEP or kernel.row.generation != listed.generation:
            return None
        return max(0.0, kernel.row.tier_since + settings.after_s - now)

    def _start(self, key: Key | str, work: Callable[[], Awaitable[None]]) -> None:
        """Do ``work`` in the background, unless it is being done, has failed lately, or others are."""
        now = time.monotonic()
        for each in (self.troubles.get(key), self.troubles.get("store")):
            if each and each.again_at > now:
                return
        pushes = sum(isinstance(each, tuple) for each in self._underway)
        if key in self._underway or (isinstance(key, tuple) and pushes >= AT_ONCE):
            return
        self._underway[key] = self._tasks.start(self._guarded(key, work), name=f"store {key}")

    async def _guarded(self, key: Key | str, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except TransferCancelled:
            pass
        except Exception as exc:  # whatever it is, it is told, and tried again with pauses
            whole = isinstance(exc, (BackendUnavailable, ConfigError))
            self._note("store" if whole else key, exc)
            if not isinstance(exc, Busy):
                log("store trouble", level=logging.WARNING, error=exc, what=str(key))
        else:
            self.troubles.pop("store", None)
            self.troubles.pop(key, None)
        finally:
            del self._underway[key]
            self._stores.news.set()

    def _note(self, key: Key | str, exc: BaseException) -> None:
        before = self.troubles.get(key)
        pause_s = min(before.pause_s * 2, _LONGEST_PAUSE_S) if before else _FIRST_PAUSE_S
        if isinstance(exc, SnapshotUnusable):
            pause_s = _LONGEST_PAUSE_S  # it will not get better by itself
        reason = exc.message if isinstance(exc, SandboxError) else f"{type(exc).__name__} {exc}"
        self.troubles[key] = Trouble(reason, pause_s, time.monotonic() + pause_s)

    async def _push(self, key: Key) -> None:
        with about(key[0]):
            await self._stores.push(*key)
        self._retain_due = True

    async def _forget(self, kernel_id: str) -> None:
        with about(kernel_id):
            gone = await self._stores.ask(
                lambda store, stopped: store.forget(kernel_id, cancelled=stopped),
                name="store-forget",
            )
            self._stores.leaving.discard(kernel_id)
            if gone:
                log("left the store", generations=list(gone))

    async def _drop(self, key: Key) -> None:
        """Let the copy on the disk go, unless it is in use or the store does not surely have it."""
        with about(key[0]):
            try:
                gone = await self._stores.drop_surely(*key)
            except TimeoutError as exc:
                raise StoreUnavailable("the store does not answer", hint="try again") from exc
            if gone:
                log("copy dropped", generation=key[1])
            elif key in self._stores.pushed:
                raise Busy("the copy is in use")
            elif key[0] not in self._kernels:
                raise SnapshotUnusable("it is a copy of nothing that the store has")

    def _rest_s(self) -> float:
        """Give in how many seconds to tidy: after pushes, and every hour."""
        since_s = time.monotonic() - self._retained_at
        pushing = any(isinstance(key, tuple) for key in self._underway)
        if not self._retain_due or pushing:
            return _HOUR_S - since_s
        return self._retain_took_s * _RETAIN_SHARE - since_s

    async def _retain(self) -> None:
        settings, started = await self._stores.settings(), time.monotonic()
        if settings is None:
            return
        self._retain_due, self._retained_at = False, started
        protect = {(each.row.kernel_id, each.row.generation) for each in self._kernels.values()}
        try:
            gone = await self._stores.ask(
                lambda store, stopped: store.retain(
                    settings.remote.retention, protect=protect, cancelled=stopped
                ),
                name="store-retain",
            )
        except BaseException:
            self._retain_due = True
            raise
        for each in gone:
            self._stores.pushed.pop((each.kernel_id, each.generation), None)
            with about(each.kernel_id):
                log("retention", generation=each.generation)
        self._retain_took_s = time.monotonic() - started
