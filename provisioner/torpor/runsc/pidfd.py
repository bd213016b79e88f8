"""Names, watches and ends a process by pid and start time, a child of ours or not."""

from __future__ import annotations

import asyncio
import os
import select
import signal
from contextlib import suppress
from pathlib import Path

_STATE_FIELD = 0
_START_FIELD = 19
_GONE = ("Z", "X", "x", "")


def start_ticks(pid: int) -> int | None:
    """Give when ``pid`` started, in clock ticks since boot; None when it is gone or a zombie."""
    state, started = _seen(pid)
    return None if state in _GONE else started


def _seen(pid: int) -> tuple[str, int | None]:
    """Give state and start of ``pid``, a zombie's too; "" and None for none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (OSError, UnicodeDecodeError):
        return "", None
    fields = text.rpartition(")")[2].split()  # the name before may hold anything
    return fields[_STATE_FIELD], int(fields[_START_FIELD])


async def ended(pid: int, started: int) -> int | None:
    """Return when that very process is gone, with its exit code (-N for signal N) if it is known.

    Only a parent learns it, and only once. Cancelling leaves nothing behind.
    """
    fd = _open(pid, started)
    if fd is not None:
        try:
            await _readable(fd)
        finally:
            os.close(fd)
    return _reap_same(pid, started)


async def kill(pid: int, started: int, *, within_s: float) -> bool:
    """Kill that very process and wait until it is gone; False when it was not in ``within_s``."""
    fd = _open(pid, started)
    if fd is None:
        _reap_same(pid, started)
        return True
    try:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(fd, signal.SIGKILL)
        async with asyncio.timeout(within_s):
            await _readable(fd)
    except TimeoutError:
        return False
    finally:
        os.close(fd)
    _reap_same(pid, started)
    return True


async def reaped(child: int) -> None:
    """Wait for the end of a dying child of this process and collect it."""
    try:
        fd = os.pidfd_open(child)
    except OSError:
        return
    try:
        await _readable(fd)
    finally:
        os.close(fd)
    reap(child)


def reap(pid: int) -> int | None:
    """Collect a dead child of ours and give its exit code; strangers and living ones are left."""
    with suppress(ChildProcessError):
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
    return None


def _open(pid: int, started: int) -> int | None:
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return None
    # Only now does the pid surely stay the same process's. A zombie counts: while threads of it are
    # still dying it looks like one, but cannot be collected yet.
    if _seen(pid)[1] != started:
        os.close(fd)
        return None
    return fd


def _reap_same(pid: int, started: int) -> int | None:
    return reap(pid) if _seen(pid)[1] == started else None


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    gone: asyncio.Future[None] = loop.create_future()

    def report() -> None:
        loop.remove_reader(fd)
        if not gone.done():
            gone.set_result(None)

    if select.select([fd], [], [], 0)[0]:
        return
    loop.add_reader(fd, report)
    try:
        await gone
    finally:
        loop.remove_reader(fd)
