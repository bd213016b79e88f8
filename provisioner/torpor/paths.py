"""Where Torpor keeps things on this machine. No environment is read here.

``state``    registry, logs, private folders of kernels (survives reboots)
``runtime``  Unix sockets and locks (short paths: a socket address holds 107 bytes)
``data``     the installed runsc
``config``   ``torpor_config.py`` / ``torpor_config.json``
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torpor.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Paths:
    """The folders of one user's Torpor. Two users, or two ``TORPOR_HOME``, share nothing."""

    state: Path
    runtime: Path
    data: Path
    config: Path

    @property
    def daemon_socket(self) -> Path:
        return self.runtime / "torpord.sock"

    @property
    def daemon_lock(self) -> Path:
        return self.runtime / "torpord.lock"

    @property
    def start_lock(self) -> Path:
        """Held by the one client that is starting the daemon."""
        return self.runtime / "start.lock"

    @property
    def client_sockets(self) -> Path:
        """Where the real sockets of ``ipc`` kernels are; clients reach them through links."""
        return self.runtime / "i"

    @property
    def bridge_socket(self) -> Path:
        return self.runtime / "bridge.sock"

    @property
    def bridge_lock(self) -> Path:
        return self.runtime / "bridge.lock"

    @property
    def registry(self) -> Path:
        return self.state / "registry.sqlite"

    @property
    def kernels(self) -> Path:
        return self.state / "k"

    @property
    def goldens(self) -> Path:
        return self.state / "goldens"

    @property
    def snapshots(self) -> Path:
        return self.state / "snapshots"

    @property
    def store_marks(self) -> Path:
        return self.state / "store-marks.json"

    @property
    def log(self) -> Path:
        return self.state / "torpord.log"

    @property
    def bridge_log(self) -> Path:
        return self.state / "bridge.log"

    @property
    def runsc(self) -> Path:
        return self.data / "runsc"


def resolve_paths(environ: Mapping[str, str], *, uid: int, home: Path) -> Paths:
    """Give the folders for ``environ``.

    ``TORPOR_HOME`` (absolute) puts all four below one folder. Otherwise the XDG variables count
    (https://specifications.freedesktop.org/basedir-spec/latest/), with ``/tmp/torpor-UID`` where
    there is no ``XDG_RUNTIME_DIR``.
    """
    root = environ.get("TORPOR_HOME")
    if root:
        base = Path(root)
        return Paths(base / "state", base / "run", base / "data", base / "config")

    def xdg(name: str, default: str) -> Path:
        value = environ.get(name, "")
        return Path(value) if value.startswith("/") else home / default

    runtime = environ.get("XDG_RUNTIME_DIR", "")
    return Paths(
        state=xdg("XDG_STATE_HOME", ".local/state") / "torpor",
        runtime=Path(runtime) / "torpor" if runtime.startswith("/") else Path(f"/tmp/torpor-{uid}"),
        data=xdg("XDG_DATA_HOME", ".local/share") / "torpor",
        config=xdg("XDG_CONFIG_HOME", ".config") / "torpor",
    )


def private_folder(path: Path) -> Path:
    """Make ``path`` (and its parents) a folder that only we can enter, and give it back.

    Raises:
        ConfigError: it belongs to somebody else, is not a folder, or cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        seen = path.lstat()
    except OSError as exc:
        raise ConfigError(f"cannot make the folder {path}: {exc.strerror or exc}") from exc
    if not stat.S_ISDIR(seen.st_mode):
        raise ConfigError(
            f"{path} is not a folder", hint="remove it, or choose another TORPOR_HOME"
        )
    if seen.st_uid != os.geteuid():
        raise ConfigError(
            f"{path} belongs to user {seen.st_uid}, not to you",
            hint="set TORPOR_HOME to a folder of your own",
        )
    if stat.S_IMODE(seen.st_mode) & 0o077:
        path.chmod(0o700)
    return path
