"""Our errors as a Jupyter server shows them to a browser.

Jupyter servers tell a browser the text of a ``tornado.web.HTTPError`` and of nothing else: any other
exception of a provisioner is "Unhandled error" there. So the errors that leave the provisioner are
both, of their own class for a program that catches them, and with a status for a server.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torpor.errors import SandboxError


@contextmanager
def shown_by_servers() -> Iterator[None]:
    """Let a SandboxError out as one that is also a ``tornado.web.HTTPError``, else the same."""
    try:
        yield
    except SandboxError as exc:
        error = http_error(exc)
        if error is exc:
            raise
        raise error.with_traceback(exc.__traceback__) from exc.__cause__


def http_error(error: SandboxError) -> SandboxError:
    """Give ``error`` as an HTTPError too: its class, message, hint and text stay as they are."""
    from tornado.web import HTTPError  # whoever has no error to show need not wait for it

    if isinstance(error, HTTPError):
        return error
    kind = _both(type(error), HTTPError)
    shown = kind.__new__(kind)  # HTTPError's own __init__ would take the message for a status
    shown.__dict__.update(error.__dict__)
    shown.__dict__.update(
        status_code=error.http_status,
        reason=None,
        _log_message=_Literal(error),
    )
    shown.args = ()  # servers format the text with them
    return shown


class _Literal(str):
    """A text that stays as it is when somebody formats it: paths and code may hold a ``%``."""

    __slots__ = ()

    def __mod__(self, values: Any) -> str:
        return str(self)


def _both(kind: type[SandboxError], http: type[Exception]) -> type[SandboxError]:
    def fill(namespace: dict[str, Any]) -> None:
        namespace["__module__"] = kind.__module__
        namespace["__doc__"] = kind.__doc__
        namespace["__repr__"] = lambda self: f"{kind.__name__}({self.message!r})"
        namespace["log_message"] = property(lambda self: self._log_message)

    return types.new_class(kind.__name__, (kind, http), exec_body=fill)
