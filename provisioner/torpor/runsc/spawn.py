"""The one place that starts runsc, through the launcher."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torpor.errors import LaunchError

LAUNCHER = Path(__file__).parent / "launcher"
_MAX_REPORT_BYTES = 1 << 16
_GONE_S = 5.0


@dataclass(frozen=True, slots=True)
class Spawned:
    """A process that waits to become runsc; ``notes`` say what had to be done differently."""

    pid: int
    notes: tuple[str, ...]
    _launcher: asyncio.subprocess.Process

    async def go(self) -> None:
        """Let it become runsc, and wait until it is.

        Raises:
            LaunchError: it could not; the process is gone.
        """
        stdin, stdout = _pipes(self._launcher)
        try:
            stdin.write(b"go\n")
            await stdin.drain()
        except ConnectionError:
            pass  # it has died; what it said is read below
        report = await stdout.read(_MAX_REPORT_BYTES)
        if report:
            raise _failure(report.splitlines()[0])


@asynccontextmanager
async def spawned_runsc(
    plan: Path, owner: tuple[int, int] | None, cgroups: Sequence[str]
) -> AsyncIterator[Spawned]:
    """Give a sandbox's first process, set up and waiting.

    Leaving the block without ``go``, for whatever reason, ends it and waits until it is gone.

    Raises:
        LaunchError: this machine refused a step; the message says which and what to do.
    """
    uid, gid = owner if owner else (None, None)
    request = {"plan": str(plan), "uid": uid, "gid": gid, "cgroups": list(cgroups)}
    launcher = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-I", "-S", "-E", str(LAUNCHER)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={"PATH": os.defpath},
        cwd="/",
        start_new_session=True,
    )
    stdin, stdout = _pipes(launcher)
    try:
        stdin.write(json.dumps(request).encode() + b"\n")
        report = _report(await stdout.readline())
        yield Spawned(int(report["pid"]), tuple(report["notes"]), launcher)
    finally:
        # Without "go" the end of its input ends it; with "go" its output is closed already. The
        # launcher's own process has left as soon as there is a sandbox process.
        stdin.close()
        if launcher.returncode is None:
            await _ended(launcher, stdout)


async def _ended(launcher: asyncio.subprocess.Process, stdout: asyncio.StreamReader) -> None:
    ending = asyncio.create_task(_drained(launcher, stdout))
    cancelled: asyncio.CancelledError | None = None
    while not ending.done():
        try:
            await asyncio.wait({ending})
        except asyncio.CancelledError as exc:
            cancelled = exc
    if cancelled:
        raise cancelled


async def _drained(launcher: asyncio.subprocess.Process, stdout: asyncio.StreamReader) -> None:
    """Wait until every process that holds the launcher's output has ended or become runsc."""
    try:
        async with asyncio.timeout(_GONE_S):
            while await stdout.read(_MAX_REPORT_BYTES):
                pass
    except TimeoutError:
        launcher.kill()
    await launcher.wait()


def _pipes(
    process: asyncio.subprocess.Process,
) -> tuple[asyncio.StreamWriter, asyncio.StreamReader]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


def _report(line: bytes) -> dict[str, Any]:
    try:
        report = json.loads(line)
    except ValueError:
        report = None
    if isinstance(report, dict) and "pid" in report:
        return report
    raise _failure(line)


_HINTS = {
    ("namespace", 1): "user namespaces are switched off here; see: torpor doctor",
    ("namespace", 28): "user.max_user_namespaces is 0 or used up; see: torpor doctor",
    ("namespace", 38): "this kernel has no user namespaces; see: torpor doctor",
    ("exec", 2): "is runsc still installed? run: torpor install-runsc",
    ("exec", 13): "the runsc file is not executable; run: torpor install-runsc",
    ("exec", 8): "runsc was built for another processor; run: torpor install-runsc",
}
_BY_ERRNO = {
    12: "not enough memory to start a sandbox; close other programs or kernels",
    28: "a disk or limit is full; free some space",
}


def _failure(line: bytes) -> LaunchError:
    """Turn the launcher's report, or what it printed instead, into an error for the user."""
    text = line.decode("utf-8", "replace").strip()
    try:
        error = json.loads(text)["error"]
        step, number, message = str(error["step"]), int(error["errno"]), str(error["message"])
    except (ValueError, KeyError, TypeError):
        return LaunchError(f"the sandbox launcher failed: {text[:500] or 'it died without a word'}")
    hint = _HINTS.get((step, number)) or _BY_ERRNO.get(number, "")
    return LaunchError(f"cannot start a sandbox, at step {step!r}: {message}", hint=hint)
