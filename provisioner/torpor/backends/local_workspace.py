"""Decides how much of the user's folder a sandbox gets, and why not all that was wished."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torpor.errors import ConfigError
from torpor.python_prefix import within
from torpor.runsc.plan import WorkspaceMount
from torpor.template import WorkspaceMode

_SYSTEM = (
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/proc",
    "/sbin",
    "/sys",
    "/usr",
    "/var/lib",
    "/var/log",
    "/var/run",
    "/var/spool",
)
_BARE = ("/run", "/var", "/opt", "/mnt", "/media", "/srv", "/tmp", "/var/tmp", "/home")


@dataclass(frozen=True, slots=True)
class Granted:
    """``mount`` is None for no folder at all; ``reason`` is "" when the wish was met."""

    mount: WorkspaceMount | None
    reason: str = ""

    @property
    def mode(self) -> WorkspaceMode:
        return self.mount.mode if self.mount else WorkspaceMode.NONE


def grant_workspace(
    wish: WorkspaceMode,
    workspace: Path | None,
    *,
    homes: Iterable[str],
    prefixes: Iterable[str],
    private: Iterable[str],
) -> Granted:
    """Give the mount that is safe to make.

    ``homes`` are all home folders of this machine, ``prefixes`` the environments that must stay
    read-only, ``private`` Torpor's own folders, hidden where they lie in the workspace.

    Raises:
        ConfigError: the workspace does not exist, is no folder or cannot be read.
    """
    if wish is WorkspaceMode.NONE or workspace is None:
        return Granted(None)
    path = _checked(workspace)
    if path == "/" or path in _BARE:
        return Granted(
            None, f"{path} is never shown in a sandbox whole: start in a folder below it"
        )
    homes = {os.path.realpath(each) for each in homes if each not in ("", "/")}
    if any(within(each, path) for each in homes):
        return Granted(
            None, f"{path} is a home folder, or holds one, and is never shown in a sandbox whole"
        )
    own = sorted({os.path.realpath(each) for each in private})
    if any(within(path, each) for each in own):
        return Granted(None, f"{path} belongs to Torpor itself")
    hidden = tuple(each for each in own if within(each, path))
    mode, reason = wish, ""
    if mode is not WorkspaceMode.READ_ONLY:
        if any(within(path, each) for each in _SYSTEM):
            mode, reason = WorkspaceMode.READ_ONLY, f"{path} belongs to the system"
        elif any(within(path, each) for each in prefixes):
            mode, reason = WorkspaceMode.READ_ONLY, f"{path} belongs to a Python environment"
    return Granted(WorkspaceMount(path=path, mode=mode, hidden=hidden), reason)


def _checked(workspace: Path) -> str:
    path = os.path.realpath(workspace)
    hint = "choose a folder that exists and that you may read"
    if not os.path.isdir(path):
        raise ConfigError(f"the workspace {workspace} is not a folder", hint=hint)
    if not os.access(path, os.R_OK | os.X_OK):
        raise ConfigError(f"the workspace {workspace} cannot be read", hint=hint)
    return path
