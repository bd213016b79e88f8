"""What was passed to a kernel that was restored and has not shown yet that it works.

The first cell that waited is its health check: a kernel says that it is busy with a message before it
does anything about it. Until it has, what was passed is kept, so that it can be answered with an error
if the kernel turns out to be of no use. It is never passed again: it may have been executed.
"""

from __future__ import annotations

from torpor.bridge.inflight import message_cost
from torpor.bridge.messages import MAX_HEADER_BYTES, Malformed, parse_object
from torpor.bridge.signing import Part
from torpor.bridge.waiting import LIMIT_BYTES, LIMIT_MESSAGES, Entry
from torpor.link import Channel


class Unproven:
    """Messages in the order in which they were passed. As bounded as what waits."""

    def __init__(self) -> None:
        self._passed: dict[object, tuple[Channel, Entry]] = {}
        self._on_shell: set[str] = set()
        self._bytes = 0

    def full(self, channel: Channel) -> bool:
        """Say whether nothing more should be passed on ``channel`` until there is a proof.

        Only shell waits: on control, clients interrupt and look.
        """
        over = self._bytes >= LIMIT_BYTES or len(self._passed) >= LIMIT_MESSAGES
        return over and channel is Channel.SHELL

    def passed(self, channel: Channel, parts: list[Part], cut: int) -> None:
        """Keep a message that was passed to the kernel."""
        ident = _ident(parts[cut + 2])
        if channel is Channel.SHELL:
            self._on_shell.add(ident)
        key: object = ident
        if not ident or ident in self._passed:
            key = object()
        self._passed[key] = channel, (parts, cut)
        self._bytes += message_cost(parts)

    def replied(self, parent: Part) -> None:
        """Forget what the kernel has replied to, by the header of that."""
        self._forget(_ident(parent))

    def handled(self, msg_id: str) -> None:
        """Forget what the kernel is done with, after ``proved_by``: some messages have no reply."""
        self._on_shell.discard(msg_id)
        self._forget(msg_id)

    def _forget(self, msg_id: str) -> None:
        found = self._passed.pop(msg_id, None)
        if found is not None:
            self._bytes -= message_cost(found[1][0])

    def proved_by(self, msg_id: str) -> bool:
        """Say whether a status about that message is the proof: it was passed on shell."""
        return bool(msg_id) and msg_id in self._on_shell

    def take_all(self) -> list[tuple[Channel, Entry]]:
        """Empty it; give everything that has no reply, in order."""
        passed, self._passed, self._bytes = self._passed, {}, 0
        self._on_shell.clear()
        return list(passed.values())


def _ident(header: Part) -> str:
    """Give the id of a message, "" where it has none."""
    try:
        ident = parse_object(header, MAX_HEADER_BYTES).get("msg_id")
    except Malformed:
        return ""
    return ident if isinstance(ident, str) else ""
