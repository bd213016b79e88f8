"""Does a sandbox really start here? The shortest real answer: run one small program in one.

`torpor doctor` asks this. Kernels are not started this way (see `torpor.runsc.spawn`).
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from torpor.errors import LaunchError

_TIMEOUT_S = 30.0
_LAST_BYTES = 400


def smoke_argv(runsc: Path, root: Path, *, own_namespace: bool) -> list[str]:
    """Give the command that prints the sandbox's ``/proc/version``. Pure.

    Args:
        root: an empty folder for runsc's state.
        own_namespace: become root in a user namespace first, as an unprivileged user must.
    """
    enter = ["unshare", "--user", "--map-root-user", "--mount", "--"] if own_namespace else []
    flags = ["--root", str(root), "--network=none", "--host-uds=none", "--ignore-cgroups"]
    return [*enter, str(runsc), *flags, "do", "cat", "/proc/version"]


def start_once(runsc: Path, *, own_namespace: bool) -> str:
    """Start a sandbox, give the version its kernel tells, and leave nothing behind.

    Raises:
        LaunchError: it did not start; the message holds runsc's own words.
    """
    if own_namespace and shutil.which("unshare") is None:
        raise LaunchError("the command unshare is missing", hint="install the package util-linux")
    with tempfile.TemporaryDirectory(prefix="torpor-smoke-") as folder:
        argv = smoke_argv(runsc, Path(folder), own_namespace=own_namespace)
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
