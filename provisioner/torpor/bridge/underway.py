"""What a kernel is in the middle of, besides being busy: why it cannot be put to sleep just now.

Read off the traffic that passes anyway. A message's id and type are found with a search instead of a
parser: this runs for every request and reply. What only looks like them can at worst have a kernel
stay awake. Only requests have replies, so comm messages and input replies are not noted.
"""

from __future__ import annotations

import re
import time

from torpor.bridge.messages import MAX_HEADER_BYTES, ONLY_LOOKING, Malformed, parse_object
from torpor.bridge.signing import Part

MAX_NOTED = 10_000
MAX_DEBUG_BYTES = 65_536  # what tells that a thread stopped or goes on is far shorter
_MSG_ID = re.compile(rb'"msg_id"\s*:\s*"([^"\\]*)"')
_REQUEST = re.compile(rb'"msg_type"\s*:\s*"(\w+_request)"')
_LOOKING = frozenset(kind.encode() for kind in ONLY_LOOKING)


class Underway:
    """Requests without a reply, questions without an answer, threads that a debugger has stopped.

    ``asked_s``: when something else than a look was last passed to the kernel; 0 is never.
    ``debug_info``: what the kernel last said about its debugger, unless something happened since.
    """

    __slots__ = ("_asking", "_requests", "_stopped", "asked_s", "debug_info")

    def __init__(self) -> None:
        self.asked_s = 0.0
        self.debug_info: dict[str, object] | None = None
        self._requests: dict[bytes, bytes] = {}
        self._asking = False
        self._stopped: set[object] = set()

    def clear(self) -> None:
        """Forget everything: the kernel process is another one, or none."""
        self._requests.clear()
        self._asking = False
        self._stopped.clear()
        self.debug_info = None

    def passed(self, header: Part) -> None:
        """Note a message that was passed to the kernel on shell or control."""
        kind = _REQUEST.search(header, 0, MAX_HEADER_BYTES)
        if kind is None or kind[1] not in _LOOKING:
            self.asked_s = time.time()
        if kind is None or len(self._requests) >= MAX_NOTED:
            return
        ident = _MSG_ID.search(header, 0, MAX_HEADER_BYTES)
        if ident is not None:
            self._requests[ident[1]] = kind[1]

    def replied(self, parent: Part) -> None:
        """Note a reply of the kernel, by the header of what it answers."""
        ident = _MSG_ID.search(parent, 0, MAX_HEADER_BYTES)
        if ident is not None:
            self._requests.pop(ident[1], None)
        if not self._requests:
            self._asking = False

    def handled(self, msg_id: str) -> None:
        """Note that the kernel is done with a message: some it never answers."""
        self._requests.pop(msg_id.encode(errors="replace"), None)

    def asked(self) -> None:
        """Note an ``input_request`` of the kernel."""
        self._asking = True

    def answered(self) -> None:
        """Note that something was passed to the kernel on stdin."""
        self.asked_s = time.time()
        self._asking = False

    def debugged(self, kind: str, content: Part) -> None:
        """Note a ``debug_event``, or a ``debug_reply``: to debugInfo, or that the debugger has left."""
        self.debug_info = None
        try:
            said = parse_object(content, MAX_DEBUG_BYTES)
        except Malformed:
            return
        detail = said.get("body")
        body = detail if isinstance(detail, dict) else {}
        thread = body.get("threadId")
        thread = thread if isinstance(thread, int | str) else None
        if kind == "debug_reply":
            self._debugger_replied(said.get("command"), body)
            if said.get("command") == "debugInfo" and said.get("success") is True:
                self.debug_info = body
        elif said.get("event") == "stopped":
            if len(self._stopped) < MAX_NOTED:
                self._stopped.add(thread)
        elif said.get("event") == "continued":
            self._goes_on(thread, everything=body.get("allThreadsContinued") is not False)
        elif said.get("event") == "thread" and body.get("reason") == "exited":
            self._stopped.discard(thread)
        elif said.get("event") in ("terminated", "exited"):
            self._stopped.clear()

    def waits_for(self) -> str | None:
        """Give what of a person a busy kernel waits for; None when it does not."""
        if self._asking:
            return "the kernel waits for an answer to input()"
        return "a debugger has stopped the kernel" if self._stopped else None

    def reason(self) -> str | None:
        """Give why the kernel must not be put to sleep, for a person; None when nothing is open."""
        if waits_for := self.waits_for():
            return waits_for
        if self._requests:
            kind = next(iter(self._requests.values())).decode()
            others = len(self._requests) - 1
            return f"{kind} has no reply yet" + (f", nor have {others} others" if others else "")
        return None

    def _debugger_replied(self, command: object, body: dict[str, object]) -> None:
        if command in ("disconnect", "terminate"):
            self._stopped.clear()
        elif command == "continue":  # after which no event has to come
            self._goes_on(None, everything=body.get("allThreadsContinued") is not False)

    def _goes_on(self, thread: object, *, everything: bool) -> None:
        if everything:
            self._stopped.clear()
        else:
            self._stopped.discard(thread)
