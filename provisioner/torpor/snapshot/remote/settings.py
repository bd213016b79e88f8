"""How an object store is configured: checked values, before anything of it is loaded or reached."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torpor.errors import ConfigError
from torpor.snapshot.remote.calls import Patience
from torpor.snapshot.remote.keys import KeyCommand, KeyFile, KeySource
from torpor.snapshot.remote.retention import RetentionPolicy

if TYPE_CHECKING:
    from torpor.snapshot.remote.store import RemoteStore

_URL = re.compile(r"[a-z][a-z0-9+.-]*(::[a-z][a-z0-9+.-]*)*://.*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class RemoteSettings:
    """Where snapshots go, what seals them, and how many stay.

    ``url``: of a place that nothing else uses, as fsspec has it. ``options``: for fsspec, endpoint and
    credentials among them. ``key_file`` or ``key_command``: the master key; neither: nothing is
    encrypted. ``keep`` and ``keep_days``: see ``RetentionPolicy``.

    Raises ConfigError, naming the value and the fix.
    """

    url: str
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    key_file: str | None = None
    key_command: tuple[str, ...] = ()
    keep: int | None = None
    keep_days: float | None = None

    def __post_init__(self) -> None:
        _check_url(self.url)
        if not isinstance(self.options, Mapping) or not all(
            isinstance(name, str) for name in self.options
        ):
            raise ConfigError("options must map names to values", hint='{"anon": False}, say')
        if self.key_file is not None and self.key_command:
            raise ConfigError("key_file and key_command are both set", hint="choose one of them")
        if self.key_file is not None and not str(self.key_file).startswith("/"):
            raise ConfigError(
                f"key_file {self.key_file!r} is not a full path", hint="begin it with /"
            )
        if not isinstance(self.key_command, tuple) or not all(
            isinstance(word, str) and word for word in self.key_command
        ):
            raise ConfigError(
                f"key_command {self.key_command!r} is not a list of words",
                hint='no shell reads it: ("vault", "read", "-field=key", "torpor"), say',
            )
        if self.keep is not None and (type(self.keep) is not int or self.keep < 1):
            raise ConfigError(f"keep {self.keep!r} is not a number from 1", hint="None keeps all")
        if self.keep_days is not None and not _is_duration(self.keep_days):
            raise ConfigError(
                f"keep_days {self.keep_days!r} is not a number of days above 0",
                hint="None keeps them however old they are",
            )

    @property
    def retention(self) -> RetentionPolicy:
        """What stays."""
        return RetentionPolicy(self.keep, self.keep_days)

    @property
    def key_source(self) -> KeySource | None:
        """Where the master key comes from. Nothing is read yet."""
        if self.key_file is not None:
            return KeyFile(self.key_file)
        return KeyCommand(self.key_command) if self.key_command else None


def open_store(
    settings: RemoteSettings, patience: Patience | None = None, marks: Path | None = None
) -> RemoteStore:
    """Give the store of ``settings``; nothing is read or written before it is used.

    ``marks``: the file that says which folders were stores; see mark.py. None: nobody minds.

    Raises ConfigError when the extra ``stores``, or what that kind of URL needs, is not installed.
    """
    from torpor.snapshot.remote.mark import Marks
    from torpor.snapshot.remote.store import RemoteStore

    return RemoteStore(
        settings.url,
        options=settings.options,
        key_source=settings.key_source,
        patience=patience,
        marks=None if marks is None else Marks(marks),
    )


def _check_url(url: object) -> None:
    if not isinstance(url, str) or not _URL.fullmatch(url):
        raise ConfigError(
            f"{url!r:.200} is not the URL of a store",
            hint="s3://bucket/folder, or file:///a/folder/of/its/own, say",
        )
    if url.startswith("file://") and not url.removeprefix("file://").startswith("/"):
        raise ConfigError(f"{url!r:.200} is not a full path", hint="it has three slashes: file:///")


def _is_duration(value: object) -> bool:
    return type(value) in (int, float) and 0 < float(value) < math.inf  # type: ignore[arg-type]
