"""Asking a person before something is destroyed."""

from __future__ import annotations

import sys

from torpor.errors import ConfigError


def is_sure(question: str, *, yes: bool) -> bool:
    """Whether somebody at the terminal agrees; ``yes`` answers beforehand.

    Raises:
        ConfigError: there is nobody to ask.
    """
    if yes:
        return True
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        raise ConfigError(f"nobody is there to answer: {question}", hint="say so with --yes")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
