"""What people may see of a store: never what opens it, wherever in a URL or an error that stands."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

_SECRET_NAME = re.compile(r"key|secret|token|pass|sas|cred|sign|auth|connection_string", re.I)
_LEAST = 4
_HIDDEN = "***"


def shown_url(url: str) -> str:
    """Give ``url`` without a user, a password and parameters. Pure.

    Everything up to the last ``@`` goes: passwords with slashes in them have been seen. A folder of
    this machine has none.
    """
    kind, mark, rest = url.rpartition("://")
    if not mark:
        return url
    rest, question, _ = rest.partition("?")
    if "@" in rest and not kind.endswith("file"):
        rest = f"{_HIDDEN}@{rest.rpartition('@')[2]}"
    kind = re.sub(r"(?<=://).*(?=::)", _HIDDEN, kind)
    return f"{kind}{mark}{rest}{question}{_HIDDEN if question else ''}"


@dataclass(frozen=True, slots=True)
class Hidden:
    """The words that are to be hidden in errors of others, the longest first."""

    words: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Hidden({len(self.words)} words)"

    def out_of(self, text: str) -> str:
        """Give ``text`` without them."""
        for word in self.words:
            text = text.replace(word, _HIDDEN)
        return text


def hidden_of(url: str, options: Mapping[str, Any]) -> Hidden:
    """Give what is secret of a store's URL and options, as far as names tell. Pure.

    What has fewer than four characters is not looked for: it is everywhere.
    """
    _, _, rest = url.rpartition("://")
    place, _, parameters = rest.partition("?")
    found = {place.rpartition("@")[0], place.rpartition("@")[0].partition(":")[2], parameters}
    found |= {each.partition("=")[2] for each in parameters.split("&")}
    found |= set(_texts(options, named=False))
    found |= {unquote(word) for word in found}
    return Hidden(tuple(sorted((each for each in found if len(each) >= _LEAST), key=len)[::-1]))


def _texts(value: object, *, named: bool) -> list[str]:
    if isinstance(value, Mapping):
        rows = [
            _texts(each, named=named or bool(_SECRET_NAME.search(str(name))))
            for name, each in value.items()
        ]
        return [text for row in rows for text in row]
    if isinstance(value, (list, tuple)):
        return [text for each in value for text in _texts(each, named=named)]
    return [value] if named and isinstance(value, str) else []
