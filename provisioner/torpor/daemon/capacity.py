"""Whether this machine can hold one more kernel. Pure."""

from __future__ import annotations

from torpor.errors import AtCapacity
from torpor.template import MIB

START_BYTES = 96 * MIB
"""What a kernel needs to start: its own memory and gVisor's."""


def check_room(
    *, available_bytes: int, reserve_bytes: int, starting: int, kernels: int, most_kernels: int
) -> None:
    """Refuse a start for which there is no room; ``starting`` others have theirs still to take.

    ``most_kernels`` 0 means any number.

    Raises:
        AtCapacity: with what to change.
    """
    if most_kernels and kernels >= most_kernels:
        raise AtCapacity(
            f"at capacity: {kernels} kernels run, and TorporDaemon.most_kernels is {most_kernels}",
            hint="shut a kernel down, or raise most_kernels",
        )
    if available_bytes - (starting + 1) * START_BYTES < reserve_bytes:
        raise AtCapacity(
            f"at capacity: {available_bytes // MIB} MiB of memory are free, {starting} other "
            f"kernels are starting, and {reserve_bytes // MIB} MiB stay reserved",
            hint="shut kernels or other programs down, or lower TorporDaemon.reserve_bytes",
        )
