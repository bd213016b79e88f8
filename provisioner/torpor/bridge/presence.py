"""What may be answered on behalf of a kernel that is held or asleep: requests that only look.

Pure. Whatever is not answered here is intent: it waits and wakes the kernel. That includes what is
only not known, such as the kernel_info of a kernel whose record was lost.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torpor.bridge.messages import MAX_HEADER_BYTES, Malformed, parse_object
from torpor.bridge.replies import Said, Voice, answered, packed, parse_voice
from torpor.bridge.signing import Part

MAX_COMMS_BYTES = 1 << 20  # some 10,000 comms
MAX_CONTENT_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class Seen:
    """What a kernel said last before it was held: its open comms, and how it signs messages."""

    comms: Mapping[str, str]  # target name by id
    voice: Voice

    def to_json(self) -> dict[str, Any]:
        """Give what ``parse_seen`` reads."""
        return {"comms": dict(self.comms), "voice": self.voice.to_json()}


def parse_seen(recorded: object) -> Seen | None:
    """Read what ``to_json`` gave; None when it cannot be read."""
    if not isinstance(recorded, dict):
        return None
    comms, voice = recorded.get("comms"), recorded.get("voice")
    parsed = parse_voice(voice) if isinstance(voice, dict) else None
    if parsed is None or not isinstance(comms, dict):
        return None
    return Seen({str(name): str(target) for name, target in comms.items()}, parsed)


def parse_comms(content: Part) -> dict[str, str] | None:
    """Read the content of a kernel's ``comm_info_reply``; None when it is none, or too long."""
    try:
        reply = parse_object(content, MAX_COMMS_BYTES)
    except Malformed:
        return None
    comms = reply.get("comms")
    if not isinstance(comms, dict):
        return None
    return {
        ident: comm["target_name"]
        for ident, comm in comms.items()
        if isinstance(comm, dict) and isinstance(comm.get("target_name"), str)
    }


class Presence:
    """The answers. ``learn`` before the first."""

    def __init__(self) -> None:
        self.seen: Seen | None = None
        self._kernel_info: bytes | None = None
        self._debug_info: Mapping[str, Any] | None = None

    def learn(
        self,
        kernel_info: Mapping[str, Any] | None,
        seen: Seen | None,
        debug_info: Mapping[str, Any] | None = None,
    ) -> None:
        """Take over what there is to know; None is "not known"."""
        self.seen = seen
        self._debug_info = debug_info
        self._kernel_info = None
        if kernel_info:
            with contextlib.suppress(ValueError):  # a NaN: no client could read it
                self._kernel_info = packed({"status": "ok", **kernel_info})

    def answer(self, kind: str, content: Part) -> list[Said] | None:
        """Give what the kernel would say to a request; None when only itself can say."""
        if kind == "kernel_info_request" and self._kernel_info is not None:
            return answered("kernel_info_reply", self._kernel_info)
        if kind == "comm_info_request" and self.seen is not None:
            return answered("comm_info_reply", self._comm_info(self.seen.comms, content))
        if kind == "debug_request" and self._debug_info is not None:
            return self._debugger(self._debug_info, content)
        if kind == "interrupt_request":  # an idle kernel has nothing to interrupt
            return answered("interrupt_reply", b'{"status": "ok"}')
        if kind == "shutdown_request":
            restart = wants_restart(content)
            reply = packed({"status": "ok", "restart": restart})
            return answered("shutdown_reply", reply, published="shutdown")
        return None

    def _debugger(self, known: Mapping[str, Any], content: Part) -> list[Said] | None:
        """JupyterLab asks debugInfo for every notebook that is opened."""
        if _field(content, "command") != "debugInfo":
            return None
        seq = _field(content, "seq")
        reply = {
            "type": "response",
            "request_seq": seq if type(seq) is int else 0,
            "success": True,
            "command": "debugInfo",
            "body": known,
        }
        with contextlib.suppress(ValueError):  # a NaN
            return answered("debug_reply", packed(reply))
        return None

    def _comm_info(self, comms: Mapping[str, str], content: Part) -> bytes:
        wanted = _field(content, "target_name")
        found = {
            ident: {"target_name": target}
            for ident, target in comms.items()
            if wanted is None or target == wanted
        }
        return packed({"comms": found, "status": "ok"})


def wants_restart(content: Part) -> bool:
    """Say whether the content of a ``shutdown_request`` asks for another kernel process."""
    return _field(content, "restart") is True


def runs_a_cell(header: Part, content: Part) -> bool:
    """Whether a request runs code whose output somebody wants to see."""
    with contextlib.suppress(Malformed):
        return kind_of(header) == "execute_request" and _field(content, "silent") is not True
    return False


def kind_of(header: Part) -> str:
    """Give the type of a client's message.

    Raises:
        Malformed: the header is no JSON object with a textual type; a kernel would drop it, too.
    """
    kind = parse_object(header, MAX_HEADER_BYTES).get("msg_type")
    if not isinstance(kind, str):
        raise Malformed("no_msg_type")
    return kind


def _field(content: Part, name: str) -> object:
    with contextlib.suppress(Malformed):
        return parse_object(content, MAX_CONTENT_BYTES).get(name)
    return None
