"""Whether a kernel is ready: it has answered a real kernel_info_request and its iopub reaches us.

A PUB socket (ipykernel before 7 and most other kernels) says nothing when our subscription has
arrived, so the request is repeated until some iopub message was seen, as jupyter_server does; an
XPUB says ``iopub_welcome``.
"""

from __future__ import annotations

import time

from torpor_guest.lean_json import dumps, loads
from torpor_guest.loop import Loop, Timer
from torpor_guest.signing import sign
from torpor_guest.zmtp import Part

TYPE_CHECKING = False  # as mypy knows it; typing itself takes 20 ms to import
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


DELIMITER = b"<IDS|MSG>"
_REPEAT_S = 0.1
_MAX_REPEATS = 20


class Probe:
    """Asks one starting kernel; ``on_ready(kernel_info, iopub_welcome)`` is called at most once."""

    def __init__(
        self,
        loop: Loop,
        key: bytes,
        ask: Callable[[list[Part]], None],
        on_ready: Callable[[dict[str, Any], bool], None],
    ) -> None:
        self._loop = loop
        self._key = key
        self._ask = ask
        self._on_ready = on_ready
        self._timer: Timer | None = None
        self._asked = 0
        self._heard = False
        self._done = False
        self.answer: dict[str, Any] | None = None
        self.welcome = False

    def begin(self) -> None:
        """Send the first request; call it once shell is up. Later calls do nothing."""
        if self._asked == 0:
            self._send()

    def replied(self, parts: list[Part]) -> None:
        """Take a shell message that has no client identity: the reply to our request."""
        try:
            header: Any = loads(bytes(parts[2]))
            if header.get("msg_type") != "kernel_info_reply":
                return
            content = loads(bytes(parts[5]))
        except (ValueError, IndexError, AttributeError):
            return
        self.answer = content if isinstance(content, dict) else {}
        if not self._settle() and self._timer is None:
            self._timer = self._loop.after(_REPEAT_S, self._repeat)

    def heard(self, *, welcome: bool) -> None:
        """Take note that a message came over iopub."""
        self._heard = True
        self.welcome = self.welcome or welcome
        self._settle()

    def cancel(self) -> None:
        """Ask no more; ``on_ready`` will not be called."""
        self._done = True
        if self._timer is not None:
            self._timer.cancel()

    def _settle(self) -> bool:
        silent = self._asked > _MAX_REPEATS  # it publishes no status; that is its own affair
        if not self._done and self.answer is not None and (self._heard or silent):
            self.cancel()
            self._on_ready(self.answer, self.welcome)
        return self._done

    def _repeat(self) -> None:
        self._timer = None
        if not self._settle():
            self._send()

    def _send(self) -> None:
        self._asked += 1
        self._ask(kernel_info_request(self._key, f"torpor-probe-{self._asked}"))


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
