"""Which kernel a person means by an id, or by how it begins. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from torpor.errors import ConfigError, SandboxGone

_MOST_NAMED = 8


def one_of(wanted: str, known: Iterable[str], *, what: str = "kernel", see: str = "kernels") -> str:
    """Give the id among ``known`` that is ``wanted``, else the only one that begins so.

    ``what`` has that id, and `torpor SEE` shows it.

    Raises:
        SandboxGone: there is none.
        ConfigError: several begin so; the hint names them.
    """
    ids = set(known)
    if wanted in ids:
        return wanted
    found = sorted(each for each in ids if wanted and each.startswith(wanted))
    if not found:
        raise SandboxGone(f"there is no {what} {wanted!r}", hint=f"see: torpor {see}")
    if len(found) > 1:
        raise ConfigError(
            f"{wanted!r} is the beginning of {len(found)} ids", hint=f"one of {_listed(found)}"
        )
    return found[0]


def _listed(found: list[str]) -> str:
    more = len(found) - _MOST_NAMED
    return ", ".join(found[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
