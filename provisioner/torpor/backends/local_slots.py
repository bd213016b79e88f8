"""Private host uids, one per sandbox, claimed so that no crash loses or doubles one.

A slot is a file named after its uid whose text is the sandbox's directory. Creating it claims the
uid. A slot whose directory is gone is nobody's: whoever claims next removes it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from torpor.errors import LaunchError


@dataclass(frozen=True, slots=True)
class UidSlots:
    """``count`` uids from ``first`` on, shared by all daemons of root through ``folder``."""

    folder: Path
    first: int
    count: int

    def claim(self, sandbox_id: str, directory: Path) -> int:
        """Give a uid that no other living sandbox has. Claiming again gives the same one.

        Raises:
            LaunchError: all are taken, or the folder cannot be written.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._alone():
                self._remove_stale()
                uid = self.held_by(directory) or self._free_uid(sandbox_id)
                if uid is not None:
                    _write_at_once(self.folder / str(uid), str(directory))
                    return uid
        except OSError as exc:
            raise LaunchError(f"cannot claim a uid in {self.folder}: {exc.strerror}") from exc
        raise LaunchError(f"all {self.count} sandbox uids are in use", hint="stop some kernels")

    def release(self, directory: Path) -> None:
        """Give back what ``directory`` holds; nothing held is fine."""
        uid = self.held_by(directory)
        if uid is not None:
            (self.folder / str(uid)).unlink(missing_ok=True)

    def held_by(self, directory: Path) -> int | None:
        """Give the uid that ``directory`` holds."""
        return next((uid for uid, holder in self._held() if holder == str(directory)), None)

    def _held(self) -> Iterator[tuple[int, str]]:
        """Yield every claimed uid and the directory that holds it."""
        try:
            names = os.listdir(self.folder)
        except OSError:
            return
        for name in names:
            with suppress(OSError, ValueError):
                yield int(name), (self.folder / name).read_text()

    def _remove_stale(self) -> None:
        for uid, holder in self._held():
            if not os.path.isdir(holder):
                (self.folder / str(uid)).unlink(missing_ok=True)

    def _free_uid(self, sandbox_id: str) -> int | None:
        taken = {uid for uid, _ in self._held()}
        # Start somewhere else each time, so that a uid is not reused soon.
        start = int.from_bytes(hashlib.sha256(sandbox_id.encode()).digest()[:8], "big")
        uids = (self.first + (start + step) % self.count for step in range(self.count))
        return next((uid for uid in uids if uid not in taken), None)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other daemons from claiming; a daemon that dies lets go."""
        fd = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def _write_at_once(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}")
    draft.write_text(text)
    os.replace(draft, path)


FIRST_UID = 0x70000000
UIDS = 65536
"""From the end of systemd-nspawn's uids on, nothing claims host uids (systemd's UIDS-GIDS.md)."""


def has_every_uid(uid_map: str) -> bool:
    """Tell from ``/proc/self/uid_map`` whether this process is in the machine's first namespace.

    In any other one root cannot map the owners of mounts, nor does it have uids to give away.
    """
    return uid_map.split() == ["0", "0", "4294967295"]
