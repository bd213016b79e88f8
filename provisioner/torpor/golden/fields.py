"""Reading typed fields out of a JSON object. Pure.

Each raises ValueError, with a message that names the field and never its value: it may be a secret.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any


def text(body: Mapping[str, Any], name: str) -> str:
    """Give a text."""
    value = body.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name} is not a text")
    return value


def texts(body: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Give a list of texts."""
    value = body.get(name)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{name} is not a list of texts")
    return tuple(value)


def flag(body: Mapping[str, Any], name: str) -> bool:
    """Give true or false."""
    value = body.get(name)
    if not isinstance(value, bool):
        raise ValueError(f"{name} is neither true nor false")
    return value


def count(body: Mapping[str, Any], name: str) -> int:
    """Give a whole number that is not negative."""
    value = body.get(name)
    if type(value) is not int or value < 0:
        raise ValueError(f"{name} is not a count")
    return value


def duration(body: Mapping[str, Any], name: str) -> float:
    """Give a finite number that is not negative."""
    value = body.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
        raise ValueError(f"{name} is not a duration")
    try:
        return float(value)
    except OverflowError as exc:
        raise ValueError(f"{name} is not a duration") from exc


def moment(body: Mapping[str, Any], name: str) -> str:
    """Give a date with a time as text, ISO 8601."""
    value = text(body, name)
    try:
        datetime.fromisoformat(value)
    except ValueError as exc:
        raise ValueError(f"{name} is not a date and time") from exc
    return value


def mapping(body: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Give an object."""
    value = body.get(name)
    if not isinstance(value, dict):
        raise ValueError(f"{name} is not an object")
    return value


def text_mapping(body: Mapping[str, Any], name: str) -> dict[str, str]:
    """Give an object whose values are texts."""
    value = mapping(body, name)
    if not all(isinstance(item, str) for item in value.values()):
        raise ValueError(f"{name} has a value that is not a text")
    return value
