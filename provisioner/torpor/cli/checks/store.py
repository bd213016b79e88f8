"""The object store: is it configured, and can snapshots be written to it and read back."""

from __future__ import annotations

from pathlib import Path

from torpor.cli.checks import Check, State
from torpor.config import Settings
from torpor.errors import SandboxError
from torpor.snapshot.remote.calls import Patience
from torpor.snapshot.remote.settings import open_store

NAME = "snapshot store"
_PATIENCE = Patience(timeout_s=10.0, tries=1)


def check_store(settings: Settings | None, marks: Path | None = None) -> Check:
    """Really read the key, write an object, read and remove it. None configured is fine.

    ``marks``: see ``open_store``.
    """
    configured = settings.store if settings else None
    if configured is None:
        return Check(NAME, State.OK, "none configured: snapshots stay on this disk")
    try:
        store = open_store(configured.remote, _PATIENCE, marks)
        store.probe()
    except SandboxError as exc:
        fix = exc.hint or "correct c.Torpor.store"
        return Check(NAME, State.WARN, exc.message, fix)
    sealed = "encrypted" if configured.encrypted else "not encrypted"
    return Check(NAME, State.OK, f"{store.shown}, writable, {sealed}, local: {configured.local}")
