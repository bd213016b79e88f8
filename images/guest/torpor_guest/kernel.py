"""The life of the kernel process: idle → starting → ready → exited, and again from starting.

Every start has a generation number, from 1. What the host learns of it are these events::

    {"event": "ready", "generation", "pid", "kernel_info": {}, "iopub_welcome": bool}
    {"event": "failed", "generation", "reason": "spawn|exited|timeout", "message", "exit_code",
     "stderr_tail"}
    {"event": "exited", "generation", "exit_code", "stderr_tail"}

``failed`` ends a start that never became ready, ``exited`` a kernel that was; each generation ends
with at most one of them, and only when its process has been reaped.
"""

from __future__ import annotations

import os

from torpor.link import Channel

from torpor_guest.boot import Boot, StartParams
from torpor_guest.launch import Launched, launch
from torpor_guest.loop import Loop, Timer
from torpor_guest.output import Output
from torpor_guest.probe import Probe
from torpor_guest.spawn import SpawnError, kill_session
from torpor_guest.wires import Wires

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Emit = Callable[[dict[str, Any]], None]
    Done = Callable[[SpawnError | None], None]


class RestartRefused(Exception):
    """There was never a kernel, or a restart is under way already; the message says which."""


class Kernel:
    """Owns the kernel process, its connection file and its output; tells ``emit`` about them.

    ``on_dropped(channel, messages, bytes)`` hears of requests that a kernel did not live to take.
    """

    def __init__(
        self,
        loop: Loop,
        boot: Boot,
        folder: str,
        wires: Wires,
        probe: Probe,
        emit: Emit,
        on_dropped: Callable[[Channel, int, int], None],
    ) -> None:
        self._loop = loop
        self._boot = boot
        self._folder = folder
        self._wires = wires
        self._probe = probe
        self._emit = emit
        self._on_dropped = on_dropped
        self._params: StartParams | None = None
        self._launched: Launched | None = None
        self._output: Output | None = None
        self._deadline: Timer | None = None
        self._timed_out = ""
        self._session = 0  # of the last kernel; outlives it while its children stay
        self._after_exit: Callable[[], None] | None = None
        self._kernel_info: dict[str, Any] | None = None
        self._welcome = False
        self._failure: dict[str, Any] | None = None
        self._exit_code: int | None = None
        self.state = "idle"
        self.generation = 0
        self.on_end: Callable[[], None] = _nothing
        """Called whenever a kernel process has ended."""

    @property
    def pid(self) -> int | None:
        """The live kernel process, or None."""
        return self._launched.process.pid if self._launched is not None else None

    def status(self) -> dict[str, Any]:
        """Give what a host that remembers nothing needs to know."""
        return {
            "state": self.state,
            "pid": self.pid,
            "generation": self.generation,
            "exit_code": self._exit_code,
            "kernel_info": self._kernel_info,
            "iopub_welcome": self._welcome,
            "failure": self._failure,
            "stderr_tail": self._tail(),
        }

    def start(self, params: StartParams) -> None:
        """Start a process where there is none; ``ready`` or ``failed`` follows.

        Raises:
            SpawnError: it could not be executed (the ``failed`` event was sent too).
        """
        assert self.pid is None
        try:
            launched: Launched | SpawnError = launch(params, self._folder, self._boot.key)
        except SpawnError as exc:
            launched = exc
        self.adopt(params, launched)
        if isinstance(launched, SpawnError):
            raise launched

    def adopt(self, params: StartParams, launched: Launched | SpawnError) -> None:
        """Take over a process just started for ``params``, or the failure to start it."""
        self._params = params
        self.generation += 1
        self._output = self._failure = self._exit_code = self._kernel_info = None
        self._timed_out = ""
        self._welcome = False
        if isinstance(launched, SpawnError):
            self.state = "exited"
            self._fail("spawn", str(launched))
            return
        self.state = "starting"
        self._launched = launched
        self._session = launched.process.pid
        self._output = Output(self._loop, launched.process.output_fd, self._boot.stderr_tail_bytes)
        self._probe.arm(self._ready)
        self._deadline = self._loop.after(params.start_timeout_s, self._timeout)
        self._wires.open(launched.connection.ports)

    def claimed(self, params: StartParams) -> None:
        """Take note that this kernel is somebody's now, started as if with ``params``; tell again
        that it is ready."""
        self._params = params
        self._tell_ready()

    def restart(self, params: StartParams | None, then: Done) -> None:
        """Kill the old process with all of its session, then start ``params`` (None = as before).

        ``then`` is called when the new process exists, or with why it does not.

        Raises:
            RestartRefused: nothing was done.
        """
        chosen = params or self._params
        if chosen is None:
            raise RestartRefused("no kernel was started in this sandbox")
        if self._after_exit is not None:
            raise RestartRefused("the kernel is being restarted")

        def begin() -> None:
            try:
                self.start(chosen)
            except SpawnError as exc:
                then(exc)
            else:
                then(None)

        self.kill()
        if self.pid is None:
            begin()
        else:
            self._after_exit = begin

    def kill(self) -> None:
        """SIGKILL the kernel and what its session still holds, also of a kernel that has ended."""
        if self._session:
            kill_session(self._session)

    def signal(self, signum: int) -> None:
        """Send a signal to the kernel's process group, as jupyter_client's local provisioner does.

        Raises:
            ProcessLookupError: there is no kernel process.
        """
        pid = self.pid
        if pid is None:
            raise ProcessLookupError
        try:
            os.killpg(pid, signum)
        except ProcessLookupError:  # it has left its group
            os.kill(pid, signum)

    def reaped(self, pid: int, exit_code: int) -> None:
        """Take note that child ``pid`` has ended; any child may be reported."""
        if pid != self.pid or self._launched is None:
            return
        self._wires.close()
        for channel, (messages, size) in self._wires.drop_unsent().items():
            self._on_dropped(channel, messages, size)
        self._launched.connection.remove()
        self._launched = None
        was_ready, self.state = self.state == "ready", "exited"
        self._exit_code = exit_code
        self._end_start()
        if was_ready:
            event = {"event": "exited", "generation": self.generation, "exit_code": exit_code}
            self._emit({**event, "stderr_tail": self._tail()})
        elif self._timed_out:
            self._fail("timeout", self._timed_out)
        else:
            self._fail("exited", f"the kernel {_ending(exit_code)} before it was ready")
        self.on_end()
        begin, self._after_exit = self._after_exit, None
        if begin is not None:
            begin()

    def _ready(self, kernel_info: dict[str, Any], welcome: bool) -> None:
        self._end_start()
        self.state = "ready"
        self._kernel_info, self._welcome = kernel_info, welcome
        self._tell_ready()

    def _tell_ready(self) -> None:
        event = {"event": "ready", "generation": self.generation, "pid": self.pid}
        self._emit({**event, "kernel_info": self._kernel_info, "iopub_welcome": self._welcome})

    def _timeout(self) -> None:
        assert self._params is not None
        within_s = self._params.start_timeout_s
        self._timed_out = f"the kernel {self._probe.stage} within {within_s:g} s"
        self.kill()

    def _end_start(self) -> None:
        self._probe.disarm()
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _fail(self, reason: str, message: str) -> None:
        self._failure = {
            "generation": self.generation,
            "reason": reason,
            "message": message,
            "exit_code": self._exit_code,
            "stderr_tail": self._tail(),
        }
        self._emit({"event": "failed", **self._failure})

    def _tail(self) -> str:
        return self._output.tail() if self._output is not None else ""


def _nothing() -> None:
    pass


def _ending(exit_code: int) -> str:
    if exit_code < 0:
        return f"was killed by signal {-exit_code}"
    return f"exited with code {exit_code}"
