"""What is wrong with a configuration file, and where, for people. Pure."""

from __future__ import annotations

import json
import traceback

from torpor.errors import ConfigError

_HINT = "correct it; commands show with --debug where Python gave up"


def config_problem(path: str, exc: Exception) -> ConfigError:
    """Give the error for a configuration file whose loading raised ``exc``."""
    found, line = _place(path, exc)
    if isinstance(exc, OSError) and not line:
        return ConfigError(f"{path} cannot be read: {exc.strerror or exc}")
    where = f"{found}, line {line}" if line else found
    return ConfigError(f"{where}: {_words(exc)}", hint=_HINT)


def _place(path: str, exc: Exception) -> tuple[str, int]:
    """Give the file, which may be one that ``path`` loads, and the line; 0: unknown."""
    if isinstance(exc, SyntaxError):
        return exc.filename or path, exc.lineno or 0
    if isinstance(exc, json.JSONDecodeError):
        return path, exc.lineno
    frames = traceback.extract_tb(exc.__traceback__)
    ours = [each for each in frames if each.filename == path]
    return path, (ours[-1].lineno or 0) if ours else 0


def _words(exc: Exception) -> str:
    if isinstance(exc, SyntaxError):
        return f"this is not Python: {exc.msg}"
    if isinstance(exc, json.JSONDecodeError):
        return f"this is not JSON: {exc.msg}"
    return f"{type(exc).__name__}: {exc}"
