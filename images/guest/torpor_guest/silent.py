"""Code that the host has run in the kernel before anybody owns it: warm-up and claim hooks."""

from __future__ import annotations

import time

from torpor.link import Channel

from torpor_guest.lean_json import dumps, loads
from torpor_guest.loop import Loop, Timer
from torpor_guest.probe import DELIMITER
from torpor_guest.signing import sign
from torpor_guest.wires import Wires
from torpor_guest.zmtp import Part

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Answer = Callable[[dict[str, Any]], None]


class Silent:
    """Sends ``execute_request`` (or another request) over shell as nobody's client, one at a time."""

    def __init__(self, loop: Loop, key: str, wires: Wires) -> None:
        self._loop = loop
        self._key = key.encode()
        self._wires = wires
        self._asked = 0
        self._msg_id = ""
        self._answer: Answer | None = None
        self._timer: Timer | None = None

    @property
    def busy(self) -> bool:
        """Whether a request is on its way."""
        return self._answer is not None

    def ask(self, msg_type: str, content: dict[str, Any], timeout_s: float, answer: Answer) -> None:
        """Give the reply's content to ``answer``, or ``{"status": "timeout"}``."""
        self._asked += 1
        self._msg_id = f"torpor-silent-{self._asked}"
        self._answer = answer
        self._timer = self._loop.after(timeout_s, lambda: self._finish({"status": "timeout"}))
        header = {
            "msg_id": self._msg_id,
            "msg_type": msg_type,
            "username": "torpor",
            "session": "torpor",
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "version": "5.3",
        }
        body: list[Part] = [dumps(header), b"{}", b"{}", dumps(content)]
        self._wires.by_channel[Channel.SHELL].send([DELIMITER, sign(self._key, body), *body])

    def kernel_ended(self) -> None:
        """Nobody will answer any more."""
        self._finish({"status": "error", "ename": "DeadKernel", "evalue": "the kernel has ended"})

    def replied(self, parts: list[Part]) -> None:
        """Take a reply to a request of the guest's; those of others are ignored."""
        try:
            parent: Any = loads(bytes(parts[3]))
            content = loads(bytes(parts[5]))
            mine = parent.get("msg_id") == self._msg_id
        except (ValueError, IndexError, AttributeError):
            return
        if mine and isinstance(content, dict):
            self._finish(content)

    def _finish(self, content: dict[str, Any]) -> None:
        answer, self._answer = self._answer, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if answer is not None:
            answer(content)


def execute_content(code: str) -> dict[str, Any]:
    """Give the content of an ``execute_request`` that leaves no trace in history or counters."""
    return {
        "code": code,
        "silent": True,
        "store_history": False,
        "user_expressions": {},
        "allow_stdin": False,
        "stop_on_error": True,
    }
