"""``c.Torpor.store`` as checked values: which store, and what a daemon does with it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from torpor.errors import ConfigError
from torpor.snapshot.remote.calls import Patience
from torpor.snapshot.remote.settings import RemoteSettings

_TRIES = 3
KEEP = 2


class LocalCopy(StrEnum):
    """What becomes of a snapshot on the disk once the store has it."""

    KEEP = "keep"
    """It stays, until room is needed."""
    DROP = "drop"
    """It goes: at rest, there is only what the store has."""


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """The store, and when snapshots go there.

    ``after_s``: how long a kernel sleeps before its snapshot is pushed. ``timeout_s``: how long one
    call of the store may take; it is made three times.
    """

    remote: RemoteSettings
    after_s: float = 0.0
    local: LocalCopy = LocalCopy.KEEP
    timeout_s: float = 30.0

    @property
    def patience(self) -> Patience:
        """How each call is made."""
        return Patience(timeout_s=self.timeout_s, tries=_TRIES)

    @property
    def encrypted(self) -> bool:
        """Whether there is a key."""
        return self.remote.key_source is not None


_REMOTE = tuple(field.name for field in fields(RemoteSettings))
_KNOWN = (*_REMOTE, "after_s", "local", "timeout_s")


def parse_store(body: Mapping[str, Any]) -> StoreSettings | None:
    """Give what a configuration says; None where it has no store. Nothing is reached or read.

    ``keep`` is 2 unless said otherwise: a store that nobody looks at must not grow for ever.

    Raises ConfigError, which names the value and the fix, and shows neither options nor keys.
    """
    if not body:
        return None
    unknown = sorted(str(name) for name in set(body) - set(_KNOWN))
    if unknown:
        raise ConfigError(
            f"c.Torpor.store has no field {unknown[0]!r}", hint=f"fields: {', '.join(_KNOWN)}"
        )
    if "url" not in body:
        raise ConfigError("c.Torpor.store has no url", hint='"url": "s3://bucket/folder", say')
    if str(body["url"]).startswith("memory://"):
        raise ConfigError(
            f"c.Torpor.store: {body['url']!r:.200} would be in the memory of torpord, and end with it",
            hint="file:///a/folder/of/its/own, say",
        )
    try:
        remote = RemoteSettings(**_remote(body))
    except ConfigError as exc:
        raise ConfigError(f"c.Torpor.store: {exc.message}", hint=exc.hint) from exc
    return StoreSettings(
        remote,
        after_s=_seconds(body, "after_s", 0.0, least=0.0),
        local=_local(body.get("local", LocalCopy.KEEP)),
        timeout_s=_seconds(body, "timeout_s", 30.0, least=0.1),
    )


def _remote(body: Mapping[str, Any]) -> dict[str, Any]:
    given = {"keep": KEEP} | {name: body[name] for name in _REMOTE if name in body}
    if isinstance(given.get("key_command"), list):
        given["key_command"] = tuple(given["key_command"])
    if isinstance(given.get("options"), Mapping):
        given["options"] = MappingProxyType(dict(given["options"]))
    return given


def _local(value: object) -> LocalCopy:
    if value not in tuple(LocalCopy):
        raise ConfigError(
            f"c.Torpor.store: local {value!r:.80} is unknown", hint='it is "keep" or "drop"'
        )
    return LocalCopy(str(value))


def _seconds(body: Mapping[str, Any], name: str, default: float, *, least: float) -> float:
    value = body.get(name, default)
    if type(value) not in (int, float) or not least <= value < math.inf:
        raise ConfigError(
            f"c.Torpor.store: {name} {value!r:.80} is not a number of seconds from {least:g}"
        )
    return float(value)
