"""The one place that starts runsc, through the launcher."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from torpor.errors import LaunchError
from torpor.runsc import pidfd
from torpor.runsc.launchers import Launchers

_MAX_REPORT_BYTES = 1 << 16
_GONE_S = 5.0


class Spawned:
    """A process that waits to become runsc; ``notes`` say what had to be done differently."""

    def __init__(self, launchers: Launchers) -> None:
        self.pid = 0
        self._launchers = launchers
        self.notes: tuple[str, ...] = ()
        self._starting: asyncio.Task[asyncio.subprocess.Process] | None = None
        self._entering: asyncio.Task[None] | None = None
        self._running = False

    async def spawn(
        self, plan: Path, owner: tuple[int, int] | None, cgroups: Sequence[str]
    ) -> None:
        """Make the process: set up, a child of this one, waiting for ``go``.

        It runs as ``owner`` (uid, gid), None for the caller's own, in ``cgroups``. After a failure
        or a cancel, `aclose` ends what there is.

        Raises:
            LaunchError: this machine refused a step; the message says which and what to do.
        """
        self._starting = asyncio.create_task(
            self._launchers.start([str(plan), *map(str, owner or ("-", "-"))])
        )
        # A cancel must not hide a process that exists already: `aclose` has to find it.
        launcher = await asyncio.shield(self._starting)
        by_itself, others = _divided(cgroups)
        if others:
            # To be put into a cgroup waits 10 ms and more for RCU: Python starts meanwhile.
            self._entering = asyncio.create_task(_enter(launcher.pid, others))
            await asyncio.shield(self._entering)
        with suppress(ConnectionError):  # it has died; its last words are read below
            _pipes(launcher)[0].write(os.fsencode("\t".join(["in", *by_itself])) + b"\n")
        while not self.pid:
            line = await _pipes(launcher)[1].readline()
            if not self._understood(line):
                raise failure(line + await _pipes(launcher)[1].read(_MAX_REPORT_BYTES))

    async def ready(self) -> None:
        """Wait until a sandbox made ahead of need stands ready for ``go``. Raises as ``spawn``."""
        assert self._starting is not None
        stdout = _pipes(self._starting.result())[1]
        if (line := await stdout.readline()) != b"ready\n":
            raise failure(line + await stdout.read(_MAX_REPORT_BYTES))

    def _understood(self, line: bytes) -> bool:
        word, _, text = line.decode("utf-8", "replace").rstrip("\n").partition(" ")
        if word == "note":
            self.notes += (text,)
        elif word == "pid" and text.isdigit():
            self.pid = int(text)
        else:
            return False
        return True

    async def go(self) -> None:
        """Let it become runsc, and wait until it is.

        Raises:
            LaunchError: it could not; `aclose` removes what is left of it.
        """
        assert self._starting is not None
        stdin, stdout = _pipes(self._starting.result())
        with suppress(ConnectionError):  # it has died; its last words are read below
            stdin.write(b"go\n")
            await stdin.drain()
        report = await stdout.read(_MAX_REPORT_BYTES)
        if report:
            raise failure(report)
        self._running = True
        await self.aclose()

    async def aclose(self) -> None:
        """Let go of a process that became runsc, end any other and wait until it is gone.

        Repeating it is fine.
        """
        if self._starting is None:
            return
        try:
            launcher = await self._starting
        except OSError:
            return  # there never was one
        if self._entering is not None:  # by its pid, which may be another's when it has gone
            await asyncio.wait({self._entering})
            self._entering.exception()  # ``spawn`` has raised it
        stdin, stdout = _pipes(launcher)
        stdin.close()  # the end of its input ends whatever has not become runsc
        try:
            async with asyncio.timeout(_GONE_S):
                while line := await stdout.readline():
                    self._understood(line)
        except TimeoutError:
            with suppress(ProcessLookupError):
                launcher.kill()
        await launcher.wait()
        if self.pid and not self._running:
            with suppress(ProcessLookupError):  # it may have become runsc all the same
                os.kill(self.pid, signal.SIGKILL)
            await pidfd.reaped(self.pid)


class Beside:
    """Programs that will run one after the other in the namespaces of a sandbox, as its owner.

    ``argv`` has ";" between them; ``pid`` is the sandbox's first process.
    """

    def __init__(
        self,
        launchers: Launchers,
        pid: int,
        owner: tuple[int, int] | None,
        argv: Sequence[str],
    ) -> None:
        self._launchers = launchers
        self._argv = ["join", str(pid), *map(str, owner or ("-", "-")), *argv]
        self._spawned: asyncio.Task[asyncio.subprocess.Process] | None = None

    def start(self) -> None:
        """Make the process that will run them: starting it takes longer than what it does."""
        start = self._launchers.start(self._argv)
        self._spawned = asyncio.create_task(start, name="run beside")

    async def run(self, *, within_s: float) -> None:
        """Run them to their end. Once.

        If cancelled or out of time, what runs is killed first, and gone, however often that happens.

        Raises:
            LaunchError: one failed; what it said is in the message.
            TimeoutError: they took too long.
            OSError: there is no process to be had.
        """
        assert self._spawned is not None
        try:
            async with asyncio.timeout(within_s):
                process = await asyncio.shield(self._spawned)
                said, _ = await process.communicate(b"go\n")
        finally:
            await self.aclose()
        if process.returncode != 0:
            text = said.decode("utf-8", "replace").strip()
            gist, hint = _gist(text)
            raise LaunchError(f"runsc failed ({process.returncode}): {gist}", hint=hint)

    async def aclose(self) -> None:
        """Leave nothing of it, also when cancelled. Twice is fine."""
        if self._spawned is None:
            return
        ending = asyncio.create_task(_end(self._spawned), name="end of what ran beside")
        cancelled = None
        while not ending.done():
            try:
                await asyncio.wait({ending})  # unlike ``await ending``, does not cancel it
            except asyncio.CancelledError as exc:
                cancelled = exc
        if cancelled is not None:
            raise cancelled


async def run_beside(
    launchers: Launchers,
    pid: int,
    owner: tuple[int, int] | None,
    argv: Sequence[str],
    *,
    within_s: float,
) -> None:
    """Run ``argv`` in the namespaces of sandbox process ``pid``, as its owner, to its end.

    Raises as ``Beside.run``.
    """
    beside = Beside(launchers, pid, owner, argv)
    beside.start()
    await beside.run(within_s=within_s)


async def _end(spawned: asyncio.Task[asyncio.subprocess.Process]) -> None:
    """Kill a program that may not even have started, and wait until it is gone."""
    try:
        process = await spawned
    except OSError:
        return  # there never was one
    if process.stdin is not None:
        process.stdin.close()
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()
    await process.wait()


def _gist(text: str) -> tuple[str, str]:
    """Give what matters of runsc's words, and a hint: an error of the system hides in a dump."""
    for errno_ in (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM):
        if os.strerror(errno_).lower() in text.lower():
            what = text.partition("&")[0].strip()[:200]  # then come Go's objects
            return f"{os.strerror(errno_)}: {what}", _BY_ERRNO[errno_]
    return text[:600] or "no reason given", ""


def _divided(cgroups: Sequence[str]) -> tuple[list[str], list[str]]:
    """Give the files through which a thread may enter by itself, and the cgroups that have none.

    Only version 1 of cgroups has them; a thread that enters itself need not wait for RCU (Linux 5.16).
    """
    files = {folder: f"{folder}/tasks" for folder in cgroups}
    by_itself = [file for file in files.values() if os.path.exists(file)]
    return by_itself, [folder for folder, file in files.items() if file not in by_itself]


async def _enter(pid: int, cgroups: Sequence[str]) -> None:
    """Put a process into cgroups; one that has died will say itself why. Raises LaunchError."""

    def enter() -> None:
        for folder in cgroups:
            with open(f"{folder}/cgroup.procs", "wb", buffering=0) as file:
                file.write(b"%d" % pid)

    try:
        if cgroups:
            await asyncio.to_thread(enter)
    except ProcessLookupError:
        return
    except OSError as exc:
        raise failure(f"error cgroup {exc.errno or 0} {exc}".encode()) from exc


def _pipes(
    process: asyncio.subprocess.Process,
) -> tuple[asyncio.StreamWriter, asyncio.StreamReader]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


_HINTS = {
    ("namespace", errno.EPERM): "user namespaces are switched off here; see: torpor doctor",
    ("namespace", errno.ENOSPC): "user.max_user_namespaces is 0 or used up; see: torpor doctor",
    ("namespace", errno.ENOSYS): "this kernel has no user namespaces; see: torpor doctor",
    ("runsc", errno.ENOENT): "is runsc still installed? run: torpor install-runsc",
    ("runsc", errno.EACCES): "the runsc file is not executable; run: torpor install-runsc",
    ("runsc", errno.ENOEXEC): "runsc is not for this machine; run: torpor install-runsc",
}
_BY_ERRNO = {
    errno.ENOMEM: "not enough memory for a sandbox: close other programs or kernels",
    errno.EDQUOT: "your share of a disk is used up: free some space",
    errno.ENOSPC: "a disk or a limit is full: free some space",
    errno.EAGAIN: "too many processes: close other programs or kernels",
}


def failure(report: bytes) -> LaunchError:
    """Turn the launcher's report, or what it printed instead, into an error for the user."""
    text = report.decode("utf-8", "replace").strip()
    for line in text.splitlines():
        word, *rest = line.split(" ", 3)
        if word == "error" and len(rest) == 3 and rest[1].isdigit():
            step, number, message = rest[0], int(rest[1]), rest[2]
            hint = _HINTS.get((step, number)) or _BY_ERRNO.get(number, "")
            return LaunchError(f"cannot start a sandbox ({step}): {message}", hint=hint)
    return LaunchError(f"the sandbox launcher failed: {text[-500:] or 'it died without a word'}")
