"""Every error a caller of Torpor can meet, and its JSON shape on the control API.

A class exists only where some caller acts differently. On the wire an error is::

    {"error": {"code": "launch_timeout", "message": "...", "hint": "..."}}

``code`` selects the class, ``message`` is one readable sentence that names the bad input, and ``hint``
(may be empty) says what to do about it.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any, ClassVar

from torpor.link.errors import LinkProtocolError as LinkProtocolError


class SandboxError(Exception):
    """Base of all Torpor errors: a readable ``message`` and a ``hint`` that says how to fix it."""

    code: ClassVar[str] = "internal"
    http_status: ClassVar[int] = 500

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    def to_json(self) -> dict[str, Any]:
        """Give the wire shape of this error (see the module docstring)."""
        return {"error": {"code": self.code, "message": self.message, "hint": self.hint}}


class ConfigError(SandboxError):
    """The request or the configuration is wrong; repeating it cannot help."""

    code = "config"
    http_status = 400


class ProgramNotFound(ConfigError, FileNotFoundError):
    """The kernel's program does not exist; jupyter_client's callers know a FileNotFoundError."""

    code = "no_program"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.errno = errno.ENOENT


class LaunchError(SandboxError):
    """A kernel could not be started. Nothing is left behind."""

    code = "launch"
    http_status = 500


class LaunchTimeout(LaunchError):
    """A kernel did not become ready in its start timeout. Nothing is left behind."""

    code = "launch_timeout"
    http_status = 504


class AtCapacity(LaunchError):
    """This machine has no room for another kernel now. Nothing is left behind; later it may work."""

    code = "at_capacity"
    http_status = 503


class SandboxGone(SandboxError):
    """The kernel or its sandbox does not exist (any more); success for whoever wanted to stop it."""

    code = "gone"
    http_status = 404


class BackendUnavailable(SandboxError):
    """The daemon, its bridge or the backend cannot be reached now; retrying may help."""

    code = "unavailable"
    http_status = 503


class Busy(SandboxError):
    """Refused because live kernels would be harmed; ask again with force or later."""

    code = "busy"
    http_status = 409


class SnapshotUnusable(SandboxError):
    """A snapshot, or the folder of all snapshots, must not be used; whatever is there is kept."""

    code = "snapshot_unusable"
    http_status = 409


class NoRoom(SandboxError):
    """There is no room for another snapshot; none goes to make some but copies of what a store has."""

    code = "no_room"
    http_status = 507


class StoreUnavailable(BackendUnavailable):
    """An object store did not answer as often as it was asked; later it may."""

    code = "store_unavailable"


class TransferCancelled(SandboxError):
    """Somebody wanted a snapshot not to be sent or fetched any further."""

    code = "cancelled"
    http_status = 409


class TemplateChanged(SandboxError):
    """What the caller knew of the template is no longer so: ask for the templates, then again."""

    code = "template_changed"
    http_status = 409


class VersionMismatch(SandboxError):
    """Client and daemon speak different versions of the control API."""

    code = "version"
    http_status = 426


_CLASSES: tuple[type[SandboxError], ...] = (
    ConfigError,
    ProgramNotFound,
    LaunchError,
    LaunchTimeout,
    AtCapacity,
    SandboxGone,
    BackendUnavailable,
    Busy,
    SnapshotUnusable,
    NoRoom,
    StoreUnavailable,
    TransferCancelled,
    TemplateChanged,
    VersionMismatch,
)
_BY_CODE: Mapping[str, type[SandboxError]] = {cls.code: cls for cls in _CLASSES}


def from_json(body: object) -> SandboxError:
    """Rebuild the error that ``to_json`` described; anything unreadable becomes a plain SandboxError."""
    error = body.get("error") if isinstance(body, Mapping) else None
    if not isinstance(error, Mapping):
        return SandboxError(f"unreadable error from the daemon: {body!r:.200}")
    cls = _BY_CODE.get(str(error.get("code")), SandboxError)
    return cls(str(error.get("message", "unknown error")), hint=str(error.get("hint", "")))
