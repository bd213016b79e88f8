"""What can be wrong with a snapshot, for people and for the control API."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torpor.errors import NoRoom, SnapshotUnusable, StoreUnavailable, TransferCancelled
from torpor.golden.manifest import GoldenUnusable

__all__ = ["NoRoom", "SnapshotUnusable", "StoreUnavailable", "TransferCancelled", "as_unusable"]


@contextmanager
def as_unusable(hint: str = "") -> Iterator[None]:
    """Have what the files' own checks refuse be a SnapshotUnusable, with ``hint`` or theirs."""
    try:
        yield
    except GoldenUnusable as exc:
        raise SnapshotUnusable(exc.message, hint=hint or exc.hint) from exc
