"""The object store of this daemon, if one is configured: what goes there, and what comes back.

Nothing of it is loaded, opened or reached before there is one in the configuration, which may come,
change and go while the daemon runs. A store may hang: everything asked of it runs in threads of its
own and can be stopped, and nothing here takes a kernel's lock.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

from torpor.daemon.logs import log
from torpor.daemon.threads import in_thread
from torpor.daemon.transfers import Told, Transfer, progress_of
from torpor.errors import Busy, ConfigError, SandboxError, SnapshotUnusable
from torpor.snapshot.build import Snapshot
from torpor.snapshot.remote.configured import StoreSettings
from torpor.snapshot.remote.retention import Stored
from torpor.snapshot.remote.settings import open_store
from torpor.snapshot.store import SnapshotStore

if TYPE_CHECKING:
    from torpor.snapshot.remote.store import RemoteStore

T = TypeVar("T")
Key = tuple[str, int]
_ATTEMPTS = 3
_CONFIRM_S = 5.0
_RELEASE_S = 5.0


class Stores:
    """The store as the daemon uses it; ``local`` is where snapshots are restored from."""

    def __init__(self, settings: Callable[[], StoreSettings | None], local: SnapshotStore) -> None:
        self.local = local
        self.pushed: dict[Key, Stored] = {}
        """What the store has for certain: this daemon pushed it, or compared it."""
        self.known: tuple[Stored, ...] = ()
        """What the store had when all of it was looked at last."""
        self.unusable: tuple[tuple[str, int, str], ...] = ()
        """And what of that cannot be used, with the reason."""
        self.transfers: list[Transfer] = []
        self.passing: set[Key] = set()
        """Snapshots that were made for a moment and are nobody's to send."""
        self.leaving: set[str] = set()
        """Kernels that are no more, whose automatic snapshots are to leave the store."""
        self.news = asyncio.Event()
        """Set when there may be something to send or to remove."""
        self._settings = settings
        self._opened: tuple[StoreSettings, RemoteStore] | None = None

    async def settings(self) -> StoreSettings | None:
        """Give what is configured now; the last that was right while the files are wrong."""
        try:
            return await asyncio.to_thread(self._settings)
        except ConfigError:
            return self._opened[0] if self._opened else None

    async def open(self) -> RemoteStore | None:
        """Give the store; None where none is configured.

        Raises ConfigError or StoreUnavailable when it cannot be opened.
        """
        settings = await self.settings()
        if settings is None:
            return None
        if self._opened is None or self._opened[0] != settings:
            opened = await in_thread(
                lambda _stopped: open_store(settings.remote, settings.patience), name="store-open"
            )
            if self._opened is not None and self._opened[0].remote.url != settings.remote.url:
                self.pushed.clear()
                self.known, self.unusable = (), ()
            self._opened = (settings, opened)
        return self._opened[1]

    async def ask(self, work: Callable[[RemoteStore, Callable[[], bool]], T], *, name: str) -> T:
        """Give what ``work`` gives of the store. Raises as ``open`` and as ``RemoteStore``."""
        store = await self.open()
        if store is None:
            raise ConfigError("no store is configured", hint="set c.Torpor.store")
        return await in_thread(lambda stopped: work(store, stopped), name=name)

    # -- to the store --------------------------------------------------------------------------

    async def push(self, kernel_id: str, generation: int) -> Stored:
        """Send a snapshot that is on the disk; what is there already is not sent again.

        Raises:
            SnapshotUnusable: there is none, it is damaged, or the store has a newer one.
            TransferCancelled: it was stopped.
            StoreUnavailable, ConfigError, NoRoom: the store does not take it now.
        """
        snapshot = await self._here(kernel_id, generation)
        if snapshot is None:
            raise SnapshotUnusable(
                f"kernel {kernel_id} has no generation {generation} on this disk"
            )
        store = await self._opened_store()
        async with self._moving(kernel_id, generation, "push") as transfer:
            stored = await in_thread(
                lambda stopped: store.push(
                    snapshot, progress_of(transfer, None), cancelled=stopped
                ),
                name="store-push",
                stop=transfer.stop,
            )
        self.pushed[kernel_id, generation] = stored
        self.news.set()
        log("pushed", generation=generation, bytes=stored.size_bytes, sent=transfer.wire_bytes)
        return stored

    async def has_for_certain(self, kernel_id: str, generation: int) -> bool:
        """Whether the store has, now, exactly the snapshot that is here. Raises as ``push``."""
        store, snapshot = await self.open(), await self._here(kernel_id, generation)
        if store is None or snapshot is None:
            return False
        found = await in_thread(
            lambda stopped: store.manifest(kernel_id, generation, cancelled=stopped),
            name="store-compare",
        )
        return found == snapshot.manifest

    async def make_room(self, needed_bytes: int) -> None:
        """Drop copies on the disk that the store has for certain, oldest first, until so much fits.

        Never fails: what does not fit is refused by whoever writes it.
        """
        rows = {(row.kernel_id, row.generation) for row in self.known} | self.pushed.keys()
        if not rows or not await asyncio.to_thread(self.local.lacking, needed_bytes):
            return
        try:
            listed = await asyncio.to_thread(self.local.list)
            for each in sorted(listed, key=lambda it: it.created_s):
                key = (each.kernel_id, each.generation)
                if key in rows and await self.drop_surely(*key):
                    log("made room", kernel=each.kernel_id, generation=each.generation)
                    if not await asyncio.to_thread(self.local.lacking, needed_bytes):
                        return
        except (SandboxError, OSError, TimeoutError) as exc:
            log("no room made", level=logging.WARNING, error=exc)

    async def drop_surely(self, kernel_id: str, generation: int) -> bool:
        """Remove a copy on the disk if the store has it for certain, now; whether it went.

        One that is in use stays. Raises as ``push``, and TimeoutError, soon, where nobody answers.
        """
        async with asyncio.timeout(_CONFIRM_S):
            try:
                if not await self.has_for_certain(kernel_id, generation):
                    self.pushed.pop((kernel_id, generation), None)
                    return False
                return bool(await asyncio.to_thread(self.local.drop, kernel_id, generation))
            except (SnapshotUnusable, Busy):
                return False

    # -- and back ------------------------------------------------------------------------------

    @asynccontextmanager
    async def at_hand(
        self,
        kernel_id: str,
        which: int | str | None,
        *,
        told: Told | None = None,
        keep: bool = True,
    ) -> AsyncIterator[Snapshot]:
        """Give a snapshot on the disk, fetched if it must be, which cannot go while this lasts.

        ``which``: a generation, a name, or None for the newest there is. ``told`` hears how far a
        fetch is. Without ``keep`` a copy that was fetched for this goes again.

        Raises:
            SnapshotUnusable: there is none, it is damaged, tampered with or sealed with another key.
            NoRoom, StoreUnavailable, ConfigError, TransferCancelled: it could not be fetched.
        """
        fetched = False
        with ExitStack() as stack:
            for _ in range(_ATTEMPTS):
                generation = await self.find(kernel_id, which)
                snapshot = await self._here(kernel_id, generation)
                if snapshot is None:
                    snapshot, fetched = await self.fetch(kernel_id, generation, told=told), True
                with suppress(SnapshotUnusable):  # just removed: look again
                    stack.enter_context(self.local.hold(snapshot))
                    break
            else:
                raise SnapshotUnusable(
                    f"generation {generation} of kernel {kernel_id} is being removed"
                )
            try:
                yield snapshot
            finally:
                stack.close()
                if fetched and not keep:
                    with suppress(SandboxError, OSError, TimeoutError):
                        await self.drop_surely(kernel_id, generation)

    async def fetch(self, kernel_id: str, generation: int, *, told: Told | None = None) -> Snapshot:
        """Bring a snapshot to the disk; one that is there is given. Raises as ``at_hand``."""
        if here := await self._here(kernel_id, generation):
            return here
        store = await self.open()
        if store is None:
            raise SnapshotUnusable(
                f"generation {generation} of kernel {kernel_id} is gone: it is not on this disk",
                hint="if it is in a store, configure that: c.Torpor.store",
            )
        await self.make_room(self._size_of(kernel_id, generation))
        async with self._moving(kernel_id, generation, "fetch") as transfer:
            if told:
                told(transfer)
            snapshot = await in_thread(
                lambda stopped: store.fetch(
                    kernel_id,
                    generation,
                    self.local,
                    progress_of(transfer, told),
                    cancelled=stopped,
                ),
                name="store-fetch",
                stop=transfer.stop,
            )
        log("fetched", generation=generation, bytes=transfer.total_bytes, got=transfer.wire_bytes)
        return snapshot

    async def find(self, kernel_id: str, which: int | str | None) -> int:
        """Give the generation of that name, or the newest for None; a number as it is.

        Raises SnapshotUnusable when there is none here or in the store, and as ``at_hand``.
        """
        if isinstance(which, int):
            return which
        if which is not None and (
            here := await asyncio.to_thread(self.local.get, kernel_id, which)
        ):
            return here.manifest.generation
        rows = await self._rows(kernel_id)
        found = [row.generation for row in rows if which is None or row.name == which]
        if which is None and (newest := await asyncio.to_thread(self.local.latest, kernel_id)):
            found.append(newest.manifest.generation)
        if not found:
            what = "no snapshot" if which is None else f"no snapshot {which!r}"
            raise SnapshotUnusable(f"kernel {kernel_id} has {what}", hint="see: torpor snapshots")
        return max(found)

    async def _rows(self, kernel_id: str) -> tuple[Stored, ...]:
        if await self.settings() is None:
            return ()
        look = await self.ask(
            lambda store, stopped: store.look(kernel_id, cancelled=stopped), name="store-look"
        )
        return look.stored

    @property
    def shown(self) -> str:
        """The store's URL for people, without anything secret; "" before it was opened."""
        return self._opened[1].shown if self._opened else ""

    async def look(self, within_s: float) -> str:
        """Look at all that the store has; give why that was not possible, "" when it was.

        What is ``known`` is what it was before then.
        """
        try:
            async with asyncio.timeout(within_s):
                look = await self.ask(
                    lambda store, stopped: store.look(cancelled=stopped), name="store-look"
                )
        except TimeoutError:
            return f"it did not answer in {within_s:g} s; what was known of it is shown"
        except (SandboxError, OSError) as exc:
            return f"{exc}; what was known of it is shown"
        self.known = look.stored
        self.unusable = tuple(
            (kernel_id, generation, why.message) for kernel_id, generation, why in look.unusable
        )
        there = {(row.kernel_id, row.generation) for row in look.stored}
        for key in [each for each in self.pushed if each not in there]:
            del self.pushed[key]  # somebody has removed it: it is to be pushed again
        return ""

    def has_name(self, kernel_id: str, name: str) -> bool:
        """Whether the store has that checkpoint, as far as is known without asking it."""
        rows = (*self.known, *self.pushed.values())
        return any((row.kernel_id, row.name) == (kernel_id, name) for row in rows)

    # -- ends ----------------------------------------------------------------------------------

    async def release(self, kernel_id: str) -> None:
        """Stop what is on its way of a kernel, and return when it stands."""
        mine = [each for each in self.transfers if each.kernel_id == kernel_id]
        for each in mine:
            each.stop.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(_RELEASE_S):
                for each in mine:
                    await each.ended.wait()

    def leave(self, kernel_id: str) -> None:
        """Have the automatic snapshots of a kernel that is no more leave the store, some time."""
        for key in [each for each in self.pushed if each[0] == kernel_id]:
            if not self.pushed[key].name:
                del self.pushed[key]
        self.leaving.add(kernel_id)
        self.news.set()

    async def remove(self, kernel_id: str, generation: int) -> bool:
        """Remove one snapshot from the store; whether it was there. Raises as ``push``."""
        if await self.settings() is None:
            return False
        self.pushed.pop((kernel_id, generation), None)
        gone = await self.ask(
            lambda store, stopped: store.drop(kernel_id, generation, cancelled=stopped),
            name="store-drop",
        )
        self.known = tuple(
            row for row in self.known if (row.kernel_id, row.generation) != (kernel_id, generation)
        )
        return bool(gone)

    async def _here(self, kernel_id: str, generation: int) -> Snapshot | None:
        return await asyncio.to_thread(self.local.get, kernel_id, generation)

    async def _opened_store(self) -> RemoteStore:
        store = await self.open()
        if store is None:
            raise ConfigError("no store is configured", hint="set c.Torpor.store")
        return store

    def _size_of(self, kernel_id: str, generation: int) -> int:
        for row in (*self.pushed.values(), *self.known):
            if (row.kernel_id, row.generation) == (kernel_id, generation):
                return row.size_bytes
        return 0

    @asynccontextmanager
    async def _moving(
        self, kernel_id: str, generation: int, direction: str
    ) -> AsyncIterator[Transfer]:
        transfer = Transfer(kernel_id, generation, direction)
        self.transfers.append(transfer)
        try:
            yield transfer
        finally:
            self.transfers.remove(transfer)
            transfer.ended.set()
