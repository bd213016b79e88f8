"""The distribution's own package: the last resort, because Debian's is years old.

What such a build lacks is said before it is installed: it is below the version floor, so Torpor
refuses it unless old builds are allowed, and restored kernels may crash.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from torpor.runsc.install_staging import Report, SourceUnusable, run_reporting
from torpor.runsc.version import FLOOR, build_date

_INSTALL_TIMEOUT_S = 600.0
_CANDIDATE = re.compile(r"^\s*Candidate:\s*(\S+)\s*$", re.MULTILINE)


def install_package(folder: Path, *, report: Report, accept_old: bool) -> Path:
    """Install the package ``runsc`` with apt-get, as root, and give the path of its program.

    Args:
        accept_old: install it also when it is below the version floor.

    Raises SourceUnusable: no apt-get, not root, no such package, too old, or the install failed.
    """
    apt = shutil.which("apt-get")
    if apt is None:
        raise SourceUnusable("no apt-get on this machine")
    if os.geteuid() != 0:
        raise SourceUnusable("the package needs root: `sudo apt-get install runsc`")
    candidate = _candidate() or _candidate_after_update(apt, folder, report)
    lacks = what_it_lacks(candidate)
    if lacks and not accept_old:
        raise SourceUnusable(f"{lacks}: not installed")
    if lacks:
        report(f"warning: {lacks}")
    _apt([apt, "install", "--yes", "runsc"], folder, report, "installing the package runsc")
    program = shutil.which("runsc")
    if program is None:
        raise SourceUnusable("the package runsc is installed, but it put no runsc on PATH")
    return Path(program)


def what_it_lacks(candidate: str) -> str:
    """Give one sentence on what a package version lacks; empty when it is new enough. Pure."""
    date = build_date(candidate)
    if date is not None and date >= FLOOR:
        return ""
    return (
        f"the distribution's runsc {candidate} is older than {FLOOR}: kernels restored by it may"
        " crash, so it cannot hibernate them, and newer flags are missing"
    )


def parse_candidate(output: str) -> str | None:
    """Give the version that ``apt-cache policy`` would install; None when there is none. Pure."""
    found = _CANDIDATE.search(output)
    return found.group(1) if found and found.group(1) != "(none)" else None


def _candidate() -> str | None:
    try:
        ran = subprocess.run(
            ["apt-cache", "policy", "runsc"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=dict(os.environ, LC_ALL="C"),
        )
    except (OSError, subprocess.SubprocessError) as exc:
        raise SourceUnusable(f"apt-cache failed: {exc}") from exc
    return parse_candidate(ran.stdout)


def _candidate_after_update(apt: str, folder: Path, report: Report) -> str:
    _apt([apt, "update"], folder, report, "asking the distribution for its packages")
    candidate = _candidate()
    if candidate is None:
        raise SourceUnusable("this distribution has no package runsc")
    return candidate


def _apt(argv: list[str], folder: Path, report: Report, what: str) -> None:
    report(what)
    env = dict(os.environ, DEBIAN_FRONTEND="noninteractive", LC_ALL="C")
    log = folder / "apt.log"
    run_reporting(argv, env=env, log=log, timeout_s=_INSTALL_TIMEOUT_S, report=report, what=what)
