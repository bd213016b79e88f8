"""The daemon's memory: SQLite in WAL mode, one JSON document per row.

Rows are written *before* what they describe is allocated and removed after it is freed, so that a
daemon that dies at any moment leaves nothing its successor cannot find. Writes go to the page
cache (a dead daemon loses none) and are not forced to the disk: after a crash of the machine there
are no sandboxes to find either. That a kernel sleeps must outlive one: ``sync``.

Calls block for well under a millisecond: they are made from the event loop on purpose, so that
deciding and remembering are one act.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from torpor.daemon.records import KernelRow, SandboxRow
from torpor.errors import BackendUnavailable, ConfigError

VERSION = 1
_SCHEMA = """
CREATE TABLE kernels (kernel_id TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE sandboxes (sandbox_id TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID;
"""


class Registry:
    """The rows of all kernels and sandboxes. Only the daemon that holds the lock may open it."""

    def __init__(self, path: Path) -> None:
        """Open or create the registry.

        Raises:
            ConfigError: the file is not a registry of this version, or cannot be read.
        """
        self._path = path
        try:
            fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            os.fchmod(fd, 0o600)
            os.close(fd)
            self._db = sqlite3.connect(path, isolation_level=None, timeout=5.0)
        except (OSError, sqlite3.Error) as exc:
            raise ConfigError(f"cannot open the registry {path}: {exc}") from exc
        try:
            self._check()
            self._load()
        except ConfigError:
            self._db.close()
            raise
        except (sqlite3.Error, ValueError, KeyError, TypeError) as exc:
            self._db.close()
            raise ConfigError(
                f"the registry {path} is damaged: {exc}", hint=_move_away(path)
            ) from exc

    def _check(self) -> None:
        db = self._db
        db.execute("PRAGMA journal_mode=WAL").close()
        db.execute("PRAGMA synchronous=NORMAL").close()
        verdict = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise sqlite3.DatabaseError(str(verdict))
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version == 0 and not db.execute("SELECT 1 FROM sqlite_master").fetchone():
            db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version={VERSION}; COMMIT;")
        elif version != VERSION:
            raise ConfigError(
                f"the registry {self._path} has version {version}, this daemon knows {VERSION}",
                hint=_move_away(self._path),
            )

    def _load(self) -> None:
        self.kernels: dict[str, KernelRow] = {
            name: KernelRow.from_json(json.loads(body))
            for name, body in self._db.execute("SELECT kernel_id, body FROM kernels")
        }
        self.sandboxes: dict[str, SandboxRow] = {
            name: SandboxRow.from_json(json.loads(body))
            for name, body in self._db.execute("SELECT sandbox_id, body FROM sandboxes")
        }

    def put_kernel(self, row: KernelRow) -> None:
        """Remember ``row``, in place of an older one. Raises BackendUnavailable (disk full)."""
        with self._translated():
            self._db.execute(
                "INSERT OR REPLACE INTO kernels VALUES (?, ?)",
                (row.kernel_id, json.dumps(row.to_json())),
            )
        self.kernels[row.kernel_id] = row

    def put_sandbox(self, row: SandboxRow) -> None:
        """Remember ``row``, in place of an older one. Raises BackendUnavailable (disk full)."""
        with self._translated():
            self._db.execute(
                "INSERT OR REPLACE INTO sandboxes VALUES (?, ?)",
                (row.sandbox_id, json.dumps(row.to_json())),
            )
        self.sandboxes[row.sandbox_id] = row

    def drop_kernel(self, kernel_id: str) -> None:
        """Forget a kernel; one that is not there is fine. Raises BackendUnavailable."""
        with self._translated():
            self._db.execute("DELETE FROM kernels WHERE kernel_id = ?", (kernel_id,))
        self.kernels.pop(kernel_id, None)

    def drop_sandbox(self, sandbox_id: str) -> None:
        """Forget a sandbox; one that is not there is fine. Raises BackendUnavailable."""
        with self._translated():
            self._db.execute("DELETE FROM sandboxes WHERE sandbox_id = ?", (sandbox_id,))
        self.sandboxes.pop(sandbox_id, None)

    def sandboxes_of(self, kernel_id: str) -> list[SandboxRow]:
        """Give every sandbox row of one kernel, left-overs included."""
        return [row for row in self.sandboxes.values() if row.kernel_id == kernel_id]

    def sync(self) -> None:
        """Return once what was written outlives a loss of power. Blocks for longer; for a thread.

        Raises OSError. Frames in the log are checked when it is read, so that it is enough to have
        it on the disk (SQLite, "Write-Ahead Logging").
        """
        with suppress(FileNotFoundError):  # all of it is in the database, and synced
            fd = os.open(f"{self._path}-wal", os.O_RDONLY)
            try:
                os.fdatasync(fd)
            finally:
                os.close(fd)

    def close(self) -> None:
        """Write the WAL back and close. Twice is fine."""
        self._db.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as exc:
            raise BackendUnavailable(
                f"cannot write the registry {self._path}: {exc}",
                hint="is the disk full or read-only?",
            ) from exc


def _move_away(path: Path) -> str:
    return (
        f"move {path} away and start again; kernels it held are then destroyed, "
        "what they wrote to your folders stays"
    )
