"""One attempt to have a kernel stand still: nothing is asked of it, and nothing is under way.

While it runs, clients' messages wait. The kernel is asked for its comms (``probe``); then everything
that was sent must have been acknowledged, in both directions, and written. It ends early when the
kernel has, or is asked for, something to do. Nothing has changed after an attempt that fails.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from torpor.bridge.body import Subject
from torpor.bridge.probe import Probe
from torpor.bridge.reactor import Reactor, Timer
from torpor.lifecycle.idle import RUNNING
from torpor.link import Channel, QueueFull

LOOK_S = 0.001
STILL_S = 0.003  # nothing has moved for so long
PROBE_S = 5.0
_PROBE_LOOKS = 200  # a machine that stood still for so long has not given the kernel its time


def reason_to_go_on(kernel: Subject) -> str | None:
    """Give why ``kernel`` must not be held now, for a person; None when it may be."""
    if kernel.guest.dead:
        return "the kernel has died"
    if waits_for := kernel.underway.waits_for():
        return waits_for
    if kernel.activity.state == "busy":
        return RUNNING
    if kernel.activity.state != "idle":
        return f"the kernel is {kernel.activity.state}"
    return kernel.underway.reason()


def is_finishing(kernel: Subject) -> bool:
    """Whether all that ``kernel`` was asked has its reply, so that it should be idle in a moment.

    A kernel says that it is idle after it has replied, on another channel; so it is when it handles
    what has no reply, such as a comm message.
    """
    return kernel.activity.state == "busy" and kernel.underway.reason() is None


def idle_since(kernel: Subject) -> float:
    """Give when ``kernel`` was last asked for something, ran something, or said something.

    Seconds since 1970; now while it runs something. Questions that only look do not count.
    """
    if kernel.activity.state == "busy":
        return time.time()
    return max(kernel.activity.last_s, kernel.underway.asked_s)


class Hold:
    """One attempt; ``ended`` is called once, with None or the reason of the failure."""

    def __init__(
        self,
        reactor: Reactor,
        kernel: Subject,
        probe: Probe,
        timeout_s: float,
        ended: Callable[[str | None], None],
    ) -> None:
        self._reactor = reactor
        self._kernel = kernel
        self._ended = ended
        self._timeout_s = timeout_s
        self._until = time.monotonic() + timeout_s
        self._probe_until = time.monotonic() + min(PROBE_S, timeout_s)
        self._looks = 0
        self._moved, self._moved_at = -1, 0.0
        self._timer: Timer | None = None
        self._given_up: str | None = None
        self.probe = probe

    def start(self) -> None:
        """Ask the kernel, and look until it stands still. ``ended`` is never called from here."""
        line = self._kernel.line
        if line is not None:
            with contextlib.suppress(QueueFull):  # then no answer comes
                for request in self.probe.requests():
                    line.send(Channel.SHELL, request)
            line.flush()
        self._look_later()

    def give_up(self, reason: str) -> None:
        """Let it end soon, but not from within this call. The first reason counts."""
        self._given_up = self._given_up or reason

    def cancel(self) -> None:
        """End it without a word."""
        if self._timer is not None:
            self._timer.cancel()

    def _look_later(self) -> None:
        self._timer = self._reactor.later(LOOK_S, self._kernel, self._look)

    def _look(self) -> None:
        self._looks += 1
        reason = self._given_up or reason_to_go_on(self._kernel) or self.probe.failure
        if reason:
            self._ended(reason)
        elif self.probe.done:
            self._look_for_movement()
        elif time.monotonic() >= self._probe_until and self._looks >= _PROBE_LOOKS:
            self._ended("the kernel does not answer comm_info_request")
        else:
            self._look_later()

    def _look_for_movement(self) -> None:
        line, counters, now = self._kernel.line, self._kernel.counters, time.monotonic()
        moved = counters.to_guest + counters.from_guest
        if moved != self._moved:
            self._moved, self._moved_at = moved, now
        still = now - self._moved_at >= STILL_S
        if line is not None:
            line.settle()
        delivered = not self._kernel.endpoints.holding
        if still and delivered and line is not None and line.quiet:
            self._ended(None)
        elif now < self._until:
            self._look_later()
        elif not delivered:
            self._ended("a client does not take what the kernel has sent")
        elif not still:
            self._ended("the kernel keeps sending messages")
        else:
            self._ended(f"the guest did not acknowledge everything in {self._timeout_s:g} s")
