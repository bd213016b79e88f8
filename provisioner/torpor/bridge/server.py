"""The bridge process: its kernels, and the operations that the daemon calls on them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import zmq

from torpor.bridge.control import Answer, ControlSocket
from torpor.bridge.kernel import Kernel
from torpor.bridge.protocol import (
    VERSION,
    RequestError,
    parse_fifos,
    parse_kernel_id,
    parse_number,
    parse_open,
)
from torpor.bridge.reactor import Reactor, Timer
from torpor.bridge.record import remove_record
from torpor.bridge.sockets import Socket, new_context
from torpor.errors import ConfigError

IDLE_EXIT_S = 30.0
MAX_RPC_TIMEOUT_S = 3_600.0
CONTEXT_LINGER_S = 1.5

logger = logging.getLogger(__name__)


class Server:
    """Everything in the process. After ``run`` nothing is left but records."""

    def __init__(
        self,
        runtime: Path,
        *,
        idle_exit_s: float = IDLE_EXIT_S,
        context: zmq.Context[Socket] | None = None,
    ) -> None:
        """Listen on ``<runtime>/bridge.sock``.

        Raises:
            OSError: the runtime folder cannot be used.
        """
        self.reactor = Reactor()
        self.kernels: dict[str, Kernel] = {}
        self._context = context or new_context()
        self._idle_exit_s = idle_exit_s
        self._idle: Timer | None = None
        self._records = runtime / "bridge"
        self._records.mkdir(mode=0o700, exist_ok=True)
        self._control = ControlSocket(self.reactor, runtime / "bridge.sock", self._serve)
        self._control.on_change = self._consider_idle
        self._ops: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
            "hello": self._hello,
            "open": self._open,
            "status": lambda request: self._kernel(request).status(),
            "relink": self._relink,
            "unlink": self._unlink,
            "close": self._close,
            "list": lambda _: {"kernels": sorted(self.kernels)},
            "shutdown": self._shutdown,
        }
        self._consider_idle()

    def run(self) -> None:
        """Serve until told to stop, or idle for long enough; then close everything, in order.

        Kernels that are still open lose their endpoints but keep their records, so that the next
        bridge process can resume them.
        """
        try:
            self.reactor.run()
        finally:
            self._control.close()
            for kernel in self.kernels.values():
                kernel.leave()
            self._context.destroy(0)
            self.reactor.close()

    def publish(self, event: dict[str, Any]) -> None:
        """Tell every control connection."""
        self._control.publish(event)

    def _serve(self, request: Mapping[str, Any], answer: Answer) -> None:
        try:
            if request.get("op") == "rpc":
                self._rpc(request, answer)
                return
            operation = self._ops.get(str(request.get("op")))
            if operation is None:
                raise RequestError("unknown_op", f"no operation {request.get('op')!r:.80}")
            answer({"ok": True, "result": operation(request)})
        except RequestError as exc:
            answer({"ok": False, "error": {"code": exc.code, "message": exc.message}})
        except ConfigError as exc:
            answer({"ok": False, "error": {"code": "bad_request", "message": str(exc)}})
        except Exception as exc:
            logger.exception("operation %r failed", request.get("op"))
            answer({"ok": False, "error": {"code": "internal", "message": f"{exc!r:.200}"}})

    def _hello(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return {"version": VERSION, "pid": os.getpid(), "kernels": sorted(self.kernels)}

    def _open(self, request: Mapping[str, Any]) -> dict[str, Any]:
        wanted = parse_open(request)
        if wanted.kernel_id in self.kernels:
            raise RequestError("exists", f"kernel {wanted.kernel_id} is open already")
        kernel = Kernel(self.reactor, self._context, self, wanted, self._records)
        self.kernels[wanted.kernel_id] = kernel
        self._consider_idle()
        logger.info("kernel %s: open, ports %s", kernel.kernel_id, kernel.endpoints.ports)
        return {"ports": kernel.endpoints.ports}

    def _relink(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self._kernel(request).relink(parse_fifos(request))
        return {}

    def _unlink(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self._kernel(request).unlink()
        return {}

    def _close(self, request: Mapping[str, Any]) -> dict[str, Any]:
        kernel_id = parse_kernel_id(request)
        kernel = self.kernels.pop(kernel_id, None)
        if kernel is None:
            remove_record(self._records, kernel_id)
            return {}
        kernel.close()
        logger.info("kernel %s: closed", kernel_id)
        self._consider_idle()
        return {}

    def _shutdown(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if self.kernels and request.get("force") is not True:
            raise RequestError("busy", f"{len(self.kernels)} kernels are open")
        self.reactor.stop()
        return {}

    def _rpc(self, request: Mapping[str, Any], answer: Answer) -> None:
        kernel = self._kernel(request)
        params = request.get("params", {})
        method = request.get("method")
        if not isinstance(params, Mapping) or not isinstance(method, str):
            raise RequestError("bad_request", "rpc needs a method and an object of params")
        timeout_s = parse_number(request, "timeout_s", 30.0, MAX_RPC_TIMEOUT_S)

        def answered(body: dict[str, Any]) -> None:
            answer({"ok": "result" in body, **body})

        kernel.call(method, params, timeout_s, answered)

    def _kernel(self, request: Mapping[str, Any]) -> Kernel:
        kernel_id = parse_kernel_id(request)
        kernel = self.kernels.get(kernel_id)
        if kernel is None:
            raise RequestError("unknown_kernel", f"no kernel {kernel_id} is open")
        return kernel

    def _consider_idle(self) -> None:
        """Exit after a while with nothing to do; a daemon may still come until then."""
        if self.kernels or self._control.connections:
            if self._idle is not None:
                self._idle.cancel()
                self._idle = None
        elif self._idle is None:
            self._idle = self.reactor.later(self._idle_exit_s, self, self.reactor.stop)

    def crashed(self, exc: Exception) -> None:
        """Part of ``Owner``: only ``stop`` runs for us, which cannot fail."""
