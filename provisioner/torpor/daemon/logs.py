"""Structured logs: one JSON object per line, with the kernel it is about, rotated by size::

    {"at": "2026-11-22T10:00:00.123+00:00", "level": "info", "event": "launched",
     "kernel_id": "5e1f...", "seconds": 1.52}

Never logged: keys, environments, connection files, what a kernel prints.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_kernel_id: ContextVar[str | None] = ContextVar("torpor_kernel_id", default=None)
_log = logging.getLogger("torpor.daemon")


@contextmanager
def about(kernel_id: str) -> Iterator[None]:
    """Mark every line that is logged inside as being about ``kernel_id``."""
    token = _kernel_id.set(kernel_id)
    try:
        yield
    finally:
        _kernel_id.reset(token)


def log(
    event: str, *, level: int = logging.INFO, error: BaseException | None = None, **fields: Any
) -> None:
    """Write one line. ``fields`` must be JSON-able and hold nothing secret."""
    if error is not None:
        fields["error"] = f"{type(error).__name__}: {error}"
    trace = error if level >= logging.ERROR else None
    _log.log(level, event, extra={"fields": fields}, exc_info=trace)


def start_logging(path: Path, *, max_bytes: int, keep: int) -> logging.Handler:
    """Send our lines, and the warnings of libraries, to ``path`` (0600); the caller closes it."""
    handler = _PrivateRotatingFile(path, maxBytes=max_bytes, backupCount=keep, encoding="utf-8")
    handler.setFormatter(_JsonLines())
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    _log.setLevel(logging.INFO)
    # Tornado reports every refusal; the handlers log what matters themselves.
    logging.getLogger("tornado.access").setLevel(logging.CRITICAL)
    return handler


class _PrivateRotatingFile(logging.handlers.RotatingFileHandler):
    def _open(self) -> Any:
        fd = os.open(
            self.baseFilename, os.O_CREAT | os.O_APPEND | os.O_WRONLY | os.O_CLOEXEC, 0o600
        )
        return os.fdopen(fd, self.mode, encoding=self.encoding)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        if record.name != _log.name:
            line["from"] = record.name
        kernel_id = _kernel_id.get()
        if kernel_id is not None:
            line["kernel_id"] = kernel_id
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
