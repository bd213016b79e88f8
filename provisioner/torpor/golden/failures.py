"""Builds that failed: why, when, how often in a row, and when the next one may start.

``<root>/<key>/last-failure.json`` outlives the daemon, or a kernel that cannot be checkpointed would
be tried again at each of its starts.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from torpor.golden import fields as read
from torpor.golden.disk import make_private, read_plain, remove_empty, require_private, write_plain
from torpor.golden.manifest import GoldenUnusable, check_key

FAILURE = "last-failure.json"
_FIRST_WAIT_S = 10.0
_LONGEST_WAIT_S = 3600.0
_DOUBLINGS = 9  # 10 s * 2**9 is past the longest wait
_LIMIT_BYTES = 1 << 16
_REASON_CHARACTERS = 4000
_FORGOTTEN_AFTER_S = 7 * 86400.0


@dataclass(frozen=True, slots=True)
class Failure:
    """The last failure of a key's builds; ``at`` in seconds since 1970, ``in_a_row`` from 1."""

    reason: str
    at: float
    in_a_row: int

    @property
    def wait_s(self) -> float:
        """How long after it no build may start."""
        return min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0 ** min(self.in_a_row - 1, _DOUBLINGS))

    def left_s(self, now: float) -> float:
        """How long there is still to wait; 0 also when the clock was set back since."""
        left = self.at + self.wait_s - now
        return left if 0 < left <= self.wait_s else 0.0

    def forgotten(self, now: float) -> bool:
        """Whether it is too long ago to matter, as for an environment that is no more."""
        return now - self.at > _FORGOTTEN_AFTER_S


class Failures:
    """The failures of all keys below ``root``. Changes under the lock of ``root``."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._unwritten: dict[str, Failure] = {}

    def last(self, key: str) -> Failure | None:
        """Give the last failure of ``key``; None when there is none or it cannot be read."""
        if unwritten := self._unwritten.get(check_key(key)):
            return unwritten
        try:
            require_private(self._root / key)
            return parse_failure(read_plain(self._root / key / FAILURE, _LIMIT_BYTES))
        except (OSError, ValueError, GoldenUnusable):
            return None

    def record(self, key: str, reason: str, now: float) -> None:
        """Note one more failure of ``key``.

        Where it cannot be written (a full disk), this process remembers it all the same.
        """
        before = self.last(key)
        in_a_row = before.in_a_row + 1 if before else 1
        failure = Failure(reason[:_REASON_CHARACTERS], now, in_a_row)
        try:
            make_private(self._root / key)
            write_plain(self._root / key / FAILURE, failure_bytes(failure))
            self._unwritten.pop(key, None)
        except (OSError, GoldenUnusable):
            self._unwritten[key] = failure

    def tidy(self, key: str, now: float) -> None:
        """Forget the failures of ``key`` when they are old, and what a crash left of writing one."""
        with suppress(OSError):
            (self._root / key / f"{FAILURE}.new").unlink(missing_ok=True)
            failure = self.last(key)
            if failure and failure.forgotten(now):
                self.forget(key)

    def forget(self, key: str) -> None:
        """Forget the failures of ``key``; none is fine. Raises OSError."""
        self._unwritten.pop(check_key(key), None)
        with suppress(FileNotFoundError):
            require_private(self._root / key)
            (self._root / key / FAILURE).unlink(missing_ok=True)
            remove_empty(self._root / key)


def failure_bytes(failure: Failure) -> bytes:
    """Give the content of ``last-failure.json``. Pure."""
    at = datetime.fromtimestamp(failure.at, UTC).isoformat()
    body = {"version": 1, "at": at, "in_a_row": failure.in_a_row, "reason": failure.reason}
    return json.dumps(body, indent=1).encode() + b"\n"


def parse_failure(raw: bytes) -> Failure:
    """Read what ``failure_bytes`` gave. Raises ValueError for anything else. Pure."""
    try:
        body = json.loads(raw)
    except RecursionError as exc:
        raise ValueError("nested too deeply") from exc
    if not isinstance(body, dict) or body.get("version") != 1:
        raise ValueError("not a failure of version 1")
    at = datetime.fromisoformat(read.moment(body, "at"))
    if at.tzinfo is None:
        raise ValueError("at has no time zone")
    return Failure(read.text(body, "reason"), at.timestamp(), max(1, read.count(body, "in_a_row")))
