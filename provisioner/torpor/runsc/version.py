"""Which runsc, which build, is it good enough: the only module that answers these questions.

A build is known by what ``runsc --version`` prints first, for example::

    runsc version release-20260907.0
    spec: 1.2.1

Every build that Torpor accepts carries the date of its source in that label: official releases
(``release-YYYYMMDD.N``), builds from the Go module, which we label with their module version
(``v0.0.0-YYYYMMDDhhmmss-COMMIT``, with ``+filters`` where they have their seccomp programs, or
``+filters.quick3`` where they are quicker besides: `torpor.runsc.install_go_quick`), and
Debian's packages (``0.0~YYYYMMDD.N``). A label without a date (``VERSION_MISSING``) cannot be told
apart from other builds, so nothing could say whether a checkpoint of one can be restored by
another: it is refused.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torpor.errors import ConfigError
from torpor.paths import Paths

FLOOR = 20260406
"""Oldest accepted source date. Older builds crash restored kernels: a stale epoll interest is
delivered to libzmq after the restore (gVisor commit 5d857245b, first in release-20260406.0)."""

GO_MODULE = "gvisor.dev/gvisor"
GO_VERSION = "v0.0.0-20260905035102-160fafc42237"
"""The module version that Torpor's own tests run on; also the label that such a build carries."""

FILTERS_SUFFIX = "+filters"
"""Is in the label of a build from the Go module that has its seccomp programs. A label of its own,
because what is built is not what the module alone gives, and because the folder of a build is named
by it: the one beside it may be in use. The price is that of every other build: gVisor and Torpor
restore a checkpoint only with the label that made it."""

QUICK_SUFFIX = f"{FILTERS_SUFFIX}.quick3"
"""Ends the label of one with the changes of `torpor.runsc.install_go_quick`, too. It gets another
number whenever these change."""

RELEASE = "20260907"
"""The official release nearest to ``GO_VERSION``."""

INSTALL_HINT = "run `torpor install-runsc`"
_OLD_HINT = f"{INSTALL_HINT}, or set c.Torpor.allow_old_runsc = True in torpor_config.py"
_ASK_TIMEOUT_S = 20.0

_BUILD_LINE = re.compile(r"^runsc version (\S+)\s*$", re.MULTILINE)
_DATED = re.compile(r"(?:release-|torpor-|0\.0~|v0\.0\.0-)(20\d{6})(?:\d{6})?(?!\d)")


@dataclass(frozen=True, slots=True)
class Runsc:
    """What is known about one runsc.

    ``reason`` says why it is not ``ok``, or what to know although it is; ``hint`` what to do then.
    """

    path: Path | None
    """The real file behind all links, so the same build after an upgrade; None: none found."""
    build: str
    ok: bool
    reason: str = ""
    hint: str = ""

    def require(self) -> Path:
        """Give the path of a good runsc. Raises ConfigError, saying what to do, otherwise."""
        if not self.ok or self.path is None:
            raise ConfigError(self.reason, hint=self.hint)
        return self.path

    def to_json(self) -> dict[str, Any]:
        return {
            "path": None if self.path is None else str(self.path),
            "build": self.build,
            "ok": self.ok,
            "reason": self.reason,
            "hint": self.hint,
        }


def find_runsc(
    paths: Paths,
    override: str | Path | None = None,
    *,
    allow_old: bool = False,
    search_path: str | None = None,
) -> Runsc:
    """Give the runsc to use, or the first one found with the reason why it cannot be used.

    Args:
        override: the one from the configuration or the environment; then no other is looked at.
        allow_old: accept builds below ``FLOOR`` (at the price of restores that crash).
        search_path: folders to search after ``paths.runsc``; None: ``PATH``.
    """
    if override is not None and str(override):
        return inspect_runsc(Path(override), allow_old=allow_old)
    on_path = shutil.which("runsc", path=search_path)
    candidates = [paths.runsc] if os.path.lexists(paths.runsc) else []
    candidates += [Path(on_path)] if on_path else []
    seen = []
    for candidate in candidates:
        seen.append(inspect_runsc(candidate, allow_old=allow_old))
        if seen[-1].ok:
            return seen[-1]
    if seen:
        return seen[0]
    reason = f"no runsc found: neither {paths.runsc} nor a runsc on PATH exists"
    return Runsc(None, "", False, reason, INSTALL_HINT)


def inspect_runsc(path: Path, *, allow_old: bool = False) -> Runsc:
    """Run ``path --version`` and judge the answer. Raises nothing: see ``reason``."""
    real = path.resolve()
    if not real.is_file():
        return Runsc(None, "", False, f"{path} does not exist or is not a file", INSTALL_HINT)
    if not os.access(real, os.X_OK):
        return Runsc(real, "", False, f"{path} may not be executed by you", f"chmod 0755 {real}")
    try:
        output = _ask_version(real)
    except (OSError, subprocess.SubprocessError) as exc:
        return Runsc(real, "", False, f"{path} --version failed: {exc}", INSTALL_HINT)
    build = parse_build(output)
    if build is None:
        reason = f"{path} --version printed {output[:80]!r}, so it is no runsc"
        return Runsc(real, "", False, reason, INSTALL_HINT)
    return judge_build(real, build, allow_old=allow_old)


def judge_build(path: Path, build: str, *, allow_old: bool = False) -> Runsc:
    """Give the verdict on ``build``. Pure."""
    date = build_date(build)
    if date is None:
        reason = f"{path} is build {build!r}, whose label names no gVisor release or module version"
        return Runsc(path, build, False, reason, INSTALL_HINT)
    if date >= FLOOR:
        return Runsc(path, build, True)
    reason = f"{path} is build {build}, older than {FLOOR}, the first that restores reliably"
    return Runsc(path, build, allow_old, reason, _OLD_HINT)


def parse_build(output: str) -> str | None:
    """Give the label in what ``runsc --version`` printed; None when it printed something else."""
    found = _BUILD_LINE.search(output)
    return found.group(1) if found else None


def speaks_control(build: str) -> bool:
    """Whether `torpor.runsc.launcher.control` is known to fit that build, whatever is built into it.

    It is an inner protocol of gVisor's, which may change with any build: others are asked through
    runsc's own commands, which costs a hibernation some 30 ms.
    """
    return build.partition("+")[0] == GO_VERSION


def build_date(build: str) -> int | None:
    """Give the date of the source, as YYYYMMDD, that a build's label or a package version names."""
    found = _DATED.match(build)
    return int(found.group(1)) if found else None


def _ask_version(path: Path) -> str:
    """Give what ``runsc --version`` prints; raises OSError or SubprocessError."""
    ran = subprocess.run(
        [str(path), "--version"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_ASK_TIMEOUT_S,
        check=True,
    )
    return ran.stdout
