"""Text for people: tables, sizes, ages. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Give aligned columns under their headers, without trailing spaces."""
    cells = [list(headers), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headers))]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in cells
    )
    return "\n".join(line.rstrip() for line in lines)


def size(count_bytes: float) -> str:
    """Give a number of bytes as people read it: ``4.0 GiB``, ``512 MiB``."""
    value, unit = float(count_bytes), _UNITS[0]
    for unit in _UNITS:
        if value < 1024 or unit == _UNITS[-1]:
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


def age(timestamp: str | None, now: datetime | None = None) -> str:
    """Give how long ago an ISO 8601 time was: ``5 s``, ``3 min``, ``2 h``, ``4 d``; ``-`` for none."""
    try:
        then = datetime.fromisoformat(timestamp or "")
    except ValueError:
        return "-"
    then = then if then.tzinfo else then.replace(tzinfo=UTC)
    seconds = max(0.0, ((now or datetime.now(UTC)) - then).total_seconds())
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{int(seconds // length)} {unit}"
    return f"{int(seconds)} s"
