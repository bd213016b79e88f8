"""Does a sandbox really start here? The shortest real answer: run one small program in one.

`torpor doctor` asks this, and `torpor install-runsc` of a build with compiled seccomp programs whether
it uses them. Kernels are not started this way (see `torpor.runsc.spawn`).
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from torpor.errors import LaunchError
from torpor.runsc.install_staging import Report

_TIMEOUT_S = 30.0
_LAST_BYTES = 400
_LOADED = "Loaded precompiled seccomp instructions"
_BUILT_ANEW = "No precompiled program found"


def smoke_argv(
    runsc: Path, root: Path, *, own_namespace: bool, flags: Sequence[str] = ()
) -> list[str]:
    """Give the command that prints the sandbox's ``/proc/version``. Pure.

    Args:
        root: an empty folder for runsc's state.
        own_namespace: become root in a user namespace first, as an unprivileged user must.
        flags: more of runsc's own.
    """
    enter = ["unshare", "--user", "--map-root-user", "--mount", "--"] if own_namespace else []
    usual = ["--root", str(root), "--network=none", "--host-uds=none", "--ignore-cgroups"]
    return [*enter, str(runsc), *usual, *flags, "do", "cat", "/proc/version"]


def start_once(runsc: Path, *, own_namespace: bool) -> str:
    """Start a sandbox, give the version its kernel tells, and leave nothing behind.

    Raises:
        LaunchError: it did not start; the message holds runsc's own words.
    """
    with tempfile.TemporaryDirectory(prefix="torpor-smoke-") as folder:
        return _start(runsc, Path(folder), own_namespace, ())


def warn_without_filters(runsc: Path, report: Report, *, own_namespace: bool) -> None:
    """Start a sandbox of ``runsc`` and report it if it does not use compiled seccomp programs.

    Raises nothing: such a runsc works, and where no sandbox starts `torpor doctor` says why.
    """
    with tempfile.TemporaryDirectory(prefix="torpor-smoke-") as folder:
        logs = Path(folder, "logs")
        logs.mkdir()
        try:
            _start(runsc, Path(folder), own_namespace, ("--debug", f"--debug-log={logs}/"))
            words = [path.read_text(errors="replace") for path in logs.iterdir()]
        except (LaunchError, OSError) as exc:
            report(f"whether it uses its seccomp filters could not be seen: {exc}")
            return
    if fault := missing_filters("".join(words)):
        report(f"warning: this runsc does not use its seccomp filters ({fault}): slower starts")


def missing_filters(log: str) -> str:
    """Give what the debug logs of a sandbox say against its seccomp programs; "" if nothing. Pure."""
    if _BUILT_ANEW in log:
        return "one is built at the start"
    return "" if _LOADED in log else "none was loaded"


def _start(runsc: Path, folder: Path, own_namespace: bool, flags: Sequence[str]) -> str:
    if own_namespace and shutil.which("unshare") is None:
        raise LaunchError("the command unshare is missing", hint="install the package util-linux")
    root = folder / "root"
    root.mkdir()
    argv = smoke_argv(runsc, root, own_namespace=own_namespace, flags=flags)
    try:
        ran = subprocess.run(
            argv,
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise LaunchError(f"the sandbox did not answer in {_TIMEOUT_S:g} s") from exc
    except OSError as exc:
        raise LaunchError(f"{argv[0]} cannot be run: {exc.strerror or exc}") from exc
    said = ran.stdout.strip()
    if ran.returncode != 0 or not said.startswith("Linux version"):
        words = (ran.stderr.strip() or said or "it printed nothing")[-_LAST_BYTES:]
        raise LaunchError(f"runsc ended with code {ran.returncode}: {words}")
    return said
