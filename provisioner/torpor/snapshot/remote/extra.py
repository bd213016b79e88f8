"""What the extra ``stores`` installs, and what to say where it is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torpor.errors import ConfigError


@contextmanager
def stores_extra() -> Iterator[None]:
    """Have an import that fails raise ConfigError, with what to install."""
    try:
        yield
    except ImportError as exc:
        raise ConfigError(
            f"object stores need {exc.name or exc}, which is not installed",
            hint="pip install torpor[stores]",
        ) from exc
