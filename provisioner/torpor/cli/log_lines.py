"""Reads what the daemon (JSON lines) and the bridge (plain lines) log, across rotation."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

_LONGEST_BYTES = 1 << 20
_PLAIN = re.compile(
    r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3}) ([A-Z]+) (?:kernel ([A-Za-z0-9._-]+): )?(.*)"
)


@dataclass(frozen=True, slots=True)
class Line:
    """One logged event."""

    source: str
    fields: dict[str, Any]

    @property
    def at(self) -> str:
        return str(self.fields.get("at", ""))

    def is_about(self, kernel: str) -> bool:
        """Whether it is about a kernel whose id starts with ``kernel``; all lines are about ``""``."""
        return str(self.fields.get("kernel_id", "")).startswith(kernel)

    def text(self) -> str:
        """Give ``TIME level source event key=value ...``, a traceback indented below."""
        rest = dict(self.fields)
        at, level = str(rest.pop("at", "-")), str(rest.pop("level", "-"))
        event, trace = str(rest.pop("event", "-")), rest.pop("trace", "")
        if kernel_id := rest.pop("kernel_id", None):
            event = f"[{str(kernel_id)[:8]}] {event}"
        pairs = "".join(f" {key}={_short(value)}" for key, value in rest.items())
        below = "".join(f"\n    {line}" for line in str(trace).splitlines())
        return f"{at[:23]} {level:7} {self.source:7} {event}{pairs}{below}"


@dataclass(slots=True)
class Tail:
    """A log file that is read on from where the last ``read`` ended, also when it was rotated since."""

    source: str
    path: Path
    _file: BinaryIO | None = field(default=None, repr=False)
    _half: bytes = b""

    def read(self) -> list[Line]:
        """Give the whole lines written since the last call; none when there is no such file yet."""
        lines = self._rest()
        if self._was_rotated():
            self.close()
            lines += self._rest()
        return lines

    def close(self) -> None:
        """Close the file. Twice is fine."""
        if self._file is not None:
            self._file.close()
            self._file, self._half = None, b""

    def _rest(self) -> list[Line]:
        try:
            if self._file is None:
                self._file = self.path.open("rb")
        except OSError:
            return []
        *whole, half = (self._half + self._file.read()).split(b"\n")
        self._half = half[-_LONGEST_BYTES:]
        return [_parse(self.source, line) for line in whole if line]

    def _was_rotated(self) -> bool:
        if self._file is None:
            return False
        try:
            there, ours = self.path.stat(), Path(f"/proc/self/fd/{self._file.fileno()}").stat()
        except OSError:
            return False
        return (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino)


def last_lines(tails: Sequence[Tail], *, kernel: str, count: int) -> list[Line]:
    """Give the last ``count`` lines (0: all) of all files together in the order of their times."""
    lines = [line for tail in tails for line in _older(tail) + tail.read() if line.is_about(kernel)]
    lines.sort(key=lambda line: line.at)
    return lines[-count:] if count else lines


def _older(tail: Tail) -> list[Line]:
    """Give the lines of the file that was rotated away last, so that a fresh log is not an empty one."""
    try:
        content = tail.path.with_name(f"{tail.path.name}.1").read_bytes()
    except OSError:
        return []
    return [_parse(tail.source, line) for line in content.split(b"\n") if line]


def _parse(source: str, line: bytes) -> Line:
    """Give the event that was logged; what is neither JSON nor a usual log line is an event as it is."""
    text = line.decode("utf-8", "replace")
    try:
        fields = json.loads(text)
    except ValueError:
        fields = None
    return Line(source, fields if isinstance(fields, dict) else _parse_text(text))


def _parse_text(text: str) -> dict[str, Any]:
    """Give the fields of a line as the bridge writes it: ``DATE TIME,MS LEVEL [kernel ID: ]EVENT``."""
    found = _PLAIN.fullmatch(text)
    if not found:
        return {"event": text}
    when, milliseconds, level, kernel_id, event = found.groups()
    local = datetime.fromisoformat(f"{when}.{milliseconds}").astimezone(UTC)
    fields = {
        "at": local.isoformat(timespec="milliseconds"),
        "level": level.lower(),
        "event": event,
    }
    return fields if kernel_id is None else {**fields, "kernel_id": kernel_id}


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return json.dumps(text) if " " in text or not text else text
