"""A client of the bridge's own: it asks a kernel what will have to be known while that is asleep.

The bridge cannot see comms come and go without reading every message, so it asks once, when it is
time. The answer also tells that the kernel is done with everything that went before it on shell, and
how it signs its messages. What it sends in return, also when it comes too late or belongs to a bridge
process that is no more, is known by its identity and ids, and goes to no client.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

from torpor.bridge.messages import (
    DELIMITER,
    MAX_HEADER_BYTES,
    PROTOCOL_VERSION,
    Malformed,
    iso_time,
    parse_object,
)
from torpor.bridge.presence import MAX_CONTENT_BYTES, Seen, parse_comms
from torpor.bridge.replies import Voice, packed, parse_voice
from torpor.bridge.signing import Part, Signer

IDENTITY = b"torpor-bridge"
MSG_ID = "torpor-bridge_"
_STATUS = b"status"


class Probe:
    """One round of questions. ``done`` once each has its reply and the kernel is idle again."""

    def __init__(self, signer: Signer, *, kernel_info_too: bool) -> None:
        kinds = ["comm_info_request"]
        if kernel_info_too:
            kinds.append("kernel_info_request")
        self._signer = signer
        self._ids = {f"{MSG_ID}{uuid.uuid4().hex}": kind for kind in kinds}
        self._unhandled = set(self._ids)
        self._comms: dict[str, str] | None = None
        self._voice: Voice | None = None
        self._topic: bytes = b""
        self._asks_kernel_info = kernel_info_too
        self.kernel_info: dict[str, Any] | None = None
        self.failure = ""

    def requests(self) -> list[list[Part]]:
        """Give the messages for the kernel's shell, signed."""
        return [self._request(ident, kind) for ident, kind in self._ids.items()]

    @property
    def done(self) -> bool:
        """Whether everything has come."""
        known = self.kernel_info is not None or not self._asks_kernel_info
        return self._voice is not None and self._comms is not None and known and not self._unhandled

    @property
    def seen(self) -> Seen:
        """What was learnt. Only when ``done``."""
        assert self._voice is not None
        assert self._comms is not None
        voice = Voice(self._voice.session, self._voice.username, self._voice.version, self._topic)
        return Seen(self._comms, voice)

    def replied(self, kind: str, body: Sequence[Part]) -> None:
        """Take the four JSON parts of a message that the kernel sent to us."""
        try:
            header = parse_object(body[0], MAX_HEADER_BYTES)
            parent = parse_object(body[1], MAX_HEADER_BYTES).get("msg_id")
        except Malformed:
            return
        if parent not in self._ids:
            return  # to an earlier question
        self._voice = parse_voice({**header, "topic": ""})
        if kind == "comm_info_reply":
            self._comms = parse_comms(body[3])
            if self._comms is None:
                self.failure = "the kernel's list of comms is too long, or none"
        elif kind == "kernel_info_reply":
            self.kernel_info = _content(body[3])

    def published(self, topic: Sequence[Part], state: str, msg_id: str) -> None:
        """Take a status that the kernel published about one of our messages."""
        if msg_id not in self._ids:
            return
        name = bytes(topic[0]) if topic else b""
        self._topic = name.removesuffix(_STATUS)
        if state == "idle":
            self._unhandled.discard(msg_id)

    def _request(self, ident: str, kind: str) -> list[Part]:
        header = {
            "msg_id": ident,
            "msg_type": kind,
            "username": "torpor",
            "session": MSG_ID,
            "date": iso_time(time.time()),
            "version": PROTOCOL_VERSION,
        }
        body: list[Part] = [packed(header), b"{}", b"{}", b"{}"]
        return [IDENTITY, DELIMITER, self._signer.sign(body), *body]


def _content(content: Part) -> dict[str, Any] | None:
    try:
        return parse_object(content, MAX_CONTENT_BYTES)
    except Malformed:
        return None
