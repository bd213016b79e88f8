"""Whether the environments that goldens were built from are still as they were.

Looking at a thousand files takes milliseconds, which a claim has none of: once looked at, the folders
are watched instead, and looked at again only when something in them has changed. Every now and then
everything is looked at anyway.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from torpor.daemon.folder_watch import FolderWatch
from torpor.golden.build import Golden
from torpor.golden.fingerprint import Fingerprint
from torpor.golden.store import GoldenStore

_ANYWAY_S = 30.0


@dataclass(slots=True)
class _Watched:
    watch: FolderWatch | None
    looked_at: float
    build: str


class Freshness:
    """Answers for goldens; holds one watch for each that was asked after."""

    def __init__(self, store: GoldenStore) -> None:
        self._store = store
        self._watched: dict[str, _Watched] = {}

    async def stale(self, golden: Golden) -> str | None:
        """Give what has changed in its environment since ``golden`` was built; else None."""
        key, build = golden.manifest.key, golden.manifest.build
        known = self._watched.get(key)
        if (
            known is not None
            and known.build == build
            and known.watch is not None
            and not known.watch.changed
            and time.monotonic() - known.looked_at < _ANYWAY_S
        ):
            return None
        self.forget(key)
        folders = folders_of(golden.manifest.environment)
        watch = await asyncio.to_thread(FolderWatch.watch, folders)
        looked_at = time.monotonic()
        why = await asyncio.to_thread(self._store.stale, golden)
        if why is not None or key in self._watched:
            if watch is not None:
                watch.close()
            return why
        self._watched[key] = _Watched(watch, looked_at, build)
        return None

    def forget(self, key: str) -> None:
        """Stop watching for a golden. Twice is fine."""
        known = self._watched.pop(key, None)
        if known is not None and known.watch is not None:
            known.watch.close()

    def close(self) -> None:
        """Stop watching everything. Twice is fine."""
        for key in list(self._watched):
            self.forget(key)


def folders_of(environment: Fingerprint) -> list[str]:
    """Give every folder in which a change may make the golden stale."""
    return sorted(
        {group.folder for group in environment.files} | {each.path for each in environment.folders}
    )
