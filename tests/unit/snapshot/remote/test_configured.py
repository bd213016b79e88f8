"""``c.Torpor.store``: what can be said, and what is said of what cannot."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from torpor.errors import ConfigError
from torpor.snapshot.remote.configured import LocalCopy, StoreSettings, parse_store
from torpor.snapshot.remote.settings import RemoteSettings

URL = "s3://bucket/torpor"


def test_nothing_configured() -> None:
    assert parse_store({}) is None


def test_what_is_not_said() -> None:
    assert parse_store({"url": URL}) == StoreSettings(RemoteSettings(URL, keep=2))
    settings = parse_store({"url": URL})
    assert settings is not None
    assert (settings.after_s, settings.local, settings.encrypted) == (0.0, LocalCopy.KEEP, False)
    assert settings.patience.timeout_s == 30


def test_all_that_can_be_said() -> None:
    settings = parse_store(
        {
            "url": URL,
            "options": {"secret": "very-secret"},
            "key_command": ["vault", "read"],
            "keep": None,
            "keep_days": 30,
            "after_s": 60,
            "local": "drop",
            "timeout_s": 5,
        }
    )
    assert settings is not None
    assert settings.remote.key_command == ("vault", "read")
    assert (settings.remote.keep, settings.remote.keep_days) == (None, 30)
    assert (settings.after_s, settings.local, settings.encrypted) == (60.0, LocalCopy.DROP, True)
    assert settings.patience.timeout_s == 5
    assert "very-secret" not in repr(settings)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"urls": "x"}, "c.Torpor.store has no field 'urls'"),
        ({"url": "/folder"}, "c.Torpor.store: '/folder' is not the URL of a store"),
        ({"key_file": "k"}, "c.Torpor.store: key_file 'k' is not a full path"),
        ({"key_command": "vault"}, "key_command 'vault' is not a list of words"),
        ({"options": [1]}, "options must map names to values"),
        ({"keep": 0}, "keep 0 is not a number from 1"),
        ({"keep_days": -1}, "keep_days -1 is not a number of days"),
        ({"after_s": -1}, "after_s -1 is not a number of seconds from 0"),
        ({"after_s": "1"}, "after_s '1' is not a number of seconds"),
        ({"after_s": True}, "after_s True is not a number of seconds"),
        ({"timeout_s": 0}, "timeout_s 0 is not a number of seconds from 0.1"),
        ({"timeout_s": float("nan")}, "timeout_s nan is not a number"),
        ({"local": "gone"}, "local 'gone' is unknown"),
        ({"local": ["keep"]}, r"local \['keep'\] is unknown"),
    ],
)
def test_what_cannot_be(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_store({"url": URL} | changes)


def test_no_url() -> None:
    with pytest.raises(ConfigError, match="has no url"):
        parse_store({"keep": 1})


def test_without_a_store_the_daemon_loads_nothing_of_the_extra() -> None:
    code = (
        "import sys, torpor.daemon.app, torpor.cli.doctor, torpor.cli.snapshots\n"
        "sys.exit(bool({'fsspec', 'zstandard', 'cryptography'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=30).returncode == 0
