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
from typing import TYPE_CHECKING

from torpor.daemon.known_store import CONFIRM_S, KnownStore
from torpor.daemon.logs import log
from torpor.daemon.threads import in_thread
from torpor.daemon.transfers import Told, Transfer, progress_of
from torpor.errors import Busy, ConfigError, NoRoom, SandboxError, SnapshotUnusable
from torpor.snapshot.build import DAMAGED_HINT, Snapshot
from torpor.snapshot.remote.retention import Stored

if TYPE_CHECKING:
    from torpor.snapshot.remote.store import RemoteStore

_ATTEMPTS = 3
_RELEASE_S = 5.0


class Stores(KnownStore):
    """The store as the daemon uses it."""

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
                    self.local.complete(snapshot), progress_of(transfer, None), cancelled=stopped
                ),
                name="store-push",
                stop=transfer.stop,
            )
        if self._opened is not None and self._opened[1] is store:  # it may be another by now
            self.pushed[kernel_id, generation] = stored
        self.news.set()
        log("pushed", generation=generation, bytes=stored.size_bytes, sent=transfer.wire_bytes)
        return stored

    async def has_for_certain(self, kernel_id: str, generation: int) -> bool:
        """Whether the store has, now, exactly the snapshot that is here. Raises as ``push``."""
        store, snapshot = await self.open(), await self._here(kernel_id, generation)
        if store is None or snapshot is None:
            return False
        return await in_thread(
            lambda stopped: store.holds(
                kernel_id,
                generation,
                self.local.complete(snapshot).manifest,
                cancelled=stopped,
            ),
            name="store-compare",
        )

    async def has(self, kernel_id: str, generation: int) -> bool:
        """Whether the store has all of what is here, or where that is damaged, of what it has.

        Raises as ``push``.
        """
        with suppress(SnapshotUnusable):
            if await self._here(kernel_id, generation):
                return await self.has_for_certain(kernel_id, generation)
        return await self.settings() is not None and await self.ask(
            lambda store, stopped: store.holds(kernel_id, generation, cancelled=stopped),
            name="store-compare",
        )

    async def is_sound_here(self, kernel_id: str, generation: int) -> bool:
        """Whether it is on the disk as it was published. Reads all of it."""
        with suppress(SnapshotUnusable):
            if snapshot := await self._here(kernel_id, generation):
                return not await asyncio.to_thread(self.local.verify, snapshot)
        return False

    async def make_room(self, needed_bytes: int) -> None:
        """Drop copies on the disk that the store has for certain, oldest first, until so much fits.

        Never fails: what does not fit is refused by whoever writes it.
        """
        try:
            if not await asyncio.to_thread(self.local.lacking, needed_bytes):
                return
            if not self.known and await self.settings() is not None:
                await self.look(CONFIRM_S)  # since this daemon began nobody has
            rows = {(row.kernel_id, row.generation) for row in self.known} | self.pushed.keys()
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
        async with asyncio.timeout(CONFIRM_S):
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
                snapshot = await self._sound(kernel_id, generation, told)
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
        if here := await self._sound(kernel_id, generation, told):
            return here
        return await self._fetch(kernel_id, generation, told)

    async def _fetch(
        self, kernel_id: str, generation: int, told: Told | None, *, mend: bool = False
    ) -> Snapshot:
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

            def fetching(stopped: Callable[[], bool]) -> Snapshot:
                heard = progress_of(transfer, told)
                return store.fetch(
                    kernel_id, generation, self.local, heard, mend=mend, cancelled=stopped
                )

            async def fetched() -> Snapshot:
                return await in_thread(fetching, name="store-fetch", stop=transfer.stop)

            try:
                snapshot = await fetched()
            except NoRoom:  # since this daemon began nobody has seen how large it is
                manifest = await self._manifest(store, kernel_id, generation)
                await self.make_room(manifest.size_bytes if manifest else 0)
                snapshot = await fetched()
        log("fetched", generation=generation, bytes=transfer.total_bytes, got=transfer.wire_bytes)
        return snapshot

    async def _sound(
        self, kernel_id: str, generation: int, told: Told | None = None
    ) -> Snapshot | None:
        """Give what is on the disk; where that is damaged and the store has the same, that.

        Its content is only read where there is a store: whoever restores from it compares it.

        Raises SnapshotUnusable: it is damaged, and why there is no other.
        """
        try:
            snapshot = await self._here(kernel_id, generation)
            if snapshot is None or await self.settings() is None:
                return snapshot
            why = await asyncio.to_thread(self.local.verify, snapshot)
            if not why or await self._here(kernel_id, generation) is None:
                return snapshot
            raise SnapshotUnusable(
                f"the snapshot on this disk is damaged: {why}", hint=DAMAGED_HINT
            )
        except SnapshotUnusable as damage:
            return await self._mended(kernel_id, generation, damage, told)

    async def _mended(
        self, kernel_id: str, generation: int, damage: SnapshotUnusable, told: Told | None
    ) -> Snapshot:
        try:
            store = await self.open()
            if store is None:
                raise damage
            manifest = await self._manifest(store, kernel_id, generation)
            if manifest is None or not await asyncio.to_thread(
                self.local.damaged_copy_of, manifest
            ):
                raise damage
            log("damaged", level=logging.WARNING, generation=generation, error=damage)
            return await self._fetch(kernel_id, generation, told, mend=True)
        except (SandboxError, OSError) as exc:
            if exc is damage:
                raise
            raise SnapshotUnusable(
                f"{damage.message}; and the store's cannot take its place: {exc}", hint=damage.hint
            ) from exc

    async def find(self, kernel_id: str, which: int | str | None) -> int:
        """Give the generation of that name, or the newest for None; a number as it is.

        Raises SnapshotUnusable when there is none here or in the store, and as ``at_hand``.
        """
        if isinstance(which, int):
            return which
        damage: SnapshotUnusable | None = None
        try:
            if which is not None and (
                here := await asyncio.to_thread(self.local.get, kernel_id, which)
            ):
                return here.manifest.generation
        except SnapshotUnusable as exc:  # of a damaged one nobody here knows the name
            damage = exc
        rows = await self._rows(kernel_id)
        found = [row.generation for row in rows if which is None or row.name == which]
        if which is None:
            found += await asyncio.to_thread(self._generations, kernel_id)
        if not found and damage:
            raise damage
        if not found:
            what = "no snapshot" if which is None else f"no snapshot {which!r}"
            raise SnapshotUnusable(f"kernel {kernel_id} has {what}", hint="see: torpor snapshots")
        return max(found)

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

    async def _here(self, kernel_id: str, generation: int) -> Snapshot | None:
        return await asyncio.to_thread(self.local.get, kernel_id, generation)

    def _generations(self, kernel_id: str) -> list[int]:
        """Give what is on the disk of a kernel, be it damaged."""
        damaged = [generation for _, generation, _ in self.local.unusable(kernel_id)]
        return [each.generation for each in self.local.list(kernel_id)] + damaged

    async def _opened_store(self) -> RemoteStore:
        store = await self.open()
        if store is None:
            raise ConfigError("no store is configured", hint="set c.Torpor.store")
        return store

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
