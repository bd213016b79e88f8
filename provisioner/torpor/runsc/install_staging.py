"""What all sources of runsc share: a private staging folder, an atomic step into place, progress.

Layout in the data folder (the sidecars of a release must lie beside the real file of its runsc)::

    runsc -> gvisor/release-20260907.0/runsc
    gvisor/release-20260907.0/runsc
    gvisor/release-20260907.0/gvisor-bin/gvisor_sentry ...

An older build stays where it is: running sandboxes and snapshots name their runsc by its real path.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from torpor.paths import Paths
from torpor.runsc.version import Runsc, inspect_runsc

Report = Callable[[str], None]
"""Takes one line of progress, without a newline."""

_STAGING = ".installing-"
_TICK_S = 5.0


class SourceUnusable(Exception):
    """This source cannot give us a runsc: one line on why; the next source may be tried."""


@contextmanager
def staging(paths: Paths, report: Report) -> Iterator[Path]:
    """Give an empty folder on the file system of ``paths.data`` that is gone afterwards.

    One install at a time: a second one waits here. What a killed install left is removed first.
    """
    paths.data.mkdir(parents=True, exist_ok=True)
    with (paths.data / ".install.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("another install of runsc is running; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        for stale in paths.data.glob(f"{_STAGING}*"):
            shutil.rmtree(stale, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=_STAGING, dir=paths.data))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def place(unpacked: Path, paths: Paths, *, allow_old: bool = False) -> Runsc:
    """Move ``unpacked`` (holding ``runsc``, inside the staging folder) into place and point at it.

    Raises SourceUnusable, with nothing changed, when its runsc does not run or is not good enough.
    """
    seen = inspect_runsc(unpacked / "runsc", allow_old=allow_old)
    if not seen.ok:
        raise SourceUnusable(seen.reason)
    for file in unpacked.rglob("*"):
        file.chmod(0o755)
    unpacked.chmod(0o755)
    _flush(unpacked / "runsc")
    home = paths.data / "gvisor" / re.sub(r"[^A-Za-z0-9._-]", "_", seen.build)
    home.parent.mkdir(mode=0o755, exist_ok=True)
    if home.exists():
        home.rename(unpacked.parent / "replaced")
    unpacked.rename(home)
    link = unpacked.parent / "link"
    link.symlink_to((home / "runsc").relative_to(paths.runsc.parent))
    link.replace(paths.runsc)
    return inspect_runsc(paths.runsc, allow_old=allow_old)


def run_reporting(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    log: Path,
    timeout_s: float,
    report: Report,
    what: str,
) -> None:
    """Run ``argv`` to its end with a line of progress every few seconds, its output in ``log``.

    Raises SourceUnusable with its last line when it fails or takes longer than ``timeout_s``. On
    any exit, also by Ctrl-C, the command and its children are gone.
    """
    started = time.monotonic()
    with log.open("wb") as output:
        child = subprocess.Popen(
            argv,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            while child.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    child.wait(_TICK_S)
                    break
                passed_s = time.monotonic() - started
                if passed_s > timeout_s:
                    raise SourceUnusable(f"{what} took longer than {timeout_s:.0f} s")
                report(f"{what}: {passed_s:.0f} s, {_count_lines(log)} steps done")
        finally:
            if child.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    if child.returncode != 0:
        raise SourceUnusable(f"{what} failed: {last_line(log.read_text(errors='replace'))}")


def last_line(text: str) -> str:
    """Give the last line of ``text`` that is not empty, cut to a readable length."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it printed nothing"


def _count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n")


def _flush(path: Path) -> None:
    """Make a file's bytes durable: a crash must not leave an empty runsc behind a good name."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
