"""Which snapshot a person means: of a kernel, by its generation or its name. Pure."""

from __future__ import annotations

from typing import Any

from torpor.cli.ids import one_of
from torpor.errors import ConfigError, SandboxGone


def kernel_of(
    snapshots: list[dict[str, Any]], wanted: str, what: str = "snapshot of a kernel"
) -> str:
    """Give the one kernel among ``snapshots`` that is meant. Raises as ``one_of``."""
    known = {str(each["kernel_id"]) for each in snapshots}
    return one_of(wanted, known, what=what, see="snapshots")


def number_or_name(which: str) -> int | str | None:
    """Give a generation as a number, a name as it is, and None for nothing."""
    return int(which) if which.isdecimal() else which or None


def wanted(snapshots: list[dict[str, Any]], kernel: str, which: str) -> tuple[str, int]:
    """Give kernel and generation of the one snapshot that is meant.

    Raises:
        SandboxGone: there is none.
        ConfigError: several kernels, or snapshots, may be meant.
    """
    of_that_name = [each for each in snapshots if _is(each, which)]
    # A beginning may be that of several kernels, of which one has such a snapshot.
    kernel_id = kernel_of(
        snapshots if any(each["kernel_id"] == kernel for each in snapshots) else of_that_name,
        kernel,
        what=f"snapshot {which!r} of a kernel",
    )
    found = sorted(each["generation"] for each in of_that_name if each["kernel_id"] == kernel_id)
    if not found:
        raise SandboxGone(
            f"kernel {kernel_id} has no snapshot {which!r}", hint="see: torpor snapshots"
        )
    if len(found) > 1:
        shown = ", ".join(map(str, found))
        raise ConfigError(
            f"{len(found)} snapshots of kernel {kernel_id} are {which!r}",
            hint=f"name a generation: one of {shown}",
        )
    return kernel_id, found[0]


def meant(snapshots: list[dict[str, Any]], kernel_id: str, which: str) -> dict[str, Any] | None:
    """Give the row of a kernel's snapshot of that generation or name, the newest for ""; or None."""
    rows = [
        each
        for each in snapshots
        if each["kernel_id"] == kernel_id and (not which or _is(each, which))
    ]
    return max(rows, key=lambda each: int(each["generation"]), default=None)


def _is(each: dict[str, Any], which: str) -> bool:
    return which in (each["name"], str(each["generation"]))
