"""The daemon: does it run, and is it of this version."""

from __future__ import annotations

import asyncio

from torpor._version import __version__
from torpor.cli.checks import Check, State
from torpor.cli.reach import daemon_status
from torpor.errors import SandboxError
from torpor.paths import Paths


def check_daemon(paths: Paths) -> Check:
    """Ask it. One that does not run is fine: it starts with the first kernel."""
    try:
        status = asyncio.run(daemon_status(paths))
    except SandboxError as exc:
        fix = exc.hint or f"see {paths.log}"
        return Check("daemon", State.FAIL, exc.message, fix)
    if status is None:
        return Check("daemon", State.OK, "not running; starts with the first kernel")
    found = f"version {status.get('version')}, pid {status.get('pid')}"
    if status.get("version") != __version__:
        fix = "stop its kernels, then `torpor daemon stop`; the next kernel starts the new version"
        return Check("daemon", State.WARN, f"{found}; this is {__version__}", fix)
    return Check("daemon", State.OK, f"{found}, {status.get('kernels')} kernels")
