"""The host's requests, as JSON bodies on the RPC channel, and their answers.

::

    {"id": int, "method": "start|restart|signal|status|ping|check|mapped|run|exit", "params": {}}
    {"id": int, "result": {}}  or  {"id": int, "error": {"code": str, "message": str}}

``check`` is a real kernel_info round trip and gives ``{"kernel_info": {}}``; ``mapped`` gives
``{"files": [str], "open": [str], "peers": [str]}``: what is mapped into the sandbox's processes, what
of the folder ``workspace`` they have open, and whom they are connected with outside. ``run`` has the kernel execute
``code`` as nobody's client, leaves no trace of it, and gives the reply's content. Error codes: ``bad_request`` (what
is wrong is named), ``busy`` (a kernel is running or restarting), ``no_kernel`` (nothing to restart or
signal), ``spawn`` (the program could not be executed).
"""

from __future__ import annotations

import os

from torpor_guest.boot import BootError, parse_start
from torpor_guest.kernel import Kernel, RestartRefused
from torpor_guest.lean_json import loads
from torpor_guest.spawn import SpawnError

TYPE_CHECKING = False  # as mypy knows it; typing itself takes 20 ms to import
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from torpor_guest.kernel import Emit

    Answer = Callable[[dict[str, Any]], None]


_MOST_MAPPED = 20_000


class RpcError(Exception):
    """A request that is refused, with the code and message for the host."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Rpc:
    """Serves requests; answers go through ``emit``, at once or when the work is done."""

    def __init__(
        self,
        kernel: Kernel,
        emit: Emit,
        leave: Callable[[], None],
        ask_kernel: Callable[[Callable[[dict[str, Any]], None]], None],
        ask_silently: Callable[[str, float, Callable[[dict[str, Any]], None]], None],
        more: dict[str, Callable[[dict[str, Any], Answer], None]] | None = None,
    ) -> None:
        self._kernel = kernel
        self._emit = emit
        self._leave = leave
        self._ask_kernel = ask_kernel
        self._ask_silently = ask_silently
        self._methods: dict[str, Callable[[dict[str, Any], Answer], None]] = {
            "start": self._start,
            "restart": self._restart,
            "signal": self._signal,
            "status": lambda _params, answer: answer({"result": kernel.status()}),
            "check": self._check,
            "run": self._run,
            "mapped": self._mapped,
            "ping": lambda _params, answer: answer({"result": {}}),
            "exit": self._exit,
            **(more or {}),
        }

    def serve(self, body: bytes) -> None:
        """Do what one request asks; a body without a readable id is ignored, not answered."""
        try:
            request: Any = loads(body)
            ident, method, params = request["id"], request["method"], request.get("params") or {}
        except (ValueError, KeyError, TypeError, AttributeError):
            return

        def answer(body: dict[str, Any]) -> None:
            self._emit({"id": ident, **body})

        act = self._methods.get(method) if isinstance(method, str) else None
        try:
            if act is None or not isinstance(params, dict):
                raise RpcError("bad_request", f"no method {method!r:.60} with such params")
            act(params, answer)
        except RpcError as exc:
            answer(_error(exc.code, exc.message))
        except BootError as exc:
            answer(_error("bad_request", str(exc)))

    def _start(self, params: dict[str, Any], answer: Answer) -> None:
        wanted = parse_start(params)
        if self._kernel.pid is not None:
            raise RpcError("busy", "a kernel is running in this sandbox")
        try:
            self._kernel.start(wanted)
        except SpawnError as exc:
            raise RpcError("spawn", str(exc)) from exc
        answer(self._started())

    def _restart(self, params: dict[str, Any], answer: Answer) -> None:
        start = params.get("start")
        wanted = None if start is None else parse_start(start)

        def then(error: SpawnError | None) -> None:
            answer(self._started() if error is None else _error("spawn", str(error)))

        try:
            self._kernel.restart(wanted, then)
        except RestartRefused as exc:
            raise RpcError("busy" if self._kernel.generation else "no_kernel", str(exc)) from exc

    def _started(self) -> dict[str, Any]:
        return {"result": {"generation": self._kernel.generation, "pid": self._kernel.pid}}

    def _signal(self, params: dict[str, Any], answer: Answer) -> None:
        signum = params.get("signum")
        if isinstance(signum, bool) or not isinstance(signum, int) or not 0 <= signum <= 64:
            raise RpcError("bad_request", "signum is not a signal number")
        try:
            self._kernel.signal(signum)
        except ProcessLookupError:
            raise RpcError("no_kernel", "there is no kernel process to signal") from None
        answer({"result": {}})

    def _check(self, _params: dict[str, Any], answer: Answer) -> None:
        if self._kernel.state != "ready":
            raise RpcError("no_kernel", f"the kernel is {self._kernel.state}")
        self._ask_kernel(lambda info: answer({"result": {"kernel_info": info}}))

    def _run(self, params: dict[str, Any], answer: Answer) -> None:
        code, timeout_s = params.get("code"), params.get("timeout_s")
        if not isinstance(code, str) or not isinstance(timeout_s, int | float):
            raise RpcError("bad_request", "code is a text and timeout_s a number")
        if self._kernel.state != "ready":
            raise RpcError("no_kernel", f"the kernel is {self._kernel.state}")
        self._ask_silently(code, float(timeout_s), lambda reply: answer({"result": reply}))

    def _mapped(self, params: dict[str, Any], answer: Answer) -> None:
        from torpor_guest.outside import open_files, peers

        result: dict[str, Any] = {"files": mapped_files(), "peers": peers()}
        workspace = params.get("workspace")
        if isinstance(workspace, str):
            result["open"] = open_files(workspace)
        answer({"result": result})

    def _exit(self, _params: dict[str, Any], answer: Answer) -> None:
        answer({"result": {}})
        self._leave()


def mapped_files() -> list[str]:
    """Give the files that are mapped into any process here, as those see them."""
    found: set[str] = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape") as lines:
                for line in lines:
                    path = line.partition("/")[2].rstrip("\n")
                    if path and len(found) < _MOST_MAPPED:
                        found.add(f"/{path}")
        except OSError:  # it has ended meanwhile
            continue
    return sorted(found)


def _error(code: str, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message}}
