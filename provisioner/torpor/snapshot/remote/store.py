"""The snapshots of one user in one object store; the layout is in catalogue.py.

No store has locks, so nothing here needs one: uploads have random names, what two machines send of
one snapshot is one upload or two whole ones, and a manifest names the upload it belongs to.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from torpor.errors import ConfigError
from torpor.golden.build import hold_build
from torpor.snapshot.build import Snapshot
from torpor.snapshot.environment import Contents
from torpor.snapshot.errors import SnapshotUnusable, StoreUnavailable, as_unusable
from torpor.snapshot.manifest import SnapshotManifest, check_generation, check_kernel_id
from torpor.snapshot.remote.calls import Calls, Patience
from torpor.snapshot.remote.catalogue import MANIFEST, Catalogue, Known, RemoteLook, folder_name
from torpor.snapshot.remote.extra import stores_extra
from torpor.snapshot.remote.fetch import Fetch
from torpor.snapshot.remote.header import check_chunk_bytes
from torpor.snapshot.remote.keys import KeySource, MasterKey
from torpor.snapshot.remote.lines import Lines
from torpor.snapshot.remote.mark import Marks, require_marked
from torpor.snapshot.remote.objects import Objects
from torpor.snapshot.remote.push import Push
from torpor.snapshot.remote.retention import DAY_S, RetentionPolicy, Stored, surplus
from torpor.snapshot.remote.shown import Hidden, hidden_of, shown_url
from torpor.snapshot.remote.sweep import sweep
from torpor.snapshot.remote.transfer import Progress, Stop, never
from torpor.snapshot.store import SnapshotStore
from torpor.template import MIB

with stores_extra():
    from fsspec import AbstractFileSystem
    from fsspec.core import url_to_fs

CHUNK_BYTES = 8 * MIB
THREADS = 4
ABANDONED_S = 2 * DAY_S


class RemoteStore:
    """Snapshots below ``url``, which nothing else may use; sealed with the key of ``key_source``.

    ``chunk_bytes`` and ``threads`` bound the memory: about three chunks for each thread. With
    ``marks`` a folder that is not the one it was, not mounted maybe, is a store that does not answer
    (see mark.py). Synchronous;
    safe from any thread, process and machine. Every method raises StoreUnavailable when the store
    does not answer, ConfigError when it refuses or the key cannot be read, SnapshotUnusable when an
    argument names nothing that can be, and TransferCancelled soon after ``cancelled()`` is true.

    Raises ConfigError when there is no such kind of URL, or its package is not installed, and
    StoreUnavailable where that kind is reached at once and cannot be.
    """

    def __init__(
        self,
        url: str,
        *,
        options: Mapping[str, Any] | None = None,
        key_source: KeySource | None = None,
        chunk_bytes: int = CHUNK_BYTES,
        threads: int = THREADS,
        patience: Patience | None = None,
        clock: Callable[[], float] = time.time,
        marks: Marks | None = None,
    ) -> None:
        hidden = hidden_of(url, options or {})
        lines, root = _lines(url, options or {}, hidden)
        calls = Calls(shown_url(url), patience or Patience(), Stop(), hidden)
        self._objects = Objects(lines, root, calls)
        self._marks = marks if lines.is_folder else None
        self._key_source = key_source
        self._chunk_bytes = check_chunk_bytes(chunk_bytes)
        self._threads = threads if lines.is_shared else 1
        self._clock = clock
        self._contents = Contents()
        self._known: Known = {}
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"RemoteStore({self._objects.shown!r})"

    def push(
        self,
        snapshot: Snapshot,
        progress: Callable[[Progress], None] | None = None,
        *,
        cancelled: Callable[[], bool] = never,
    ) -> Stored:
        """Send ``snapshot``, which stays where it is. Twice is fine: what is there is not sent again.

        When it returns the store has all of it, and it was what was published. Whatever is raised,
        or after a crash, lists show the store as it was, and another push goes on.

        Raises:
            SnapshotUnusable: its files have changed or are gone; the store has another snapshot of
                that generation, or a newer one and this has no name.
            NoRoom: the store says that it is full.
        """
        push = Push(
            self._catalogue(cancelled, writing=True),
            snapshot,
            self._chunk_bytes,
            self._threads,
            self._clock(),
            self._contents.of,
            progress,
        )
        with as_unusable("look for the snapshot again"):
            fd = hold_build(snapshot.folder)
        try:
            return push.run()
        finally:
            os.close(fd)

    def fetch(
        self,
        kernel_id: str,
        generation: int,
        local: SnapshotStore,
        progress: Callable[[Progress], None] | None = None,
        *,
        mend: bool = False,
        cancelled: Callable[[], bool] = never,
    ) -> Snapshot:
        """Bring a snapshot into ``local``, generation and manifest as they were, and give it.

        It stays in the store. One that is in ``local`` already is given as it is; to ``mend`` it,
        it is fetched and takes the place of one whose image is damaged. Whatever is raised, or
        after a crash and ``reconcile``, ``local`` is as it was.

        Raises:
            SnapshotUnusable: there is none, or it was tampered with, is not ours, is sealed with
                another key, or of another version; ``local`` has another one in its place.
            NoRoom: over the budget of ``local``, or its disk is full.
        """
        catalogue = self._catalogue(cancelled)
        whole = catalogue.whole(check_kernel_id(kernel_id), check_generation(generation))
        if whole is None:
            raise SnapshotUnusable(
                f"the store has no generation {generation} of kernel {kernel_id}",
                hint="look at what it has; an upload that was not finished does not count",
            )
        fetch = Fetch(catalogue.objects, whole, local, self._threads, progress, mend)
        return fetch.run()

    @property
    def shown(self) -> str:
        """The URL for people, without anything secret."""
        return self._objects.shown

    def manifest(
        self, kernel_id: str, generation: int, *, cancelled: Callable[[], bool] = never
    ) -> SnapshotManifest | None:
        """Give the manifest of a snapshot; None when there is none. Raises as ``fetch``."""
        check_kernel_id(kernel_id)
        whole = self._catalogue(cancelled).whole(kernel_id, check_generation(generation))
        return whole.manifest if whole else None

    def holds(
        self,
        kernel_id: str,
        generation: int,
        like: SnapshotManifest | None = None,
        *,
        cancelled: Callable[[], bool] = never,
    ) -> bool:
        """Whether the store has that snapshot and lists all its chunks, as large as they are.

        With ``like`` it must be exactly that one. Raises as ``fetch``.
        """
        catalogue = self._catalogue(cancelled)
        whole = catalogue.whole(check_kernel_id(kernel_id), check_generation(generation))
        if whole is None or (like is not None and whole.manifest != like):
            return False
        return not catalogue.lacking(whole.header, whole.table)

    def list(self) -> tuple[Stored, ...]:
        """Give all that is whole and usable, by kernel and generation."""
        return self.look().stored

    def look(
        self, kernel_id: str | None = None, *, cancelled: Callable[[], bool] = never
    ) -> RemoteLook:
        """Give all that is whole (of one kernel), what cannot be used among it with the reason."""
        if kernel_id is not None:
            return self._catalogue(cancelled).look_at(check_kernel_id(kernel_id))
        with self._lock:
            return self._catalogue(cancelled).look(self._known, self._threads)

    def forget(self, kernel_id: str, *, cancelled: Callable[[], bool] = never) -> tuple[int, ...]:
        """Remove what a kernel that is no more had, half-done uploads too; give the generations.

        Named checkpoints stay, and what is unusable: it may have a name. Twice is fine.
        """
        look = self.look(kernel_id, cancelled=cancelled)
        stay = {each.generation for each in look.stored if each.name}
        stay |= {generation for _, generation, _ in look.unusable}
        there = self._catalogue(cancelled, keyless=True).generations(kernel_id)
        gone = tuple(each for each in there if each not in stay)
        for each in gone:
            self.drop(kernel_id, each, cancelled=cancelled)
        return gone

    def drop(
        self,
        kernel_id: str,
        generation: int | None = None,
        *,
        cancelled: Callable[[], bool] = never,
    ) -> tuple[int, ...]:
        """Remove one generation of a kernel, or all, be they named, damaged or not whole.

        Give which there were; none is fine. One that is half removed is not whole.
        """
        catalogue = self._catalogue(cancelled, keyless=True)
        there = catalogue.generations(check_kernel_id(kernel_id))
        wanted = tuple(each for each in there if generation is None or each == generation)
        for each in wanted:
            folder = folder_name(kernel_id, each)
            catalogue.objects.remove(f"{folder}/{MANIFEST}")
            catalogue.objects.remove_all(folder)
        return wanted

    def retain(
        self,
        policy: RetentionPolicy,
        *,
        protect: Collection[tuple[str, int]] = (),
        abandoned_s: float = ABANDONED_S,
        cancelled: Callable[[], bool] = never,
    ) -> tuple[Stored, ...]:
        """Remove what ``surplus`` names, and uploads that nobody went on with for ``abandoned_s``.

        Give the snapshots that are gone. What is unusable stays.
        """
        gone = surplus(
            self.look(cancelled=cancelled).stored, policy, now_s=self._clock(), protect=protect
        )
        for each in gone:
            self.drop(each.kernel_id, each.generation, cancelled=cancelled)
        sweep(self._catalogue(cancelled, keyless=True), before_s=self._clock() - abandoned_s)
        return gone

    def probe(self) -> None:
        """Read the key, if there is one; write an object, read it back, and remove it.

        Raises StoreUnavailable also when what is read is not what was written.
        """
        if self._key_source:
            self._key_source.key()
        objects = self._catalogue(keyless=True, writing=True).objects
        name, content = f"probe-{secrets.token_hex(8)}", secrets.token_bytes(32)
        try:
            objects.write(name, content)
            if objects.read(name, len(content) + 1) != content:
                raise StoreUnavailable(
                    f"the store {self.shown} gives back something else than was written",
                    hint="nothing else may write below that URL",
                )
        finally:
            objects.remove(name)

    def _catalogue(
        self,
        cancelled: Callable[[], bool] = never,
        *,
        keyless: bool = False,
        writing: bool = False,
    ) -> Catalogue:
        key: MasterKey | None = None
        if self._key_source and not keyless:
            key = self._key_source.key()
        objects = self._objects.until(Stop(cancelled))
        if self._marks:
            require_marked(objects, self._marks, writing=writing)
        return Catalogue(objects, key)


def _lines(url: str, options: Mapping[str, Any], hidden: Hidden) -> tuple[Lines, str]:
    shown = shown_url(url)
    wanted = {"use_listings_cache": False, "skip_instance_cache": True} | dict(options)
    roots: list[str] = []

    def make() -> AbstractFileSystem:
        fs, root = url_to_fs(url, **wanted)
        roots.append(str(root).rstrip("/"))
        return fs

    try:
        return Lines(make), roots[0]
    except ImportError as exc:
        raise ConfigError(
            f"{shown} needs a package that is not installed: {exc}", hint="install it"
        ) from exc
    except (ValueError, TypeError) as exc:
        raise ConfigError(
            f"{shown} cannot be used as a store: {hidden.out_of(str(exc))}",
            hint="check the URL and its options",
        ) from exc
    except Exception as exc:  # each kind of store has errors of its own, a refused login among them
        words = hidden.out_of(f"{type(exc).__name__} {exc}")
        raise StoreUnavailable(
            f"the store {shown} cannot be reached: {words}",
            hint="check its address and credentials, and try again",
        ) from exc
