"""Snapshots on their way to the store or back, for whoever wants to see or stop them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torpor.snapshot.remote.transfer import Progress

Told = Callable[["Transfer"], None]


@dataclass(slots=True, eq=False)
class Transfer:
    """A snapshot on its way. Written by the thread that moves it."""

    kernel_id: str
    generation: int
    direction: str
    """push or fetch"""
    stop: threading.Event = field(default_factory=threading.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    done_bytes: int = 0
    total_bytes: int = 0
    wire_bytes: int = 0

    @property
    def percent(self) -> int:
        return self.done_bytes * 100 // self.total_bytes if self.total_bytes else 0

    def to_json(self) -> dict[str, Any]:
        """Give what the control API shows."""
        return {
            "kernel_id": self.kernel_id,
            "generation": self.generation,
            "direction": self.direction,
            "done_bytes": self.done_bytes,
            "total_bytes": self.total_bytes,
            "wire_bytes": self.wire_bytes,
        }


def progress_of(transfer: Transfer, told: Told | None) -> Callable[[Progress], None]:
    """Give what notes how far ``transfer`` is, and tells ``told``."""

    def progress(now: Progress) -> None:
        transfer.done_bytes, transfer.total_bytes = now.done_bytes, now.total_bytes
        transfer.wire_bytes = now.wire_bytes
        if told:
            told(transfer)

    return progress
