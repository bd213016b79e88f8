"""Brings torpord back when it has died and somebody wants a sleeping kernel.

A client that holds only a connection file asks nobody else: its message waits here. So the bridge
runs the command that the last daemon told it (``hello``), as any client would: under the start lock,
and no more than a few times in a row; once where the daemon says that its configuration is wrong. A
daemon that was told to stop has taken the command back.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torpor.bridge.protocol import RequestError
from torpor.bridge.reactor import READ, Reactor, Timer

if TYPE_CHECKING:
    import subprocess

WAIT_S = 1.0
ATTEMPTS = 5
UP_WITHIN_S = 40.0
_SETTLED_S = 10.0
_REAP_S = 0.1
_MOST_TOLD_BYTES = 16_384
_IN_VAIN = "config"
"""The code of errors that trying again cannot mend (``torpor.errors.ConfigError``)."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StartCommand:
    """How torpord is started: its program, all of its environment, and the lock to hold meanwhile."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    lock: str


def parse_starter(request: Mapping[str, Any]) -> StartCommand | None:
    """Read ``starter`` of a ``hello``; None: nobody is to be started.

    Raises:
        RequestError: ``bad_request``.
    """
    given = request.get("starter")
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise RequestError("bad_request", "starter must be an object")
    argv, env, lock = given.get("argv"), given.get("env"), given.get("lock")
    if not isinstance(argv, list) or not argv or not all(isinstance(each, str) for each in argv):
        raise RequestError("bad_request", "starter.argv must be a list of texts")
    if not isinstance(env, Mapping) or not all(isinstance(each, str) for each in env.values()):
        raise RequestError("bad_request", "starter.env must be an object of texts")
    if not isinstance(lock, str) or not lock.startswith("/"):
        raise RequestError("bad_request", "starter.lock must be an absolute path")
    return StartCommand(tuple(argv), dict(env), lock)


class Starter:
    """Of one bridge. ``attached`` and ``wanted`` say how things are; ``given_up`` gets the reason."""

    def __init__(
        self,
        reactor: Reactor,
        *,
        attached: Callable[[], bool],
        wanted: Callable[[], bool],
        given_up: Callable[[str], None],
        wait_s: float = WAIT_S,
    ) -> None:
        self._reactor = reactor
        self._attached = attached
        self._wanted = wanted
        self._given_up = given_up
        self._wait_s = wait_s
        self._command: StartCommand | None = None
        self._timer: Timer | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._fds: list[int] = []  # the pipe that it tells us through, and the lock
        self._told = b""
        self._attempts = 0
        self._failure = ""
        self._attached_at: float | None = None

    def learn(self, command: StartCommand | None) -> None:
        """Take over how the daemon is started from now on."""
        self._command = command
        self.consider()

    def consider(self) -> None:
        """Look at how things are now; call after every change. Cheap."""
        now = time.monotonic()
        if self._attached():
            self._attached_at = self._attached_at or now
            if not self._wanted():  # it has done what it was started for
                self._attempts = 0
            if self._child is None:
                self._cancel()
            return
        if self._attached_at is not None:
            if now - self._attached_at >= _SETTLED_S:
                self._attempts = 0
            self._attached_at = None
        if self._command is None or not self._wanted():
            if self._child is None:
                self._cancel()
        elif self._timer is None and self._child is None:
            self._later(self._wait_s * 2**self._attempts, self._due)

    def close(self) -> None:
        """Give back what a start that is under way holds; the daemon may still come up."""
        self._cancel()
        self._let_go()

    def crashed(self, exc: Exception) -> None:
        """Part of ``Owner``."""
        self._failure = f"{exc!r:.200}"
        self._let_go()

    # -- inner -------------------------------------------------------------------------------

    def _due(self) -> None:
        self._timer = None
        command = self._command
        if command is None or self._attached() or not self._wanted():
            return
        if self._attempts >= ATTEMPTS:
            self._give_up()
            return
        self._attempts += 1
        try:
            self._start(command)
        except BlockingIOError:  # somebody else is starting it
            self._let_go()
            self.consider()
        except OSError as exc:
            self._failure = f"{command.argv[0]} cannot be run: {exc.strerror or exc}"
            self._let_go()
            self.consider()

    def _give_up(self) -> None:
        """Tell those who wait. Whoever wants a kernel from now on has it tried again."""
        self._attempts = 0
        reason = self._failure or "it did not come up"
        logger.error("torpord could not be started: %s", reason)
        self._given_up(f"torpord has died and could not be started again: {reason}")

    def _start(self, command: StartCommand) -> None:
        import subprocess

        logger.warning("torpord is gone and a kernel is wanted: starting it")
        flags = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        lock = os.open(command.lock, flags, 0o600)
        self._fds = [lock]
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        ready, tell = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._fds.append(ready)
        self._told = b""
        try:
            self._child = subprocess.Popen(
                [*command.argv, "--detach", "--ready-fd", str(tell)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[tell],
                start_new_session=True,
                cwd="/",
                env=dict(command.env),
            )
        finally:
            os.close(tell)
        self._reactor.watch(ready, READ, self, self._readable)
        self._later(UP_WITHIN_S, self._late)

    def _readable(self) -> None:
        try:
            chunk = os.read(self._fds[1], _MOST_TOLD_BYTES)
        except BlockingIOError:
            return
        if chunk and len(self._told) < _MOST_TOLD_BYTES:
            self._told += chunk
            return
        self._failure, in_vain = _failure(self._told)
        if self._failure:
            logger.error("torpord did not start: %s", self._failure)
        self._ended()
        if in_vain:
            self._cancel()
            self._give_up()

    def _late(self) -> None:
        self._timer = None
        self._failure = f"it was not ready in {UP_WITHIN_S:g} s"
        assert self._child is not None
        self._child.kill()
        self._ended()

    def _ended(self) -> None:
        """The start is over, well or not. One that is well connects in a moment."""
        self._cancel()
        child, self._child = self._child, None
        self._let_go()
        self._reap(child)
        self.consider()

    def _reap(self, child: subprocess.Popen[bytes] | None) -> None:
        if child is not None and child.poll() is None:
            self._reactor.later(_REAP_S, self, lambda: self._reap(child))

    def _let_go(self) -> None:
        child, self._child = self._child, None
        fds, self._fds = self._fds, []
        for fd in fds:
            with contextlib.suppress(OSError, KeyError, ValueError):
                self._reactor.unwatch(fd)
            os.close(fd)
        self._reap(child)

    def _later(self, after_s: float, callback: Callable[[], None]) -> None:
        self._cancel()
        self._timer = self._reactor.later(after_s, self, callback)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _failure(told: bytes) -> tuple[str, bool]:
    """Give what a daemon said of a start that failed ("" when it is ready), and whether for good."""
    try:
        body = json.loads(told)
        if body.get("ready") is True:
            return "", False
        error = body["error"]
        return str(error["message"])[:500], error.get("code") == _IN_VAIN
    except (ValueError, KeyError, TypeError, AttributeError):
        return "it ended before it was ready; see its log", False
