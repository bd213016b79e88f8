"""The store that is configured now, opened when it is needed; what is known of it; what to ask it.

Nothing of it is loaded, opened or reached before there is one in the configuration, which may come,
change and go while the daemon runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from torpor.daemon.threads import in_thread
from torpor.daemon.transfers import Transfer
from torpor.errors import Busy, ConfigError, SandboxError
from torpor.snapshot.manifest import SnapshotManifest
from torpor.snapshot.remote.configured import StoreSettings
from torpor.snapshot.remote.retention import Stored
from torpor.snapshot.remote.settings import open_store
from torpor.snapshot.store import SnapshotStore

if TYPE_CHECKING:
    from torpor.snapshot.remote.store import RemoteStore

T = TypeVar("T")
Key = tuple[str, int]
CONFIRM_S = 5.0


class KnownStore:
    """The store, and what this daemon knows of it; ``local`` is where snapshots are restored from."""

    def __init__(
        self,
        settings: Callable[[], StoreSettings | None],
        local: SnapshotStore,
        marks: Path | None = None,
    ) -> None:
        """``marks``: the file that says which folders were stores; None: nobody minds."""
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
        self.going: set[Key] = set()
        """Snapshots that are being removed, and not to be sent meanwhile."""
        self.leaving: set[str] = set()
        """Kernels that are no more, whose automatic snapshots are to leave the store."""
        self.news = asyncio.Event()
        """Set when there may be something to send or to remove."""
        self._settings = settings
        self._marks = marks
        self._opened: tuple[StoreSettings, RemoteStore] | None = None
        self._opening = asyncio.Lock()

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
        async with self._opening:  # two of them would write to the same marks
            if self._opened is None or self._opened[0] != settings:
                opened = await in_thread(
                    lambda _stopped: open_store(settings.remote, settings.patience, self._marks),
                    name="store-open",
                )
                if self._opened is not None and self._opened[0].remote != settings.remote:
                    self.pushed.clear()  # another place, account or key: what it has is to be seen
                    self.known, self.unusable = (), ()
                self._opened = (settings, opened)
            return self._opened[1]

    async def ask(self, work: Callable[[RemoteStore, Callable[[], bool]], T], *, name: str) -> T:
        """Give what ``work`` gives of the store. Raises as ``open`` and as ``RemoteStore``."""
        store = await self.open()
        if store is None:
            raise ConfigError("no store is configured", hint="set c.Torpor.store")
        return await in_thread(lambda stopped: work(store, stopped), name=name)

    # -- what is known

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

    async def require_unused(self, kernel_id: str, *, ask: bool = False) -> None:
        """Raise Busy when there are snapshots of a kernel of that name: they would end with a new one.

        As far as is known; with ``ask`` a store that answers soon is looked at, too.
        """
        here = await asyncio.to_thread(self.local.next_generation, kernel_id) > 1
        rows = (*self.known, *self.pushed.values())
        if ask and not here:
            with suppress(SandboxError, OSError, TimeoutError):
                async with asyncio.timeout(CONFIRM_S):
                    rows += await self._rows(kernel_id)
        if here or any(row.kernel_id == kernel_id for row in rows):
            raise Busy(
                f"there are snapshots of a kernel {kernel_id!r} already",
                hint="choose another id for the new kernel, or remove them: torpor snapshots rm",
            )

    async def _rows(self, kernel_id: str) -> tuple[Stored, ...]:
        if await self.settings() is None:
            return ()
        look = await self.ask(
            lambda store, stopped: store.look(kernel_id, cancelled=stopped), name="store-look"
        )
        return look.stored

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

    def _size_of(self, kernel_id: str, generation: int) -> int:
        for row in (*self.pushed.values(), *self.known):
            if (row.kernel_id, row.generation) == (kernel_id, generation):
                return row.size_bytes
        return 0

    async def _manifest(
        self, store: RemoteStore, kernel_id: str, generation: int
    ) -> SnapshotManifest | None:
        return await in_thread(
            lambda stopped: store.manifest(kernel_id, generation, cancelled=stopped),
            name="store-manifest",
        )
