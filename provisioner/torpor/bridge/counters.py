"""What went through one kernel's bridge and what did not, and why."""

from __future__ import annotations

from collections import Counter


class Counters:
    """Plain numbers that only grow; they start again at zero with the bridge process."""

    __slots__ = (
        "answered",
        "dropped",
        "from_guest",
        "from_guest_bytes",
        "to_guest",
        "to_guest_bytes",
    )

    def __init__(self) -> None:
        self.to_guest = 0
        self.to_guest_bytes = 0
        self.from_guest = 0
        self.from_guest_bytes = 0
        self.answered = 0  # on behalf of a kernel that was held or asleep
        self.dropped: Counter[str] = Counter()

    def to_json(self) -> dict[str, int]:
        """Give ``{"to_guest": n, …, "dropped.client.bad_signature": n, …}``; reasons only when met.

        The reasons are words of this package, never text of a peer, so their number is bounded.
        """
        counted = {
            "to_guest": self.to_guest,
            "to_guest_bytes": self.to_guest_bytes,
            "from_guest": self.from_guest,
            "from_guest_bytes": self.from_guest_bytes,
            "answered": self.answered,
        }
        return counted | {f"dropped.{reason}": n for reason, n in sorted(self.dropped.items())}
