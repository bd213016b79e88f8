"""runsc: is it there, is it good enough, does a sandbox start."""

from __future__ import annotations

import os
import platform

from torpor.cli.checks import Check, State
from torpor.config import Settings
from torpor.errors import LaunchError
from torpor.paths import Paths
from torpor.runsc.smoke import start_once
from torpor.runsc.version import Runsc, find_runsc


def find(paths: Paths, settings: Settings | None) -> Runsc:
    """Give the runsc that the daemon would use; ``settings`` is None where they cannot be read."""
    if settings is None:
        return find_runsc(paths)
    return find_runsc(paths, settings.runsc_path, allow_old=settings.allow_old_runsc)


def check_runsc(runsc: Runsc) -> Check:
    found = f"{runsc.build} at {runsc.path}" if runsc.build else runsc.reason
    if runsc.ok and not runsc.reason:
        return Check("runsc", State.OK, found)
    state = State.WARN if runsc.ok else State.FAIL
    return Check("runsc", state, runsc.reason, runsc.hint)


def check_sandbox(runsc: Runsc) -> Check:
    """Start a sandbox and ask its kernel who it is."""
    name = "sandbox starts"
    if runsc.path is None or not runsc.build:
        return Check(name, State.FAIL, "not tried: there is no runsc", "fix `runsc` first")
    try:
        said = start_once(runsc.path, own_namespace=os.geteuid() != 0)
    except LaunchError as exc:
        fix = (
            exc.hint or "fix what fails above, then try again; or `torpor install-runsc --from go`"
        )
        return Check(name, State.FAIL, exc.message, fix)
    if platform.release() in said:
        fix = "this is no gVisor: remove that runsc and run `torpor install-runsc`"
        return Check(name, State.FAIL, f"the program saw this host's own kernel: {said}", fix)
    return Check(name, State.OK, f"its kernel says: {' '.join(said.split()[:3])}")
