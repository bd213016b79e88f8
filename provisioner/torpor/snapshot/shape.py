"""What of a template is in its sandboxes for good, so that a snapshot fits no other. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from torpor.template import Template

_NOT_OF_THE_SANDBOX = frozenset(
    {"description", "env_allow", "start_timeout_s", "warm_up", "env_at_start", "claim_code"}
)
_PREFIXES = ("pool_", "freeze_", "hibernate_", "expire_", "count_")
_DIGITS = 16


def template_digest(template: Template) -> str:
    """Give a digest of all of it."""
    return _digest(_shape(template))


def template_fields(template: Template) -> dict[str, str]:
    """Give a digest of each field, or entry of a field: which of them differ can be told by that.

    Never the values, which may be secrets. An entry is named ``env[NAME]``.
    """
    return {name: _digest(value)[:_DIGITS] for name, value in _entries(_shape(template))}


def changed_fields(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Give the names in which the two differ, sorted."""
    return sorted(name for name in {*before, *now} if before.get(name) != now.get(name))


def _shape(template: Template) -> dict[str, Any]:
    body = template.to_json()
    return {
        each.name: body[each.name]
        for each in fields(Template)
        if each.name not in _NOT_OF_THE_SANDBOX and not each.name.startswith(_PREFIXES)
    }


def _entries(shape: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in shape.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}[{key}]", each) for key, each in value.items())
        else:
            yield name, value


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
