"""The guest put together: loop, link, relay, kernel, and the duties of PID 1."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found, unused-ignore]  # the signal module builds enums for 6 ms
import os
import sys

from torpor.link import Channel, Limits, Link, Role
from torpor.link.fifo import FifoStream

from torpor_guest.boot import Boot, StartParams
from torpor_guest.kernel import Kernel
from torpor_guest.launch import Launched
from torpor_guest.loop import READ, Loop
from torpor_guest.probe import Probe
from torpor_guest.relay import Relay
from torpor_guest.rpc import Rpc
from torpor_guest.spawn import SpawnError, kill_descendants
from torpor_guest.wires import Wires
from torpor_guest.zmtp import Part

TYPE_CHECKING = False  # as mypy knows it; typing itself takes 20 ms to import
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from torpor_guest.silent import Silent


_FAREWELL_S = 0.5
_ENDING = (_signal.SIGTERM, _signal.SIGHUP)
_FORWARDED = (_signal.SIGINT, _signal.SIGQUIT, _signal.SIGUSR1, _signal.SIGUSR2, _signal.SIGWINCH)


class Guest:
    """Everything of one sandbox. ``run`` returns when the host or a signal told it to end."""

    def __init__(
        self, boot: Boot, folder: str, link_fds: tuple[int, int], line_fd: int = -1
    ) -> None:
        queues = {**Limits().queue_bytes, Channel.IOPUB: boot.buffer_bytes}
        limits = Limits(queue_bytes=queues)
        self._loop = Loop()
        self._leaving = False
        self._relay = Relay(
            self._loop,
            Link(Role.GUEST, limits=limits),
            FifoStream(*link_fds),
            boot.buffer_bytes,
            lambda body: self._rpc.serve(body),
            lambda parts: self._on_own_reply(parts),
            lambda welcome: self._probe.heard(welcome),
            self._takes,
            self._loop.stop,
        )
        emit = self._relay.emit
        self._wires = Wires(
            self._loop,
            limits.max_message_bytes,
            self._relay.from_kernel,
            lambda _channel: self._probe.wire_up(),
            lambda beating: emit({"event": "heartbeat", "beating": beating}),
        )
        self._relay.wires = self._wires
        self._probe = Probe(self._loop, boot.key, self._wires)
        self._kernel = Kernel(
            self._loop,
            boot,
            folder,
            self._wires,
            self._probe,
            emit,
            self._relay.count_dropped,
        )
        self._key = boot.key
        self._silent: Any = None
        self._on_own_reply = self._probe.replied
        more = self._golden_methods(boot, line_fd) if boot.golden else None
        self._rpc = Rpc(
            self._kernel, emit, self._leave, self._probe.ask_again, self._ask_silently, more
        )
        self._loop.after_each = self._relay.flush

    def _golden_methods(self, boot: Boot, line_fd: int) -> dict[str, Any]:
        from torpor_guest.golden import Golden
        from torpor_guest.kernel_line import KernelLine

        line = KernelLine(self._loop, line_fd) if line_fd >= 0 else None
        return Golden(self._kernel, self._probe, self._silently(), line).methods()

    def _silently(self) -> Silent:
        from torpor_guest.silent import Silent

        if self._silent is None:
            silent = self._silent = Silent(self._loop, self._key, self._wires)

            def replied(parts: list[Part]) -> None:
                self._probe.replied(parts)
                silent.replied(parts)

            self._on_own_reply = replied
            self._kernel.on_end = silent.kernel_ended
        found: Silent = self._silent
        return found

    def _ask_silently(
        self, code: str, timeout_s: float, answer: Callable[[dict[str, Any]], None]
    ) -> None:
        from torpor_guest.silent import execute_content

        self._silently().ask("execute_request", execute_content(code), timeout_s, answer)

    def run(self, params: StartParams | None, launched: Launched | SpawnError | None) -> None:
        """Serve until told to end, then leave no process of ours behind."""
        self._catch_signals()
        self._relay.emit({"event": "booted", "pid": os.getpid(), "python": sys.version.split()[0]})
        if params is not None and launched is not None:
            self._kernel.adopt(params, launched)
        self._reap()
        try:
            self._relay.flush()
            self._loop.run()
        finally:
            self._kernel.kill()
            if os.getpid() != 1:  # the end of PID 1 is the end of everything in its sandbox
                kill_descendants()
            self._reap()

    def _takes(self, channel: Channel) -> bool:
        """Whether a message is for the present kernel, or worth keeping for the next one.

        A control or stdin message that arrives when there is no kernel was meant for the old one; a
        shutdown_request kept for its successor would kill that.
        """
        return channel is Channel.SHELL or self._kernel.pid is not None

    def _catch_signals(self) -> None:
        read_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        _signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
        for signum in (_signal.SIGCHLD, *_ENDING, *_FORWARDED):
            _signal.signal(signum, _ignore)

        def woken(_events: int) -> None:
            for signum in set(os.read(read_fd, 4096)):
                self._signalled(signum)

        self._loop.watch(read_fd, READ, woken)

    def _signalled(self, signum: int) -> None:
        if signum == _signal.SIGCHLD:
            self._reap()
        elif signum in _ENDING:
            self._leave()
        elif self._kernel.pid is not None:
            self._kernel.signal(signum)

    def _reap(self) -> None:
        """Collect every child that has ended, ours or inherited from an orphan."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._kernel.reaped(pid, os.waitstatus_to_exitcode(status))

    def _leave(self) -> None:
        """End the kernel now, and the guest as soon as the host has heard of it (or will not)."""
        if self._leaving:
            return
        self._leaving = True
        self._kernel.kill()
        self._loop.after(_FAREWELL_S, self._loop.stop)
        self._await_farewell()

    def _await_farewell(self) -> None:
        if self._relay.drained and self._kernel.pid is None:
            self._loop.stop()
        else:
            self._loop.after(0.01, self._await_farewell)


def _ignore(_signum: int, _frame: Any) -> None:
    """The wake-up descriptor has told the loop already."""
