"""Stop all processes of a sandbox where they are, and let them go on: milliseconds, no runsc.

A stop signal each, sandbox process first: what that would start is not started any more. Everything
that a sandbox runs descends from its first process, which is process 1 of its pid namespace, so
nothing of it can get away; only a process that forks just now needs a second look.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterable

from torpor.backends.base import Handle
from torpor.errors import SandboxGone
from torpor.runsc import pidfd
from torpor.runsc.family import Member, family

_LOOKS = 50
_PAUSE_S = 0.002
_STOPPED = frozenset("TtZX")


async def freeze(handle: Handle) -> None:
    """Do as ``Backend.freeze``."""
    for _ in range(_LOOKS):
        running = [each.pid for each in _members(handle) if each.state not in _STOPPED]
        if not running:
            return
        _send(running, signal.SIGSTOP)
        await asyncio.sleep(_PAUSE_S)
    await thaw(handle)
    raise SandboxGone(f"sandbox {handle.sandbox_id} cannot be stopped: it goes on")


async def thaw(handle: Handle) -> None:
    """Do as ``Backend.thaw``."""
    # The first process last: it must not find its children dead to the world.
    _send([each.pid for each in reversed(_members(handle))], signal.SIGCONT)


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
