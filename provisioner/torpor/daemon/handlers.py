"""The HTTP edge of the control API: parse, call the daemon, tell the outcome as JSON."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Coroutine, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from tornado import iostream, web

from torpor._version import __version__
from torpor.api import API_HEADER, API_VERSION, parse_launch_request
from torpor.daemon.describe import described
from torpor.daemon.logs import log
from torpor.daemon.processes import Process, peer_process
from torpor.errors import BackendUnavailable, ConfigError, SandboxError, VersionMismatch

if TYPE_CHECKING:
    from torpor.daemon.app import Daemon

_LONGEST_WAIT_S = 600.0
_ANY_VERSION = ("/v1/status", "/v1/shutdown")


class Handler(web.RequestHandler):
    """One request. It is cancelled when its client goes away."""

    daemon: Daemon

    def initialize(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self._work: asyncio.Task[Any] | None = None
        self.left = False
        """Whether the client has gone."""

    def set_default_headers(self) -> None:
        self.set_header(API_HEADER, str(API_VERSION))
        self.set_header("Content-Type", "application/json")

    def prepare(self) -> None:
        stream: iostream.IOStream = self.request.connection.stream  # type: ignore[union-attr]
        self.socket: socket.socket = stream.socket
        asked = self.request.headers.get(API_HEADER, "")
        if asked != str(API_VERSION) and self.request.path not in _ANY_VERSION:
            raise VersionMismatch(
                f"this torpord ({__version__}) speaks version {API_VERSION} of the control API, "
                f"the client version {asked or 'none'}",
                hint="stop the daemon with `torpor daemon stop` when its kernels can go",
            )

    def on_connection_close(self) -> None:
        self.left = True
        if self._work is not None:
            self._work.cancel()

    async def answer(self, coro: Coroutine[Any, Any, Any], *, status: int = 200) -> None:
        """Send what ``coro`` gives. A client that leaves cancels it; it is awaited to its end."""
        self._work = asyncio.create_task(coro, name=f"{self.request.method} {self.request.path}")
        if self.left:
            self._work.cancel()
        # Whoever only looks does not keep torpord from ending.
        keeping = nullcontext() if self.request.method == "GET" else self.daemon.working()
        with keeping:
            await asyncio.wait({self._work})
        if self._work.cancelled():
            if not self.left:
                raise BackendUnavailable("cancelled: the kernel was deleted meanwhile")
            return
        body = self._work.result()
        if not self.left:
            self.set_status(status)
            self.finish(json.dumps(body))

    def body(self) -> Any:
        """Give the parsed body; an empty one is ``{}``. Raises ConfigError."""
        try:
            return json.loads(self.request.body or b"{}")
        except ValueError as exc:
            raise ConfigError(f"the request is not JSON: {exc}") from exc

    def owner(self, wanted: bool) -> Process | None:
        """Give the process at the other end, when a lease is wanted. Raises ConfigError."""
        if not wanted:
            return None
        process = peer_process(self.socket)
        if process is None:
            raise ConfigError(
                "a lease needs a client process that torpord can see",
                hint="it runs in another pid namespace, or has ended",
            )
        return process

    def log_exception(self, *_: Any) -> None:
        """Leave the logging to ``write_error``, which knows the error tree."""

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs.get("exc_info", (None, None, None))[1]
        if not isinstance(error, SandboxError):
            if isinstance(error, web.HTTPError):
                asked = f"{self.request.method} {self.request.path}"
                error = SandboxError(f"{asked}: {error.reason or status_code}")
            else:
                log("request failed", level=logging.ERROR, error=error, path=self.request.path)
                error = SandboxError(f"torpord failed: {error}", hint="see `torpor logs`")
            self.set_status(status_code)
        else:
            self.set_status(error.http_status)
        if not self.left:
            self.finish(json.dumps(error.to_json()))


class StatusHandler(Handler):
    async def get(self) -> None:
        await self.answer(self.daemon.status())


class ShutdownHandler(Handler):
    async def post(self) -> None:
        body = self.body()
        self.daemon.request_stop(force=bool(body.get("force", False)))
        await self.answer(_nothing())


class TemplatesHandler(Handler):
    async def get(self) -> None:
        await self.answer(self._templates())

    async def _templates(self) -> dict[str, Any]:
        settings = await self.daemon.settings()
        default = settings.default_template
        return {
            "templates": [
                {**template.to_json(), "is_default": template.name == default}
                for template in settings.templates.values()
            ]
        }


class KernelsHandler(Handler):
    async def get(self) -> None:
        await self.answer(self._list())

    async def _list(self) -> dict[str, Any]:
        kernels = list(self.daemon.supervisor.kernels.values())
        return {"kernels": [await described(kernel, self.daemon.parts) for kernel in kernels]}

    async def post(self) -> None:
        request, supervisor = parse_launch_request(self.body()), self.daemon.supervisor
        is_new, holder = request.kernel_id not in supervisor.kernels, request.client.holder
        try:
            await self.answer(self.daemon.launch(request, self.owner(request.lease)), status=201)
        finally:
            if self.left and is_new:  # it left at the very moment when the launch succeeded
                await supervisor.delete(request.kernel_id, holder=holder)


class KernelHandler(Handler):
    async def get(self, kernel_id: str) -> None:
        await self.answer(described(self.daemon.supervisor.get(kernel_id), self.daemon.parts))

    async def delete(self, kernel_id: str) -> None:
        holder = self.get_argument("holder", None)
        await self.answer(_then_nothing(self.daemon.supervisor.delete(kernel_id, holder=holder)))


class ActionHandler(Handler):
    """``/v1/kernels/ID/VERB``."""

    async def post(self, kernel_id: str, verb: str) -> None:
        supervisor, body = self.daemon.supervisor, self.body()
        if verb == "signal":
            await self.answer(_then_nothing(supervisor.signal(kernel_id, _signum(body))))
        elif verb == "terminate":
            await self.answer(_then_nothing(supervisor.signal(kernel_id, 15)))
        elif verb == "kill":
            await self.answer(_then_nothing(supervisor.kill(kernel_id)))
        elif verb == "adopt":
            owner = self.owner(bool(body.get("lease", True)))
            await self.answer(_then_nothing(supervisor.adopt(kernel_id, owner)))
        else:
            raise web.HTTPError(404)

    async def get(self, kernel_id: str, verb: str) -> None:
        if verb != "wait":
            raise web.HTTPError(404)
        try:
            timeout_s = min(float(self.get_argument("timeout_s", "60")), _LONGEST_WAIT_S)
        except ValueError as exc:
            raise ConfigError(f"timeout_s is not a number of seconds: {exc}") from exc
        await self.answer(self._wait(kernel_id, timeout_s))

    async def _wait(self, kernel_id: str, timeout_s: float) -> dict[str, Any]:
        kernel = await self.daemon.supervisor.wait(kernel_id, timeout_s)
        return {"exit_code": kernel.exit_code}


class UnknownHandler(Handler):
    def prepare(self) -> None:
        super().prepare()
        raise web.HTTPError(404, reason="no such path in the control API")


def routes(
    daemon: Daemon, more: Sequence[tuple[str, type[Handler]]] = ()
) -> list[tuple[str, type[Handler], dict[str, Any]]]:
    """Give the table of the control API, with ``more`` handlers of other modules."""
    kernel = r"/v1/kernels/([A-Za-z0-9._-]+)"
    table: list[tuple[str, type[Handler]]] = [
        (r"/v1/status", StatusHandler),
        (r"/v1/shutdown", ShutdownHandler),
        (r"/v1/templates", TemplatesHandler),
        (r"/v1/kernels", KernelsHandler),
        *more,
        (kernel, KernelHandler),
        (kernel + r"/([a-z]+)", ActionHandler),
        (r".*", UnknownHandler),
    ]
    return [(path, handler, {"daemon": daemon}) for path, handler in table]


def _signum(body: Any) -> int:
    signum = body.get("signum") if isinstance(body, dict) else None
    if not isinstance(signum, int) or isinstance(signum, bool) or not 0 <= signum <= 64:
        raise ConfigError(f"signum must be between 0 and 64, not {signum!r:.40}")
    return signum


async def _nothing() -> dict[str, Any]:
    return {}


async def _then_nothing(coro: Coroutine[Any, Any, Any]) -> dict[str, Any]:
    await coro
    return {}
