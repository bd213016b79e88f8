"""Where one sandbox's files are in its private folder, and writing and removing them.

::

    DIRECTORY/           0700
        to_guest, from_guest, guest_stderr     the link's FIFOs
        launch.plan      everything the launcher is told (holds the private key and the environment)
        shape.json       the same without secrets, for as long as the sandbox lives
        paused           empty; there while the sandbox was paused to freeze it
        save/            where runsc writes a checkpoint of the running sandbox
        cgroups          one folder a line, written before they are made
        sandbox.json     the Handle, as soon as there is a process
        log/             what runsc says: runsc.log, panic.log
        root/            empty; the launcher builds the sandbox's tree on it in a mount namespace
        of its own
"""

from __future__ import annotations

import json
import marshal
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torpor.backends.base import FROM_GUEST, GUEST_STDERR, TO_GUEST, Handle
from torpor.errors import SandboxGone

FIFOS = (TO_GUEST, FROM_GUEST, GUEST_STDERR)
_LOG_TAIL_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Layout:
    """The files of one sandbox below ``directory``."""

    directory: Path

    @property
    def plan(self) -> Path:
        return self.directory / "launch.plan"

    @property
    def record(self) -> Path:
        return self.directory / "sandbox.json"

    @property
    def groups(self) -> Path:
        return self.directory / "cgroups"

    @property
    def paused(self) -> Path:
        """There while runsc has, or may have, paused the sandbox to freeze it."""
        return self.directory / "paused"

    @property
    def save(self) -> Path:
        return self.directory / "save"

    @property
    def log(self) -> Path:
        return self.directory / "log"

    def make_folders(self) -> None:
        """Make the directory, its parents and its subfolders; existing ones are an error."""
        self.directory.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.directory.mkdir(mode=0o700)
        for name in ("log", "root", "save"):
            (self.directory / name).mkdir(mode=0o700)

    def make_fifos(self) -> None:
        """Make the three FIFOs, for this user alone."""
        for name in FIFOS:
            os.mkfifo(self.directory / name, 0o600)

    def write_plan(self, plan: dict[str, Any]) -> None:
        """Write ``launch.plan``."""
        _write(self.plan, marshal.dumps(plan))

    def read_plan(self) -> dict[str, Any]:
        """Give what ``write_plan`` wrote. Raises OSError when there is nothing."""
        plan: dict[str, Any] = marshal.loads(self.plan.read_bytes())
        return plan

    def write_shape(self, plan: dict[str, Any]) -> None:
        """Write ``shape.json``."""
        _write(self.directory / "shape.json", json.dumps(plan).encode())

    def read_shape(self) -> dict[str, Any]:
        """Give what ``write_shape`` wrote. Raises OSError or ValueError when there is nothing."""
        shape: dict[str, Any] = json.loads((self.directory / "shape.json").read_bytes())
        return shape

    def write_groups(self, folders: Sequence[str]) -> None:
        """Write ``cgroups``."""
        _write(self.groups, "\n".join(folders).encode())

    def read_groups(self) -> list[str]:
        """Give the cgroup folders that may exist; none when none were ever made."""
        try:
            return self.groups.read_text().splitlines()
        except OSError:
            return []

    def write_record(self, handle: Handle) -> None:
        """Write ``sandbox.json``, at once or not at all."""
        draft = self.record.with_suffix(".new")
        _write(draft, json.dumps(handle.to_json()).encode())
        os.replace(draft, self.record)

    def read_record(self) -> Handle | None:
        """Give the Handle of the last start; None when there was none or it cannot be read."""
        try:
            return Handle.from_json(json.loads(self.record.read_bytes()))
        except (OSError, ValueError, SandboxGone):
            return None

    def last_words(self) -> str:
        """Give what runsc said last, a crash of gVisor first; "" when it had nothing to say."""
        return panic_words(_tail(self.log / "panic.log")) or log_words(
            _tail(self.log / "runsc.log")
        )

    def clear_logs(self) -> None:
        """Remove what an earlier start said."""
        for name in ("panic.log", "runsc.log"):
            (self.log / name).unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the directory and all in it; nothing there is fine."""
        shutil.rmtree(self.directory, onerror=_unless_missing)


def _unless_missing(_call: object, _path: object, error: tuple[Any, BaseException, Any]) -> None:
    if not isinstance(error[1], FileNotFoundError):
        raise error[1]


def _write(path: Path, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _LOG_TAIL_BYTES))
            return file.read().decode("utf-8", "replace").strip()
    except OSError:
        return ""


def panic_words(text: str) -> str:
    """Give the line of a Go crash report that says what happened. Pure."""
    for line in text.splitlines():
        if line.startswith(("panic: ", "fatal error: ", "runtime: ")):
            return f"gVisor crashed: {line}"
    return ""


def log_words(text: str) -> str:
    """Give the last message of runsc's log, in lines of JSON with a ``msg``. Pure."""
    for line in reversed(text.splitlines()):
        try:
            return f"runsc: {json.loads(line)['msg']}"
        except (ValueError, KeyError, TypeError):
            continue
    return f"runsc: {text}" if text else ""
