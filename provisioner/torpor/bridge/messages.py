"""The shape of Jupyter wire messages: what the bridge lets through, and the few it writes itself.

Both sides are strangers: a client may be anything that can open a local port, and the guest is
hostile as soon as user code ran. So a message is cut and measured here before anything else sees
it, and what does not fit raises ``Malformed`` with a short reason that becomes a counter.

Wire shape (every part is one ZMQ frame)::

    [identity or topic]*  <IDS|MSG>  signature  header  parent  metadata  content  [buffer]*
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from json import JSONDecoder
from typing import Any

from torpor.bridge.signing import Part, Signer

DELIMITER = b"<IDS|MSG>"
MAX_IDENTITIES = 8
MAX_IDENTITY_BYTES = 255  # what libzmq can carry as a routing id
MAX_HEADER_BYTES = (
    16_384  # a header is some 250 bytes; the kernel's session and user name vary a little
)
MAX_STATUS_BYTES = 4_096
PROTOCOL_VERSION = "5.4"

# Requests that only look. As in jupyter_server, they change neither a kernel's state nor its last
# activity, or polling alone would keep every kernel busy for ever.
PRESENCE = frozenset(
    {
        "comm_info_request",
        "kernel_info_request",
        "shutdown_request",
        "interrupt_request",
        "debug_request",
    }
)
# Those of them that wake no kernel and keep none awake.
ONLY_LOOKING = frozenset({"kernel_info_request", "comm_info_request"})
_OPEN, _CLOSE = b"{}"
_BLANKS = 64
_SPACE = " \t\n\r"
STATES = frozenset({"starting", "idle", "busy"})

# json.loads without its checks of type, encoding and blanks; raises StopIteration for a bad start.
_scan: Callable[[str, int], tuple[Any, int]] = JSONDecoder().__dict__["scan_once"]


class Malformed(Exception):
    """The message does not have the shape above; ``reason`` is a word for the counters."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def split_message(parts: Sequence[Part]) -> int:
    """Give the index of the delimiter, after checking the number and length of what surrounds it.

    Raises:
        Malformed: no delimiter within the first frames, an identity too long, or too few parts.
    """
    for index, part in enumerate(parts):
        if part == DELIMITER:
            if len(parts) < index + 6:
                raise Malformed("too_few_parts")
            return index
        if index >= MAX_IDENTITIES or len(part) > MAX_IDENTITY_BYTES:
            break
    raise Malformed("no_delimiter")


def parse_object(part: Part, limit_bytes: int) -> dict[str, Any]:
    """Read one JSON object of at most ``limit_bytes``.

    Raises:
        Malformed: too long, not UTF-8, not JSON, nested beyond the parser's depth, or not an
        object.
    """
    if len(part) > limit_bytes:
        raise Malformed("json_too_long")
    try:
        text = str(part, "utf-8")
        if text[:1] != "{":
            text = text.lstrip(_SPACE)
        value, end = _scan(text, 0)
        if end != len(text) and text[end:].strip(_SPACE):
            raise ValueError("text after the value")
    except (ValueError, StopIteration, RecursionError) as exc:
        raise Malformed("not_json") from exc
    if type(value) is not dict:
        raise Malformed("not_an_object")
    return value


def message_type(body: Sequence[Part]) -> str:
    """Give ``msg_type`` of the four JSON parts of a message that came from the guest.

    Clients trust a signed message to have an object in each part, and both ids in its header. The
    header is parsed; of the others only the braces are looked at, as content can be large.

    Raises:
        Malformed: the header is not an object with a textual ``msg_type`` and ``msg_id``, or
            another part is not an object.
    """
    header = parse_object(body[0], MAX_HEADER_BYTES)
    kind = header.get("msg_type")
    if type(kind) is not str or type(header.get("msg_id")) is not str:
        raise Malformed("no_msg_type")
    for part in body[1:]:
        if not (part and part[0] == _OPEN and part[-1] == _CLOSE) and not _is_spaced_object(part):
            raise Malformed("not_an_object")
    return kind


def _is_spaced_object(part: Part) -> bool:
    space = _SPACE.encode()
    text = bytes(part[:_BLANKS]).lstrip(space) + bytes(part[-_BLANKS:]).rstrip(space)
    return len(text) > 1 and text[0] == _OPEN and text[-1] == _CLOSE


def iso_time(seconds: float) -> str:
    """Give a point in time as Jupyter writes it: UTC, ISO 8601, microseconds, ``Z``."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")[:-6] + "Z"


def welcome_message(topic: bytes, session: str, signer: Signer, now: float) -> list[bytes]:
    """Build ``iopub_welcome`` as ipykernel 7 does (``IOPubThread._send_welcome_message``, JEP 65).

    The topic is a leading frame only when it is not empty, and ``content`` is
    ``{"subscription": topic}``.

    Raises:
        Malformed: the topic is not UTF-8 (ipykernel stays silent then, and so must the caller).
    """
    try:
        subscription = topic.decode()
    except UnicodeDecodeError as exc:
        raise Malformed("topic_not_utf8") from exc
    header = {
        "msg_id": f"{session}_{uuid.uuid4().hex}",
        "msg_type": "iopub_welcome",
        "username": "torpor",
        "session": session,
        "date": iso_time(now),
        "version": PROTOCOL_VERSION,
    }
    body = [_pack(header), b"{}", b"{}", _pack({"subscription": subscription})]
    return [*([topic] if topic else []), DELIMITER, signer.sign(body), *body]


def _pack(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
