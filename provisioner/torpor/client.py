"""Talk to torpord, and start it when it does not run.

A `Client` keeps nothing between calls: no connection, no event loop. One instance serves any loop,
any thread, and ``asyncio.run(client.kernels())`` is all that a synchronous program needs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from torpor._version import __version__
from torpor.api import API_HEADER, API_VERSION, LaunchRequest
from torpor.errors import (
    BackendUnavailable,
    Busy,
    SandboxError,
    SandboxGone,
    VersionMismatch,
    from_json,
)
from torpor.paths import Paths
from torpor.start import daemon_argv, daemon_ended, start_daemon, start_lock
from torpor.unix_http import BadAnswer, NobodyListens, Response, exchange

CALL_TIMEOUT_S = 70.0
"""Longer than any bound inside the daemon, so that its own explanation wins."""
_PROBE_S = 10.0
_LONGEST_LAUNCH_S = 660.0
_STOP_S = 15.0
_ATTEMPTS = 3
"""One to find that no daemon runs, one to be interrupted by its death, one that counts."""
_TEMPLATES: dict[str, list[dict[str, Any]]] = {}
"""By socket: what each daemon last said."""


class NotRunning(BackendUnavailable):
    """Nobody listens on the socket."""


class Interrupted(BackendUnavailable):
    """The daemon went away in the middle of a request."""


class Client:
    """The control API of one user's torpord.

    Every method that needs the daemon starts it first if need be. Besides what a method names,
    each may raise BackendUnavailable (torpord cannot be started or reached) and VersionMismatch
    (another version of it runs and holds kernels).
    """

    def __init__(self, paths: Paths) -> None:
        self.paths = paths

    async def ensure(self) -> dict[str, Any]:
        """Give the status of a running torpord, started if there was none: once under any race.

        An idle daemon of another version is replaced.

        Raises:
            ConfigError: it cannot start with this configuration, registry or folders.
        """
        status = await self._probe()
        if status is not None and _usable(status):
            return status
        async with start_lock(self.paths):
            status = await self._probe()
            if status is not None and _usable(status):
                return status
            if status is not None:
                await self._retire(status)
            for _ in range(_ATTEMPTS - 1):
                with contextlib.suppress(Busy):  # somebody started one by hand, without our lock
                    await start_daemon(self.paths, daemon_argv())
                # One that has nothing to do may have ended already.
                with contextlib.suppress(NotRunning, Interrupted):
                    return await self.status()
            return await self.status()

    async def status(self) -> dict[str, Any]:
        """Give the status of the running torpord. Raises NotRunning rather than starting one."""
        return await self._send("GET", "/v1/status", timeout_s=_PROBE_S)

    async def shutdown(self, *, force: bool = False) -> None:
        """Stop torpord; returns when it has ended. One that does not run is fine.

        With ``force`` it ends although it holds kernels: they go on, and the next one finds them.

        Raises:
            Busy: it holds kernels.
        """
        try:
            await self._send("POST", "/v1/shutdown", {"force": force})
        except NotRunning:
            return
        except Interrupted:  # it was just ending by itself
            pass
        try:
            async with asyncio.timeout(_STOP_S):
                await daemon_ended(self.paths)
        except TimeoutError as exc:
            raise BackendUnavailable(
                f"torpord was told to stop and has not in {_STOP_S:g} s",
                hint=f"see {self.paths.log}",
            ) from exc

    async def launch(self, request: LaunchRequest) -> dict[str, Any]:
        """Start or restart a kernel, give its state once it has answered. Cancelling undoes it.

        Raises:
            ConfigError, LaunchError, LaunchTimeout: it did not start; nothing new is left behind.
            Busy: this kernel is being started or removed already.
        """
        limit_s = (request.start_timeout_s or _LONGEST_LAUNCH_S) + CALL_TIMEOUT_S
        # A daemon that dies meanwhile takes the half-made kernel with it: asking again is safe.
        return await self.call("POST", "/v1/kernels", request.to_json(), timeout_s=limit_s)

    async def kernels(self) -> list[dict[str, Any]]:
        """Give the state of every kernel."""
        return list((await self.call("GET", "/v1/kernels"))["kernels"])

    async def kernel(self, kernel_id: str) -> dict[str, Any]:
        """Give the state of one kernel. Raises SandboxGone."""
        return await self.call("GET", _path(kernel_id))

    async def signal(self, kernel_id: str, signum: int) -> None:
        """Send a signal to the kernel's process group. Raises SandboxGone."""
        await self.call("POST", _path(kernel_id, "signal"), {"signum": signum}, again=False)

    async def kill(self, kernel_id: str) -> None:
        """Kill the kernel's processes; its sandbox stays. Raises SandboxGone."""
        await self.call("POST", _path(kernel_id, "kill"), {})

    async def terminate(self, kernel_id: str) -> None:
        """Ask the kernel's processes to end (SIGTERM). Raises SandboxGone."""
        await self.call("POST", _path(kernel_id, "terminate"), {})

    async def adopt(self, kernel_id: str, *, lease: bool) -> None:
        """Tie the kernel's life to this process instead of its present owner, or to nobody.

        Raises:
            SandboxGone: there is no such kernel.
        """
        await self.call("POST", _path(kernel_id, "adopt"), {"lease": lease})

    async def wait(self, kernel_id: str, *, timeout_s: float) -> int | None:
        """Give the exit code once the kernel has ended, None after ``timeout_s``.

        Raises:
            SandboxGone: there is no such kernel.
        """
        answer = await self.call(
            "GET",
            f"{_path(kernel_id, 'wait')}?timeout_s={timeout_s}",
            timeout_s=timeout_s + _PROBE_S,
        )
        code = answer.get("exit_code")
        return code if isinstance(code, int) else None

    async def delete(self, kernel_id: str, *, holder: str | None = None) -> None:
        """Destroy a kernel with all that belongs to it; one that does not exist is fine.

        With ``holder``, one that has other endpoints (``Endpoints.holder``) is left alone.
        """
        path = _path(kernel_id) + (f"?holder={holder}" if holder else "")
        try:
            await self.call("DELETE", path)
        except SandboxGone:
            return

    async def templates(self) -> list[dict[str, Any]]:
        """Give every template. Raises ConfigError."""
        return list((await self.call("GET", "/v1/templates"))["templates"])

    async def known_templates(self) -> list[dict[str, Any]]:
        """Give every template as it was when this process last asked. Raises ConfigError.

        Whoever acts on them tells torpord what they said (``LaunchRequest.env_allow``).
        """
        key = str(self.paths.daemon_socket)
        if key not in _TEMPLATES:
            _TEMPLATES[key] = await self.templates()
        return _TEMPLATES[key]

    def forget_templates(self) -> None:
        """Ask for the templates anew next time."""
        _TEMPLATES.pop(str(self.paths.daemon_socket), None)

    async def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        timeout_s: float = CALL_TIMEOUT_S,
        again: bool = True,
    ) -> dict[str, Any]:
        """Send a request, to a daemon that is started or replaced if need be.

        With ``again``, what is safe to repeat is sent again when the daemon went away meanwhile.
        """
        for _ in range(_ATTEMPTS - 1):
            try:
                return await self._send(method, path, body, timeout_s=timeout_s)
            except (NotRunning, VersionMismatch):
                pass
            except Interrupted:
                if not again:
                    raise
            await self.ensure()
        return await self._send(method, path, body, timeout_s=timeout_s)

    async def _send(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> dict[str, Any]:
        """Send one request over a connection of its own; translate whatever goes wrong."""
        headers = {API_HEADER: str(API_VERSION), "Content-Type": "application/json"}
        sent = b"" if body is None else json.dumps(body).encode()
        try:
            async with asyncio.timeout(timeout_s):
                response = await exchange(
                    self.paths.daemon_socket, method, path, headers=headers, body=sent
                )
        except NobodyListens as exc:
            raise NotRunning(
                f"torpord does not run: nothing answers at {self.paths.daemon_socket}",
                hint="start it with `torpor daemon start`",
            ) from exc
        except TimeoutError as exc:
            raise BackendUnavailable(
                f"torpord did not answer {method} {path} in {timeout_s:g} s",
                hint=f"see {self.paths.log}",
            ) from exc
        except PermissionError as exc:
            raise BackendUnavailable(
                f"torpord's socket {self.paths.daemon_socket} is closed to you",
                hint="set TORPOR_HOME to a folder of your own",
            ) from exc
        except (OSError, BadAnswer) as exc:
            raise Interrupted(
                f"torpord went away during {method} {path}: {exc}", hint=f"see {self.paths.log}"
            ) from exc
        return _answer(response)

    async def _probe(self) -> dict[str, Any] | None:
        try:
            return await self.status()
        except (NotRunning, Interrupted):
            return None

    async def _retire(self, status: Mapping[str, Any]) -> None:
        """End an idle daemon of another version. Raises VersionMismatch when it is not idle."""
        try:
            await self.shutdown()
        except Busy as exc:
            raise VersionMismatch(
                f"torpord {status.get('version')} runs and holds kernels; "
                f"this is Torpor {__version__}, and they do not understand each other",
                hint="stop those kernels, then it is replaced by itself",
            ) from exc


def _usable(status: Mapping[str, Any]) -> bool:
    """Whether we can work with that daemon: our version, or busy but speaking our protocol."""
    if status.get("api") != API_VERSION:
        return False
    return status.get("version") == __version__ or bool(status.get("kernels"))


def _answer(response: Response) -> dict[str, Any]:
    try:
        body = json.loads(response.body)
    except ValueError:
        body = None
    if response.status < 300 and isinstance(body, dict):
        return body
    if isinstance(body, dict) and "error" in body:
        raise from_json(body)
    raise SandboxError(
        f"torpord gave an answer that is none of ours (HTTP {response.status})",
        hint="does another program listen on its socket?",
    )


def _path(kernel_id: str, verb: str = "") -> str:
    return f"/v1/kernels/{quote(kernel_id, safe='')}" + (f"/{verb}" if verb else "")
