"""Stop a sandbox where it is, and let it go on: milliseconds, no runsc.

A stop signal to each of runsc's own processes: the sandbox's first and its children, the sentry among
them, without which no system call and no page fault of the sandbox is served. The processes below the
sentry, in which gVisor's systrap platform runs the sandbox's code, must never get one: stopped and
continued some twenty times they give the kernel a segmentation fault (tests/e2e/test_freezing.py).
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterable

from torpor.backends.base import Handle
from torpor.errors import Busy, SandboxGone
from torpor.runsc import pidfd
from torpor.runsc.family import Member, family, works

_STOP_S = 2.0
_REST_LOOKS = 25
_PAUSE_S = 0.002
_STOPPED = frozenset("TtZX")


async def stop(handle: Handle) -> bool:
    """Stop runsc's processes; twice is fine. False when the sandbox computes on without them.

    Raises:
        SandboxGone: it has ended.
        Busy: it does not stop, and goes on.
    """
    until = time.monotonic() + _STOP_S
    while time.monotonic() < until:
        own = _own(handle)
        running = [each.pid for each in own if each.state not in _STOPPED]
        # A process counts as stopped when its first thread is; the others need a processor for it.
        if not running and not any(works(each.pid) for each in own):
            return await _rests(handle)
        _send(running, signal.SIGSTOP)
        await asyncio.sleep(_PAUSE_S)
    go_on(handle)
    raise Busy(f"sandbox {handle.sandbox_id} could not be stopped in {_STOP_S:g} s: it goes on")


def go_on(handle: Handle) -> None:
    """Undo ``stop``; one that runs is fine. Raises SandboxGone: it has ended."""
    # The first process last: it must not find its children dead to the world.
    _send([each.pid for each in reversed(_own(handle))], signal.SIGCONT)


async def _rests(handle: Handle) -> bool:
    for _ in range(_REST_LOOKS):
        if not any(works(each.pid) for each in _members(handle)):
            return True
        await asyncio.sleep(_PAUSE_S)
    return False


def _own(handle: Handle) -> list[Member]:
    return [each for each in _members(handle) if handle.pid in (each.pid, each.parent)]


def _members(handle: Handle) -> list[Member]:
    if pidfd.start_ticks(handle.pid) != handle.pid_start:
        raise SandboxGone(f"sandbox {handle.sandbox_id} has ended")
    return family(handle.pid)


def _send(pids: Iterable[int], signum: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, signum)
        except ProcessLookupError:
            continue
