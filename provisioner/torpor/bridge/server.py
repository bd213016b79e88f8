"""The bridge process: its kernels, and the operations that the daemon calls on them."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import zmq

from torpor.bridge.asleep import Ended, State
from torpor.bridge.control import Answer, ControlSocket
from torpor.bridge.kernel import Kernel
from torpor.bridge.protocol import (
    VERSION,
    RequestError,
    parse_fifos,
    parse_kernel_id,
    parse_memory,
    parse_notice,
    parse_number,
    parse_open,
    parse_reason,
)
from torpor.bridge.reactor import Reactor, Timer
from torpor.bridge.record import remove_record
from torpor.bridge.sockets import Socket, new_context
from torpor.bridge.starter import Starter, parse_starter
from torpor.errors import ConfigError

IDLE_EXIT_S = 30.0
MAX_RPC_TIMEOUT_S = 3_600.0
HOLD_S = 5.0
WAKE_S = 10.0
PROVE_S = 10.0
MAX_WAIT_S = 60.0
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
        self._starter = Starter(
            self.reactor,
            attached=lambda: bool(self._control.connections),
            wanted=lambda: any(map(_wanted, self.kernels.values())),
            given_up=self._no_daemon,
        )
        self._control.on_change = self._peers_changed
        self._ops: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
            "hello": self._hello,
            "open": self._open,
            "status": lambda request: self._kernel(request).status(),
            "relink": self._relink,
            "unlink": self._unlink,
            "close": self._close,
            "sleep": lambda request: self._kernel(request).hibernation.sleep(parse_memory(request)),
            "wake_failed": self._wake_failed,
            "list": lambda _: {"kernels": sorted(self.kernels)},
            "shutdown": self._shutdown,
        }
        self._answered_later: dict[str, Callable[[Mapping[str, Any], Answer], None]] = {
            "rpc": self._rpc,
            "hold": self._hold,
            "wake": self._wake,
            "release": self._release,
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
            self._control.on_change = lambda: None
            self._starter.close()
            self._control.close()
            for kernel in self.kernels.values():
                kernel.leave()
            self._context.destroy(0)
            self.reactor.close()

    def publish(self, event: dict[str, Any]) -> None:
        """Tell every control connection; when there is none, intent starts the daemon."""
        self._control.publish(event)
        if event.get("event") == "intent":
            self._starter.consider()

    def _serve(self, request: Mapping[str, Any], answer: Answer) -> None:
        try:
            later = self._answered_later.get(str(request.get("op")))
            if later is not None:
                later(request, answer)
                return
            operation = self._ops.get(str(request.get("op")))
            if operation is None:
                raise RequestError("unknown_op", f"no operation {request.get('op')!r:.80}")
            answer({"ok": True, "result": operation(request)})
        except RequestError as exc:
            answer(_refusal(exc))
        except ConfigError as exc:
            answer({"ok": False, "error": {"code": "bad_request", "message": str(exc)}})
        except Exception as exc:
            logger.exception("operation %r failed", request.get("op"))
            answer({"ok": False, "error": {"code": "internal", "message": f"{exc!r:.200}"}})

    def _hello(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if "starter" in request:
            self._starter.learn(parse_starter(request))
        return {"version": VERSION, "pid": os.getpid(), "kernels": sorted(self.kernels)}

    def _open(self, request: Mapping[str, Any]) -> dict[str, Any]:
        wanted = parse_open(request)
        if wanted.kernel_id in self.kernels:
            raise RequestError("exists", f"kernel {wanted.kernel_id} is open already")
        kernel = Kernel(self.reactor, self._context, self.publish, wanted, self._records)
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

    def _hold(self, request: Mapping[str, Any], answer: Answer) -> None:
        timeout_s = parse_number(request, "timeout_s", HOLD_S, MAX_WAIT_S)
        self._kernel(request).hibernation.hold(timeout_s, _ended(answer))

    def _wake(self, request: Mapping[str, Any], answer: Answer) -> None:
        timeout_s = parse_number(request, "timeout_s", WAKE_S, MAX_WAIT_S)
        held = request.get("held") is True
        hibernation = self._kernel(request).hibernation
        hibernation.wake(parse_fifos(request), timeout_s, held=held, ended=_ended(answer))

    def _release(self, request: Mapping[str, Any], answer: Answer) -> None:
        hibernation, notice = self._kernel(request).hibernation, parse_notice(request)
        if request.get("prove_s") is None:
            answer({"ok": True, "result": hibernation.release(notice)})
        else:
            prove_s = parse_number(request, "prove_s", PROVE_S, MAX_WAIT_S)
            hibernation.release_and_prove(notice, prove_s, _ended(answer))
        self._starter.consider()  # nobody may be waiting any more

    def _wake_failed(self, request: Mapping[str, Any]) -> dict[str, Any]:
        hibernation = self._kernel(request).hibernation
        failed = hibernation.wake_failed(parse_reason(request), parse_memory(request))
        self._starter.consider()
        return failed

    def _kernel(self, request: Mapping[str, Any]) -> Kernel:
        kernel_id = parse_kernel_id(request)
        kernel = self.kernels.get(kernel_id)
        if kernel is None:
            raise RequestError("unknown_kernel", f"no kernel {kernel_id} is open")
        return kernel

    def _no_daemon(self, reason: str) -> None:
        """Nobody will wake anybody: who waits for that gets an error, and kernels sleep on."""
        for kernel in self.kernels.values():
            if _wanted(kernel) and kernel.hibernation.state is State.ASLEEP:
                with contextlib.suppress(RequestError):  # it is just being woken
                    kernel.hibernation.wake_failed(f"the kernel could not be woken: {reason}")

    def _peers_changed(self) -> None:
        self._consider_idle()
        self._starter.consider()

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


def _wanted(kernel: Kernel) -> bool:
    """Whether somebody waits for a kernel that only the daemon can let go on."""
    return kernel.hibernation.state is not State.AWAKE and len(kernel.endpoints.waiting) > 0


def _refusal(exc: RequestError) -> dict[str, Any]:
    return {"ok": False, "error": {"code": exc.code, "message": exc.message}}


def _ended(answer: Answer) -> Ended:
    """Give what answers a request once it has ended."""

    def ended(error: RequestError | None, result: dict[str, Any]) -> None:
        answer({"ok": True, "result": result} if error is None else _refusal(error))

    return ended
