"""Asking the daemon without starting one that nobody needs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torpor.cli.connection_files import kernels_with_files, remove_connection_files
from torpor.errors import ConfigError
from torpor.paths import Paths

if TYPE_CHECKING:
    from torpor.client import Client


def client_of(paths: Paths) -> Client:
    """Give a client; its module takes 0.1 s to import, so only commands that talk pay for it."""
    from torpor.client import Client

    return Client(paths)


async def daemon_status(paths: Paths) -> dict[str, Any] | None:
    """Give the status of the running daemon; None when none runs. Starts nothing."""
    from torpor.client import NotRunning

    try:
        return await client_of(paths).status()
    except NotRunning:
        return None


async def kernels_now(paths: Paths) -> list[dict[str, Any]]:
    """Give the state of every kernel.

    A daemon is started only where a dead one left kernels behind, which go on without it.
    Connection files that commands have written go when their kernel is no more, however it ended.
    """
    written = kernels_with_files(paths)  # before: one that is made meanwhile is not missed
    kernels = await _kernels(paths)
    known = {each["kernel_id"] for each in kernels}
    remove_connection_files(paths, [each for each in written if each not in known])
    return kernels


async def _kernels(paths: Paths) -> list[dict[str, Any]]:
    if not _holds_kernels(paths) and await daemon_status(paths) is None:
        return []
    return await client_of(paths).kernels()


def _holds_kernels(paths: Paths) -> bool:
    return left_kernels(paths) or has_snapshots(paths)


def left_kernels(paths: Paths) -> bool:
    """Whether a daemon that ended may have left kernels, awake or asleep. Starts nothing."""
    return _has_entries(paths.kernels) or _has_entries(paths.snapshots)


def has_snapshots(paths: Paths) -> bool:
    """Whether the memory of some kernel may be on disk, or in a store that is configured."""
    return _has_entries(paths.snapshots) or _has_store(paths)


def _has_store(paths: Paths) -> bool:
    from torpor.config import load_settings

    try:
        return load_settings(paths).store is not None
    except ConfigError:
        return False


def _has_entries(folder: Path) -> bool:
    try:
        return any(not each.name.startswith("+") for each in folder.iterdir())
    except OSError:
        return False
