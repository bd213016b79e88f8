"""Whether a kernel is ready: it has answered a real kernel_info_request and its iopub reaches us.

A PUB socket (ipykernel before 7 and most other kernels) says nothing when our subscription has
arrived, so the request is repeated until some iopub message was seen, as jupyter_server does; an
XPUB says ``iopub_welcome``.
"""

from __future__ import annotations

import time

from torpor.link import Channel

from torpor_guest.lean_json import dumps, loads
from torpor_guest.loop import Loop, Timer
from torpor_guest.signing import sign
from torpor_guest.wires import Wires
from torpor_guest.zmtp import Part

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    OnReady = Callable[[dict[str, Any], bool], None]

DELIMITER = b"<IDS|MSG>"
_REPEAT_S = 0.1
_MAX_REPEATS = 20


class Probe:
    """Asks the kernel that is starting. Idle until ``arm``, and again after ready or ``disarm``."""

    def __init__(self, loop: Loop, key: str, wires: Wires) -> None:
        self._loop = loop
        self._key = key.encode()
        self._wires = wires
        self._on_ready: OnReady | None = None
        self._timer: Timer | None = None
        self._asked = 0
        self._requests = 0
        self._heard = False
        self._welcome = False
        self._answer: dict[str, Any] | None = None

    def arm(self, on_ready: OnReady) -> None:
        """Watch a new kernel process; ``on_ready(kernel_info, iopub_welcome)`` once it is ready."""
        self.disarm()
        self._on_ready = on_ready
        self._asked = 0
        self._heard = self._welcome = False
        self._answer = None

    def ask_again(self, then: Callable[[dict[str, Any]], None]) -> None:
        """Ask a kernel that is ready whether it still is; ``then`` gets its kernel_info, or nothing
        ever happens."""
        self.arm(lambda kernel_info, _welcome: then(kernel_info))
        self._ask()

    def disarm(self) -> None:
        """Ask no more. Twice is fine."""
        self._on_ready = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def stage(self) -> str:
        """How far the kernel has come, for a person."""
        if self._answer is not None:
            return "answered but sent nothing over iopub"
        if self._wires.all_up:
            return "opened its ports but did not answer kernel_info_request"
        return "did not open its ports"

    def wire_up(self) -> None:
        """Take note that a connection to the kernel has come up."""
        if self._on_ready is not None and self._asked == 0 and self._wires.all_up:
            self._ask()

    def replied(self, parts: list[Part]) -> None:
        """Take a reply to a request of ours."""
        try:
            header: Any = loads(bytes(parts[2]))
            if header.get("msg_type") != "kernel_info_reply":
                return
            content = loads(bytes(parts[5]))
        except (ValueError, IndexError, AttributeError):
            return
        self._answer = content if isinstance(content, dict) else {}
        self._settle()
        if self._on_ready is not None and self._timer is None:
            self._timer = self._loop.after(_REPEAT_S, self._repeat)

    def heard(self, welcome: bool) -> None:
        """Take note that a message came over iopub."""
        if self._on_ready is not None:
            self._heard = True
            self._welcome = self._welcome or welcome
            self._settle()

    def _settle(self) -> None:
        silent = self._asked > _MAX_REPEATS  # it publishes no status; that is its own affair
        on_ready = self._on_ready
        if on_ready is not None and self._answer is not None and (self._heard or silent):
            self.disarm()
            on_ready(self._answer, self._welcome)

    def _repeat(self) -> None:
        self._timer = None
        self._settle()
        if self._on_ready is not None:
            self._ask()

    def _ask(self) -> None:
        self._asked += 1
        self._requests += 1  # kernels take a message they have seen already for a replay
        request = kernel_info_request(self._key, f"torpor-probe-{self._requests}")
        self._wires.by_channel[Channel.SHELL].send(request)


def kernel_info_request(key: bytes, msg_id: str) -> list[Part]:
    """Give the signed message parts of one kernel_info_request."""
    header = {
        "msg_id": msg_id,
        "msg_type": "kernel_info_request",
        "username": "torpor",
        "session": "torpor",
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "version": "5.3",
    }
    body: list[Part] = [dumps(header), b"{}", b"{}", b"{}"]
    return [DELIMITER, sign(key, body), *body]
