"""Messages in a kernel's name, as ipykernel 7 writes them, for when it cannot speak itself.

Pure: what is to be said, and how it looks on the wire. Recorded from ipykernel 7.4: iopub ``status``
busy, the reply, iopub ``status`` idle, each with the request's header as parent; a shutdown's reply
is also published.
"""

from __future__ import annotations

import itertools
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torpor.bridge.messages import DELIMITER, PROTOCOL_VERSION, iso_time
from torpor.bridge.signing import Part, Signer

MAX_WORD_CHARS = 1_024  # of what a kernel calls itself
_FAILED = "WakeFailed"


@dataclass(frozen=True, slots=True)
class Voice:
    """How a kernel signs what it says; ``topic`` is what its iopub topics start with."""

    session: str
    username: str
    version: str
    topic: bytes

    def to_json(self) -> dict[str, str]:
        """Give what ``parse_voice`` reads."""
        topic = self.topic.decode("latin-1")
        known = {"session": self.session, "username": self.username, "version": self.version}
        return {**known, "topic": topic}


def parse_voice(recorded: Mapping[str, Any]) -> Voice | None:
    """Read a voice from a message's header, with ``topic`` added to it, or from ``to_json``."""
    words = {name: recorded.get(name) for name in ("session", "username", "version", "topic")}
    texts = {
        name: word
        for name, word in words.items()
        if isinstance(word, str) and len(word) <= MAX_WORD_CHARS
    }
    if len(texts) < len(words):
        return None
    try:
        topic = texts.pop("topic").encode("latin-1")
    except UnicodeEncodeError:
        return None
    return Voice(**texts, topic=topic)


def stranger(kernel_id: str) -> Voice:
    """Give a voice for a kernel that nothing is known of."""
    return Voice(str(uuid.uuid4()), "torpor", PROTOCOL_VERSION, f"kernel.{kernel_id}.".encode())


@dataclass(frozen=True, slots=True)
class Said:
    """One message: to whoever asked, or published under ``subtopic``. ``content`` is JSON."""

    kind: str
    content: bytes
    subtopic: str = ""


class Speaker:
    """Forms signed messages. The ids of two speakers are never the same."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer
        self._unique = uuid.uuid4().hex[:12]
        self._numbers = itertools.count()

    def message(
        self, voice: Voice, said: Said, identities: Sequence[Part], parent: Part, now: float
    ) -> list[Part]:
        """Give the frames of one message that follows from the one with the header ``parent``."""
        header = {
            "msg_id": f"{voice.session}_{self._unique}_{next(self._numbers)}",
            "msg_type": said.kind,
            "username": voice.username,
            "session": voice.session,
            "date": iso_time(now),
            "version": voice.version,
        }
        body: list[Part] = [packed(header), parent, b"{}", said.content]
        if said.subtopic:
            identities = [voice.topic + said.subtopic.encode()]
        return [*identities, DELIMITER, self._signer.sign(body), *body]


BUSY = Said("status", b'{"execution_state": "busy"}', "status")
IDLE = Said("status", b'{"execution_state": "idle"}', "status")


def answered(kind: str, content: bytes, *, published: str = "") -> list[Said]:
    """Give what a kernel says when it answers a request with ``kind``."""
    also = [Said(kind, content, published)] if published else []
    return [BUSY, Said(kind, content), *also, IDLE]


def refused(kind: str, reason: str) -> list[Said]:
    """Give what is said when a message cannot be handled: an error reply to a request, of its type.

    What is no request has no reply: who sent it waits for "idle" only.
    """
    stem, _, rest = kind.rpartition("_")
    if rest != "request" or not stem:
        return [BUSY, IDLE]
    error: dict[str, Any] = {"ename": _FAILED, "evalue": reason, "traceback": reason.split("\n")}
    content = {"status": "error", **error}
    shown = []
    if kind == "execute_request":
        content["execution_count"] = 0  # nothing ran; jupyter_console wants a number
        shown = [Said("error", packed(error), "error")]
    return [BUSY, *shown, Said(f"{stem}_reply", packed(content)), IDLE]


def packed(value: object) -> bytes:
    """Give ``value`` as JSON; NaN, which is none, raises ValueError."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode(errors="replace")
