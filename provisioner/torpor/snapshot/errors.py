"""What can be wrong with a snapshot, for people and for the control API."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torpor.errors import BackendUnavailable, SandboxError
from torpor.golden.manifest import GoldenUnusable


class SnapshotUnusable(SandboxError):
    """A snapshot, or the folder of all snapshots, must not be used; whatever is there is kept."""

    code = "snapshot_unusable"
    http_status = 409


class NoRoom(SandboxError):
    """There is no room for another snapshot, and none is ever removed to make some."""

    code = "no_room"
    http_status = 507


class StoreUnavailable(BackendUnavailable):
    """An object store did not answer as often as it was asked; later it may."""

    code = "store_unavailable"


class TransferCancelled(SandboxError):
    """Somebody wanted a snapshot not to be sent or fetched any further."""

    code = "cancelled"
    http_status = 409


@contextmanager
def as_unusable(hint: str = "") -> Iterator[None]:
    """Have what the files' own checks refuse be a SnapshotUnusable, with ``hint`` or theirs."""
    try:
        yield
    except GoldenUnusable as exc:
        raise SnapshotUnusable(exc.message, hint=hint or exc.hint) from exc
