"""What is known about one guest: calls to it, its answers and events, and the state they add up to.

The guest may say anything. A reply is one JSON part of bounded size; every field is checked for its
type before it is kept, and events are rationed, because each is passed on to the daemon.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torpor.bridge.messages import Malformed, parse_object
from torpor.bridge.reactor import Owner, Reactor, Timer
from torpor.bridge.signing import Part

MAX_RPC_BYTES = 1 << 18
MAX_TEXT_CHARS = 65_536
EVENT_BURST = 100
EVENTS_PER_S = 20.0
EVENTS = frozenset({"booted", "ready", "failed", "exited", "heartbeat", "dropped"})

Answer = Callable[[dict[str, Any]], None]  # gets {"result": {…}} or {"error": {"code", "message"}}


class Guest:
    """One guest, from the bridge's side."""

    def __init__(
        self,
        reactor: Reactor,
        owner: Owner,
        on_event: Callable[[dict[str, Any]], None],
        send: Callable[[bytes], None],
    ) -> None:
        self._reactor = reactor
        self._owner = owner
        self._on_event = on_event
        self._send = send
        self._calls: dict[int, tuple[Answer, Timer, str]] = {}
        self._next_id = random.getrandbits(40)  # answers to a dead bridge's calls match nothing
        self._allowance = float(EVENT_BURST)
        self._allowance_at = time.monotonic()
        self.forget()

    def forget(self) -> None:
        """Start over, for a new sandbox. Open calls are answered with an error."""
        self.state = "unknown"
        self.generation = 0
        self.kernel_info: dict[str, Any] | None = None
        self.iopub_welcome = False
        self.exit_code: int | None = None
        self.stderr_tail = ""
        self.failure: dict[str, str] | None = None
        self.beating = True
        self.fail_calls("link", "the sandbox is gone")

    @property
    def dead(self) -> bool:
        """Whether the kernel process is known not to run."""
        return self.state in ("failed", "exited")

    def to_json(self) -> dict[str, Any]:
        """Give the guest's part of a status answer; ``load`` takes it back."""
        return {
            "guest": self.state,
            "generation": self.generation,
            "kernel_info": self.kernel_info,
            "iopub_welcome": self.iopub_welcome,
            "exit_code": self.exit_code,
            "stderr_tail": self.stderr_tail,
            "failure": self.failure,
            "beating": self.beating,
        }

    def load(self, recorded: Mapping[str, Any]) -> None:
        """Take back what a bridge process before this one had recorded with ``to_json``."""
        kernel_info, failure = recorded.get("kernel_info"), recorded.get("failure")
        self.state = _text(recorded, "guest", 64) or self.state
        self.generation = _whole(recorded, "generation") or 0
        self.kernel_info = kernel_info if isinstance(kernel_info, dict) else None
        self.iopub_welcome = recorded.get("iopub_welcome") is True
        self.exit_code = _whole(recorded, "exit_code")
        self.stderr_tail = _text(recorded, "stderr_tail")
        self.failure = failure if isinstance(failure, dict) else None
        self.beating = recorded.get("beating") is not False

    def call(
        self, method: str, params: Mapping[str, Any], timeout_s: float, answer: Answer
    ) -> None:
        """Call the guest; ``answer`` gets its reply or, after ``timeout_s``, an error."""
        self._next_id += 1
        ident = self._next_id
        timer = self._reactor.later(timeout_s, self._owner, lambda: self._timed_out(ident))
        self._calls[ident] = (answer, timer, method)
        if method in ("start", "restart"):
            self.state = "starting"
        request = {"id": ident, "method": method, "params": dict(params)}
        self._send(json.dumps(request).encode())

    def fail_calls(self, code: str, message: str) -> None:
        """Answer every open call with an error."""
        calls, self._calls = self._calls, {}
        for answer, timer, _ in calls.values():
            timer.cancel()
            answer({"error": {"code": code, "message": message}})

    def receive(self, parts: Sequence[Part]) -> None:
        """Take one message of the RPC channel.

        Raises:
            Malformed: it is neither a reply nor an event.
        """
        if len(parts) != 1:
            raise Malformed("rpc_parts")
        body = parse_object(parts[0], MAX_RPC_BYTES)
        if "event" in body:
            self._event(body)
        elif type(body.get("id")) is int:
            self._reply(body)
        else:
            raise Malformed("rpc_shape")

    def _reply(self, body: dict[str, Any]) -> None:
        found = self._calls.pop(body["id"], None)
        if found is None:
            return  # it came after its timeout, or answers a bridge that is no more
        answer, timer, _ = found
        timer.cancel()
        result, error = body.get("result"), body.get("error")
        if isinstance(result, dict):
            answer({"result": result})
        elif isinstance(error, dict):
            answer(
                {"error": {"code": _text(error, "code", 64), "message": _text(error, "message")}}
            )
        else:
            answer({"error": {"code": "link", "message": "the guest gave an unreadable answer"}})

    def _timed_out(self, ident: int) -> None:
        found = self._calls.pop(ident, None)
        if found is not None:
            message = f"the guest did not answer {found[2]!r} in time"
            found[0]({"error": {"code": "timeout", "message": message}})

    def _event(self, body: dict[str, Any]) -> None:
        kind = body["event"]
        if type(kind) is not str or kind not in EVENTS:
            raise Malformed("unknown_event")
        self._learn(kind, body)
        if not self._allowed():
            raise Malformed("too_many_events")
        self._on_event(body)

    def _learn(self, kind: str, body: dict[str, Any]) -> None:
        if kind == "heartbeat":
            self.beating = body.get("beating") is not False
        elif kind == "booted":
            self.state = "booted"
        elif kind in ("ready", "failed", "exited"):
            self.state = kind
            self.generation = _whole(body, "generation") or 0
            self.exit_code = None if kind == "ready" else _whole(body, "exit_code")
            self.stderr_tail = _text(body, "stderr_tail")
            self.failure = None
            if kind == "failed":
                reason, message = _text(body, "reason", 64), _text(body, "message")
                self.failure = {"reason": reason, "message": message}
            if kind == "ready":
                found = body.get("kernel_info")
                self.kernel_info = found if isinstance(found, dict) else None
                self.iopub_welcome = body.get("iopub_welcome") is True
                self.beating = True

    def learn_status(self, result: Mapping[str, Any]) -> None:
        """Take over the guest's own ``status`` answer (asked for after a resume)."""
        state = {"idle": "booted", "starting": "starting", "ready": "ready", "exited": "exited"}
        self.state = state.get(_text(result, "state", 64), self.state)
        self.generation = _whole(result, "generation") or self.generation
        if self.dead:
            self.exit_code = _whole(result, "exit_code")
        found = result.get("kernel_info")
        if self.state == "ready" and isinstance(found, dict) and found:
            self.kernel_info = found
            self.iopub_welcome = result.get("iopub_welcome") is True

    def _allowed(self) -> bool:
        now = time.monotonic()
        earned = (now - self._allowance_at) * EVENTS_PER_S
        self._allowance = min(float(EVENT_BURST), self._allowance + earned) - 1
        self._allowance_at = now
        if self._allowance < 0:
            self._allowance = 0.0
            return False
        return True


def _text(source: Mapping[str, Any], name: str, limit: int = MAX_TEXT_CHARS) -> str:
    value = source.get(name)
    return value[-limit:] if isinstance(value, str) else ""


def _whole(source: Mapping[str, Any], name: str) -> int | None:
    value = source.get(name)
    return value if type(value) is int and abs(value) < 1 << 31 else None
