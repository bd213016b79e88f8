"""Where Torpor keeps things on this machine. Pure: nothing is created and no environment is read here.

``state``    registry, logs, private folders of kernels (survives reboots)
``runtime``  Unix sockets and locks (short paths: a socket address holds 107 bytes)
``data``     the installed runsc
``config``   ``torpor_config.py`` / ``torpor_config.json``
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Paths:
    """The folders of one user's Torpor. Two users, or two values of ``TORPOR_HOME``, share nothing."""

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
    (https://specifications.freedesktop.org/basedir-spec/latest/), with ``/tmp/torpor-UID`` where there
    is no ``XDG_RUNTIME_DIR``.
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
