"""Who clients meet while their kernel is held or asleep: answers, or keeps what they want and tells."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from torpor.bridge.counters import Counters
from torpor.bridge.endpoints import Endpoints
from torpor.bridge.messages import ONLY_LOOKING
from torpor.bridge.presence import Presence, kind_of, runs_a_cell, wants_restart
from torpor.bridge.replies import Said, Speaker, packed, refused, stranger
from torpor.bridge.signing import Part, Signer
from torpor.bridge.waiting import Entry
from torpor.link import Channel

LOOKED_AT_S = 10.0

Publish = Callable[[dict[str, Any]], None]


class FrontDesk:
    """Of one kernel. ``disturbed``, when set, is told of intent instead of the daemon."""

    def __init__(
        self,
        kernel_id: str,
        publish: Publish,
        endpoints: Endpoints,
        signer: Signer,
        counters: Counters,
    ) -> None:
        self._kernel_id = kernel_id
        self._publish = publish
        self._endpoints = endpoints
        self._speaker = Speaker(signer)
        self._stranger = stranger(kernel_id)
        self._counters = counters
        self._told = False
        self._looked_at_s = -LOOKED_AT_S
        self._notice = ""
        self.presence = Presence()
        self.disturbed: Callable[[str], None] | None = None
        endpoints.turn_away_with(self._turn_away)

    def forget_telling(self) -> None:
        """The next intent is told, also if one was before."""
        self._told = False

    @property
    def crowded(self) -> bool:
        """Part of ``Desk``."""
        return self._endpoints.crowded

    def take(self, channel: Channel, parts: list[Part], cut: int) -> None:
        """Answer a message, or let it wait and tell of it.

        Raises:
            Malformed: not even the kernel could read its header.
        """
        kind = kind_of(parts[cut + 2])
        if self.disturbed is not None:
            self._endpoints.waiting.push(channel, parts, cut)
            if kind not in ONLY_LOOKING:
                self.disturbed(kind)
            return
        said = None
        if channel is not Channel.STDIN:
            said = self.presence.answer(kind, parts[cut + 5])
        if said is None:
            self._endpoints.waiting.push(channel, parts, cut)
            self._tell(kind)
            return
        self._counters.answered += 1
        self._say(channel, (parts, cut), said)
        if kind == "kernel_info_request":  # the first thing that every new client asks
            self._looked_at()
        if kind == "shutdown_request":
            restart = wants_restart(parts[cut + 5])
            event = {"event": "shutdown_wanted", "kernel_id": self._kernel_id, "restart": restart}
            self._publish(event)

    def look_again(self) -> None:
        """Take everything that waits once more: what can be answered, is."""
        for channel, (parts, cut) in self._endpoints.waiting.take_all():
            self.take(channel, parts, cut)

    def announce(self, notice: str) -> None:
        """Show ``notice`` to whoever runs the next cell, as something on its stderr.

        It belongs to that cell, as every output does: a message of no cell would be shown nowhere.
        """
        self._notice += notice
        self._endpoints.watch_passing(self._passing)

    def withdraw(self, notice: str) -> None:
        """Undo ``announce``, unless that was shown already."""
        if notice and self._notice.endswith(notice):
            self._notice = self._notice.removesuffix(notice)
            if not self._notice:
                self._endpoints.watch_passing(None)

    def _passing(self, parts: list[Part], cut: int) -> None:
        if not runs_a_cell(parts[cut + 2], parts[cut + 5]):
            return
        self._endpoints.watch_passing(None)
        notice, self._notice = self._notice, ""
        content = packed({"name": "stderr", "text": notice})
        self._say(Channel.SHELL, (parts, cut), [Said("stream", content, "stream.stderr")])

    def refuse_waiting(self, reason: str) -> tuple[int, int]:
        """Tell everybody who waits that it was in vain; see ``refuse``."""
        return self.refuse(self._endpoints.waiting.take_all(), reason)

    def refuse(self, entries: Sequence[tuple[Channel, Entry]], reason: str) -> tuple[int, int]:
        """Tell whoever sent these that it was in vain.

        Gives the number of requests, which got an error reply, and of other messages, dropped.
        """
        replied = dropped = 0
        for channel, entry in entries:
            kind = self._turn_away(channel, entry, reason)
            if channel is not Channel.STDIN and kind.endswith("_request"):
                replied += 1
            else:
                dropped += 1
        if dropped:
            self._counters.dropped["client.wake_failed"] += dropped
        return replied, dropped

    def _turn_away(self, channel: Channel, entry: Entry, reason: str) -> str:
        """Tell whoever sent this that the kernel will not get it; give what it was."""
        kind = kind_of(entry[0][entry[1] + 2])
        if channel is not Channel.STDIN:
            self._say(channel, entry, refused(kind, reason))
        return kind

    def _tell(self, kind: str) -> None:
        if not self._told:
            self._told = True
            event = {"event": "intent", "kernel_id": self._kernel_id, "msg_type": kind}
            self._publish(event)

    def _looked_at(self) -> None:
        now = time.monotonic()
        if now - self._looked_at_s >= LOOKED_AT_S:
            self._looked_at_s = now
            self._publish({"event": "looked_at", "kernel_id": self._kernel_id})

    def _say(self, channel: Channel, entry: Entry, said: Sequence[Said]) -> None:
        parts, cut = entry
        seen = self.presence.seen
        voice = seen.voice if seen is not None else self._stranger
        now = time.time()
        for one in said:
            frames = self._speaker.message(voice, one, parts[:cut], parts[cut + 2], now)
            self._endpoints.say(Channel.IOPUB if one.subtopic else channel, frames)
