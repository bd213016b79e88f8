"""Templates as a configuration describes them: each value of the kind its field has. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

from torpor.errors import ConfigError
from torpor.template import Template

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_FACTORS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SHOWN = 80


def template_of(name: str, body: object) -> Template:
    """Give the template that a configuration describes.

    Raises ConfigError, which names the template, the field, and what is wanted there; values of
    ``env`` are never in it.
    """
    if not isinstance(body, Mapping):
        raise ConfigError(f"template {name!r} must be a dictionary, not {type(body).__name__}")
    kinds = {each.name: str(each.type) for each in fields(Template) if each.name != "name"}
    for field in body:
        if field not in kinds:
            raise ConfigError(
                f"template {name!r} has no field {field!r:.80}{meant(str(field), kinds)}",
                hint=f"fields: {', '.join(sorted(kinds))}",
            )
    values = {field: _value(name, field, kinds[field], value) for field, value in body.items()}
    return Template(name=name, **values)


def meant(word: str, known: Iterable[str]) -> str:
    """Give "; did you mean ...?" where one of the known is like ``word``, else "". Pure."""
    found = get_close_matches(word, list(known), n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


def _value(template: str, field: str, kind: str, value: object) -> Any:
    read, words = _READ.get(kind, (_text, "a text"))
    if field.endswith("_bytes"):
        read, words = _size, "a size: a whole number of bytes, or text such as '2G'"
    try:
        return read(value)
    except ValueError:
        shown = "" if kind.startswith("Mapping") else f" {value!r:.{_SHOWN}}"
        raise ConfigError(
            f"template {template!r}: {field}{shown} ({type(value).__name__}) is not {words}"
        ) from None


def _size(value: object) -> int:
    if isinstance(value, str):
        found = _SIZE.fullmatch(value.strip())
        if found is None:
            raise ValueError
        return int(float(found.group(1)) * _FACTORS[found.group(2).upper()])
    if isinstance(value, float) and value.is_integer():  # 2e9
        return int(value)
    return _whole(value)


def _whole(value: object) -> int:
    if type(value) is not int:
        raise ValueError
    return value


def _number(value: object) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):  # type: ignore[arg-type]
        raise ValueError
    return float(value)  # type: ignore[arg-type]


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)):
        raise ValueError
    return tuple(_text(each) for each in value)


def _mapping(value: object) -> Mapping[str, str]:
    if not isinstance(value, Mapping):
        raise ValueError
    return MappingProxyType({_text(name): _text(each) for name, each in value.items()})


_READ: Mapping[str, tuple[Callable[[object], Any], str]] = {
    "int": (_whole, "a whole number"),
    "float": (_number, "a number"),
    "bool": (_flag, "True or False"),
    "str": (_text, "a text"),
    "tuple[str, ...]": (_texts, 'a list of texts: ["...", "..."]'),
    "Mapping[str, str]": (_mapping, 'a dictionary of texts: {"NAME": "value"}'),
}
