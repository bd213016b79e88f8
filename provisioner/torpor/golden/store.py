"""The goldens of one user on disk: made, found, checked, held, and removed.

::

    <root>/                  0700, ours; anything else is refused, and links are never followed
        .lock                flock: held while names below change, never while an image is read
        .draft-<build>/      see draft.py
        <key>/<build>/       see build.py; the newest complete one counts
        <key>/last-failure.json    see failures.py

Synchronous; safe from any thread and any number of processes. A crash leaves a key with the old
build, or the new one, or both.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from torpor.golden.build import IMAGE, Golden, hold_build, mark_used
from torpor.golden.collect import (
    Removed,
    remove_broken,
    remove_dead,
    remove_over_budget,
    remove_superseded,
)
from torpor.golden.disk import make_private, remove_empty, require_private
from torpor.golden.draft import Drafts
from torpor.golden.failures import Failure, Failures
from torpor.golden.fingerprint import changed
from torpor.golden.image import damage
from torpor.golden.manifest import GoldenUnusable, Manifest, check_key
from torpor.golden.shelf import INCOMPLETE, Shelf


class GoldenStore:
    """The goldens below ``root``, of at most ``budget_bytes`` together.

    Every method raises GoldenUnusable when a folder it needs is not ours alone or a name is no key
    or build, and OSError when the disk fails. Nothing is made before the first ``draft``.
    """

    def __init__(
        self, root: Path, budget_bytes: int, clock: Callable[[], float] = time.time
    ) -> None:
        self._root = root
        self._budget_bytes = budget_bytes
        self._clock = clock
        self._shelf = Shelf(root)
        self._drafts = Drafts(root)
        self._failures = Failures(root)

    # Building

    def draft(self, build: str) -> Path:
        """Give a new private folder with an empty ``image`` in it, for ``publish`` or ``discard``.

        It is this process's: when that dies the next collection removes it.
        """
        self._make_root()
        with self._shelf.lock():
            return self._drafts.make(build)

    def discard(self, draft: Path) -> None:
        """Remove a draft. One that was published or discarded before is left alone."""
        self._drafts.discard(draft)

    def publish(self, draft: Path, manifest: Manifest) -> Golden:
        """Make the draft the golden of ``manifest.key``; its ``files`` are filled in here.

        Older builds of the key are removed, or left to the next collection while they are held.
        Whatever is raised, the draft is gone and the older builds are as they were.

        Raises:
            GoldenUnusable: not a draft of this process and build; no image in it, or something
                that is no plain file; larger than the whole budget.
            OSError: the disk is full, for one; or there is such a build already.
        """
        try:
            self._drafts.check(draft, manifest.build)
            manifest = replace(manifest, files=self._shelf.digests.record(draft / IMAGE))
            self._require_fitting(sum(file.size_bytes for file in manifest.files.values()))
            with self._shelf.lock():
                self._drafts.unmark(draft)
                return self._shelf.place(draft, manifest)
        finally:
            self._shelf.digests.forget(draft)
            self._drafts.discard(draft)

    # Using

    def find(self, key: str) -> Golden | None:
        """Give the newest complete build of ``key``; None when there is none.

        Looks at the manifest and at names and sizes in the image; its content is for ``verify``.
        What is damaged is recorded as a failure and removed.
        """
        goldens, broken = self._shelf.look(check_key(key))
        if broken:
            with self._shelf.lock():
                goldens, broken = self._shelf.look(key)
                self._remove_broken(key, broken)
        return goldens[0] if goldens else None

    @contextmanager
    def hold(self, golden: Golden) -> Iterator[None]:
        """Keep ``golden`` from being removed while a clone is restored from it.

        Raises GoldenUnusable when it was removed already.
        """
        fd = hold_build(golden.folder)
        try:
            yield
        finally:
            os.close(fd)

    def verify(self, golden: Golden) -> str | None:
        """Give what is wrong with the image, its content included, in words; else None.

        Reads all of it once, and after that only what was touched. Hold it meanwhile.
        """
        try:
            require_private(golden.folder)
            require_private(golden.image)
        except FileNotFoundError as exc:
            return f"{exc.filename} is missing"
        return damage(golden.image, golden.manifest.files, self._shelf.digests)

    def stale(self, golden: Golden) -> str | None:
        """Give what has changed in the environment since ``golden`` was built; else None."""
        return changed(golden.manifest.environment)

    def used(self, golden: Golden) -> None:
        """Note that a clone is made now. Where that cannot be written nothing happens."""
        mark_used(golden.folder, self._clock())

    def condemn(self, golden: Golden, reason: str) -> None:
        """Record a failure because of ``golden``, and remove it unless somebody else holds it."""
        self.failed(golden.manifest.key, reason, self._clock())
        with self._shelf.lock():
            self._shelf.remove(golden.folder)

    # Looking and removing

    def list(self) -> tuple[Golden, ...]:
        """Give all complete builds, the last used first; superseded ones still held as well."""
        if not self._shelf.exists():
            return ()
        goldens = [
            golden
            for key in self._shelf.keys_on_disk()
            for golden in self._shelf.look_or_pass(key)[0]
        ]
        return tuple(sorted(goldens, key=lambda golden: golden.last_used, reverse=True))

    def remove(self, key: str) -> int:
        """Remove the builds of ``key`` that nobody holds, and give how many. Failures stay."""
        if not self._shelf.folders(check_key(key)):
            return 0
        with self._shelf.lock():
            removed = sum([self._shelf.remove(folder) for folder in self._shelf.folders(key)])
            remove_empty(self._root / key)
        return removed

    def collect(self) -> tuple[Removed, ...]:
        """Remove drafts of dead builders, what is damaged, incomplete or superseded, and then the
        longest unused while all exceed the budget. Give what is gone.

        What is held stays, and what is open to others.
        """
        if not self._shelf.exists():
            return ()
        with self._shelf.lock():
            removed, kept = remove_dead(self._drafts.dead()), []
            for key in self._shelf.keys_on_disk():
                goldens, broken = self._shelf.look_or_pass(key)
                removed += self._remove_broken(key, broken)
                removed += remove_superseded(self._shelf, goldens)
                kept += [golden for golden in goldens if golden.folder.exists()]
            removed += remove_over_budget(self._shelf, kept, self._budget_bytes)
            for key in self._shelf.keys_on_disk():
                self._failures.tidy(key, self._clock())
                remove_empty(self._root / key)
        return tuple(removed)

    # Failures

    def failed(self, key: str, reason: str, now: float) -> None:
        """Record that a build of ``key`` failed at ``now`` (seconds since 1970).

        Where that cannot be written, this process remembers it all the same.
        """
        with ExitStack() as stack:
            with suppress(OSError, GoldenUnusable):
                self._make_root()
                stack.enter_context(self._shelf.lock())
            self._failures.record(key, reason, now)

    def succeeded(self, key: str) -> None:
        """Forget the failures of ``key``."""
        self._failures.forget(key)

    def may_build(self, key: str, now: float) -> tuple[bool, str]:
        """Whether a build of ``key`` may start at ``now``, and if not, why and how long to wait."""
        failure = self._failures.last(key)
        left_s = failure.left_s(now) if failure else 0.0
        if not failure or not left_s:
            return True, ""
        times = "once" if failure.in_a_row == 1 else f"{failure.in_a_row} times in a row"
        return False, f"building failed {times}, next try in {left_s:.0f} s: {failure.reason}"

    def failures(self) -> dict[str, Failure]:
        """Give the last failure of each key that has one."""
        keys = self._shelf.keys_on_disk() if self._shelf.exists() else []
        found = {key: self._failures.last(key) for key in keys}
        return {key: failure for key, failure in found.items() if failure}

    def _make_root(self) -> None:
        self._root.parent.mkdir(parents=True, exist_ok=True)
        make_private(self._root)

    def _require_fitting(self, size_bytes: int) -> None:
        if size_bytes > self._budget_bytes:
            raise GoldenUnusable(
                f"the golden has {size_bytes} bytes, more than the {self._budget_bytes} that all "
                "goldens together may have",
                hint="raise that budget",
            )

    def _remove_broken(self, key: str, broken: Sequence[tuple[Path, str]]) -> Sequence[Removed]:
        removed = remove_broken(self._shelf, broken)
        for each in removed:
            if each.reason != INCOMPLETE:
                self._failures.record(key, each.reason, self._clock())
        return removed
