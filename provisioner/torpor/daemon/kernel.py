"""One kernel in this daemon: its row, what was last heard of it, and who waits for news."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from torpor.daemon.guest_state import GuestState, Phase
from torpor.daemon.processes import Interest
from torpor.daemon.records import KernelRow
from torpor.errors import LaunchError
from torpor.lifecycle import Status
from torpor.lifecycle.idle import Tier

T = TypeVar("T")


class Kernel:
    """The live side of a ``KernelRow``. Changes are announced with ``notify``.

    ``lock`` is held by whoever changes what exists of the kernel (launch, removal, ...), one at a
    time.
    """

    def __init__(self, row: KernelRow) -> None:
        self.row = row
        self.guest = GuestState()
        self.lock = asyncio.Lock()
        self.launch: asyncio.Task[Any] | None = None
        """The launch or restart that is on its way."""
        self.removed = False
        """Nothing of it exists any more; its row is only history."""
        self.sandbox_alive = False
        self.sandbox_end: str | None = None
        """Why its last sandbox has ended; None while it lives."""
        self.sandbox_watch: asyncio.Task[Any] | None = None
        self.moving = ""
        """What is being done to it right now: hibernating, fetching, waking; "" for nothing."""
        self.frozen = False
        """Its processes stand still in memory."""
        self.shut_down: int | None = None
        """The exit code of a kernel that was ended while it slept."""
        self.outlook = ""
        """Why it is in its tier, and what comes next, for a person."""
        self.start_reason = ""
        """Why its last start was not the quickest kind; "" when it was."""
        self.started_as = ""
        """How it was started last: claimed, cloned, created, restarted, replaced."""
        self.owner_watch: Interest | None = None
        self.owner_alive = True
        self._news = asyncio.Event()

    def sandbox_ended(self, reason: str) -> None:
        """Take note that the sandbox is no more, or not to be trusted any more."""
        self.sandbox_alive, self.sandbox_end = False, reason
        self.notify()

    @property
    def responsive(self) -> bool:
        """Whether its guest can still be asked."""
        return self.guest.link_error is None

    @property
    def launching(self) -> bool:
        return self.launch is not None

    def notify(self) -> None:
        """Wake everybody who waits in ``until``."""
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return once ``condition`` holds; it is looked at after every change."""
        while not condition():
            await self._news.wait()

    async def while_it_lives(self, work: Coroutine[Any, Any, T]) -> T:
        """Give what ``work`` gives; fail as soon as the sandbox, whose guest it asks, has ended.

        Raises:
            LaunchError: its sandbox ended; ``work`` was cancelled.
        """
        asking = asyncio.create_task(work, name=f"ask {self.row.kernel_id}")
        ended = asyncio.create_task(
            self.until(lambda: self.sandbox_end is not None), name=f"end {self.row.kernel_id}"
        )
        try:
            await asyncio.wait({asking, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                raise LaunchError(f"its sandbox ended: {self.sandbox_end}")
            return asking.result()
        finally:
            for task in (asking, ended):
                task.cancel()
            await asyncio.wait({asking, ended})

    @property
    def state(self) -> str:
        """One of ``starting running frozen hibernating hibernated fetching waking exited gone``."""
        if self.launching or self.row.making or self.row.status is Status.LAUNCHING:
            return "starting"
        if self.row.status is Status.ASLEEP:
            if self.shut_down is not None:
                return "exited"
            return self.moving or "hibernated"
        if self.row.status is Status.LOST or not self.sandbox_alive:
            return "gone"
        if self.guest.ended:
            return "exited"
        if self.guest.phase is Phase.STARTING:
            return "starting"
        return self.moving or ("frozen" if self.frozen else "running")

    @property
    def tier(self) -> Tier:
        """How deep it sleeps."""
        if self.row.status is Status.ASLEEP:
            return Tier.ASLEEP
        return Tier.FROZEN if self.frozen else Tier.AWAKE

    @property
    def ended(self) -> bool:
        """Whether no kernel process runs or is being started."""
        return self.state in ("exited", "gone")

    @property
    def exit_code(self) -> int | None:
        """The exit code of the ended process (negative: the signal); -9 for a dead sandbox."""
        state = self.state
        if state == "gone":
            return -9
        if state != "exited":
            return None
        if self.shut_down is not None:
            return self.shut_down
        return 1 if self.guest.exit_code is None else self.guest.exit_code

    @property
    def reason(self) -> str | None:
        """Why the kernel does not run, readable."""
        if self.state == "gone":
            return self.row.reason or "its sandbox has ended"
        if self.state != "exited":
            return self.row.reason if self.row.status is Status.ASLEEP else None
        if self.shut_down is not None:
            return "it was shut down while it was hibernated"
        ended = f"the kernel process ended with {outcome(self.guest.exit_code)}"
        return self.guest.failure or ended

    def forget_sandbox(self) -> None:
        """Stop watching the sandbox: it is about to be destroyed on purpose. Twice is fine."""
        self.sandbox_alive = False
        if self.sandbox_watch is not None:
            self.sandbox_watch.cancel()
            self.sandbox_watch = None

    def forget_owner(self) -> None:
        """Stop watching the owner. Twice is fine."""
        if self.owner_watch is not None:
            self.owner_watch.close()
            self.owner_watch = None


def outcome(exit_code: int | None) -> str:
    """Say an exit code in words."""
    if exit_code is None:
        return "an unknown exit code"
    return f"signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}"
