"""The master key: 32 bytes that one user's stores are sealed with, and where they come from.

In a file or on a command's standard output it is those bytes, or their hex digits or Base64, with
white space around. ``head -c 32 /dev/urandom | base64`` makes one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
import stat
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from torpor.errors import ConfigError
from torpor.golden.disk import open_plain
from torpor.golden.manifest import GoldenUnusable

KEY_BYTES = 32
COMMAND_TIMEOUT_S = 30.0
_LIMIT_BYTES = 4096
_HEX = re.compile(rb"[0-9a-fA-F]*")
_MAKE = "make one with: head -c 32 /dev/urandom | base64"


@dataclass(frozen=True, slots=True)
class MasterKey:
    """A master key; ``key_id`` tells keys apart and says nothing of them."""

    raw: bytes = field(repr=False)

    @property
    def key_id(self) -> str:
        return hmac.digest(self.raw, b"torpor key id", hashlib.sha256)[:8].hex()


class KeySource(Protocol):
    """Gives the master key. ``key`` raises ConfigError, without a word of what it has read."""

    def key(self) -> MasterKey: ...


class KeyFile:
    """A file of ours alone, read anew each time."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)

    def key(self) -> MasterKey:
        """Give the key. Raises ConfigError: no plain file, not ours alone, or no key in it."""
        try:
            fd = open_plain(self._path, os.O_RDONLY)
        except GoldenUnusable as exc:
            raise ConfigError(exc.message, hint="key_file must name the file itself") from exc
        except OSError as exc:
            raise ConfigError(
                f"the key file {self._path} cannot be read: {exc.strerror}", hint=_MAKE
            ) from exc
        with os.fdopen(fd, "rb") as file:
            seen = os.fstat(fd)
            if seen.st_uid != os.geteuid() or seen.st_mode & 0o077:
                mode = stat.S_IMODE(seen.st_mode)
                raise ConfigError(
                    f"the key file {self._path} is not yours alone (user {seen.st_uid}, mode {mode:04o})",
                    hint=f"chown it to yourself, and chmod 600 {self._path}",
                )
            return parse_key(file.read(_LIMIT_BYTES), f"the key file {self._path}")


class KeyCommand:
    """A program that prints the key: started once, when the key is first needed."""

    def __init__(self, argv: Sequence[str], *, timeout_s: float = COMMAND_TIMEOUT_S) -> None:
        self._argv = tuple(argv)
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._known: MasterKey | None = None

    def key(self) -> MasterKey:
        """Give the key. Raises ConfigError: the program fails, hangs, or prints no key."""
        with self._lock:
            if self._known is None:
                self._known = parse_key(self._run(), f"what {self._argv[0]} prints")
            return self._known

    def _run(self) -> bytes:
        name = self._argv[0]
        try:
            ran = subprocess.run(
                self._argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=self._timeout_s
            )
        except subprocess.TimeoutExpired as exc:
            raise ConfigError(
                f"the key command {name} did not end in {self._timeout_s:g} s",
                hint="it must not ask anything; run it by hand",
            ) from exc
        except OSError as exc:
            raise ConfigError(
                f"the key command {name} cannot be started: {exc.strerror}", hint="run it by hand"
            ) from exc
        if ran.returncode:
            words = ran.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            raise ConfigError(
                f"the key command {name} failed with {ran.returncode}: {words:.200}",
                hint="run it by hand",
            )
        return ran.stdout


def parse_key(raw: bytes, where: str) -> MasterKey:
    """Read a key. Raises ConfigError, which names ``where`` and nothing that was read."""
    if len(raw) == KEY_BYTES and not _HEX.fullmatch(raw):  # those are the digits of half a key
        return MasterKey(raw)
    text = raw.strip()
    for read in (binascii.unhexlify, _base64):
        try:
            key = read(text)
        except ValueError:
            continue
        if len(key) == KEY_BYTES:
            return MasterKey(key)
    raise ConfigError(
        f"{where} is not a key: {KEY_BYTES} bytes, plain, as hex digits or Base64", hint=_MAKE
    )


def _base64(text: bytes) -> bytes:
    return base64.b64decode(text, validate=True)
