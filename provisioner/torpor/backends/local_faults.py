"""What the system says when a sandbox cannot be made or saved, and what a person can do about it."""

from __future__ import annotations

import errno
from pathlib import Path

from torpor.errors import LaunchError

_HINTS = {
    errno.ENOSPC: "the disk is full: free some space",
    errno.EDQUOT: "your disk quota is used up: free some space",
    errno.ENOMEM: "not enough memory to start a sandbox: close other programs or kernels",
    errno.EAGAIN: "too many processes: close other programs or kernels",
    errno.EMFILE: "too many open files: raise the limit (ulimit -n)",
}


def machine_error(directory: Path, exc: OSError) -> LaunchError:
    """Give the error to raise for ``exc``."""
    hint = _HINTS.get(exc.errno or 0, "")
    return LaunchError(f"cannot make the sandbox in {directory}: {exc.strerror}", hint=hint)
