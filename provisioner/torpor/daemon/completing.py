"""Computes the digests of snapshots a while after these were published, when nothing is in a hurry."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping

from torpor.daemon.kernel import Kernel
from torpor.daemon.logs import about, log
from torpor.daemon.snapshots import Snapshots

REST_S = 2.0
"""Whoever wakes a kernel right after it fell asleep has the processors for that."""
LOOK_S = 1.0


async def keep_completing(snapshots: Snapshots, kernels: Mapping[str, Kernel]) -> None:
    """Do what is due until cancelled; what is left then the next daemon finds on the disk."""
    while True:
        await asyncio.sleep(LOOK_S)
        for (kernel_id, generation), since in list(snapshots.incomplete.items()):
            kernel = kernels.get(kernel_id)
            if kernel is not None and kernel.lock.locked():
                continue
            if time.monotonic() - since < REST_S:
                continue
            with about(kernel_id):
                try:
                    await snapshots.complete(kernel_id, generation)
                except Exception as exc:  # of one snapshot; the others have theirs to come
                    log("digests not computed", level=logging.ERROR, error=exc)
