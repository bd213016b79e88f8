"""Private host uids, one per sandbox, claimed so that no crash loses or doubles one.

A slot is a file named after its uid whose text is the sandbox's directory. Creating it claims the
uid. Whoever finds a slot whose directory is gone may take it over, so a slot needs no other
upkeep.
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
        try:
            names = os.listdir(self.folder)
        except OSError:
            return None
        for name in names:
            if name.isdigit() and self._holder(int(name)) == str(directory):
                return int(name)
        return None

    def _free_uid(self, sandbox_id: str) -> int | None:
        # Start somewhere else each time, so that a uid is not reused soon.
        start = int.from_bytes(hashlib.sha256(sandbox_id.encode()).digest()[:8], "big")
        for step in range(self.count):
            uid = self.first + (start + step) % self.count
            holder = self._holder(uid)
            if holder is None or not os.path.isdir(holder):
                return uid
        return None

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other daemons from claiming; a daemon that dies lets go."""
        fd = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _holder(self, uid: int) -> str | None:
        with suppress(OSError, UnicodeDecodeError):
            return (self.folder / str(uid)).read_text()
        return None


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
