from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torpor.errors import ConfigError
from torpor.snapshot.remote.keys import KeyCommand, KeyFile
from torpor.snapshot.remote.retention import RetentionPolicy
from torpor.snapshot.remote.settings import RemoteSettings, open_store


@pytest.mark.parametrize(
    "url", ["s3://b/x", "file:///a/b", "memory://x", "simplecache::s3://b/x", "abfs+https://x"]
)
def test_urls(url: str) -> None:
    assert RemoteSettings(url).key_source is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"url": ""}, "'' is not the URL of a store"),
        ({"url": "/a/folder"}, "'/a/folder' is not the URL"),
        ({"url": None}, "None is not the URL"),
        ({"url": "file://a/b"}, "is not a full path"),
        ({"options": ["x"]}, "options must map"),
        ({"options": {1: 2}}, "options must map"),
        ({"key_file": "k"}, "key_file 'k' is not a full path"),
        ({"key_file": "/k", "key_command": ("x",)}, "both set"),
        ({"key_command": "vault read"}, "key_command 'vault read' is not a list"),
        ({"key_command": ("vault", "")}, "is not a list of words"),
        ({"keep": 0}, "keep 0 is not"),
        ({"keep": True}, "keep True is not"),
        ({"keep": 1.5}, "keep 1.5 is not"),
        ({"keep_days": 0}, "keep_days 0 is not"),
        ({"keep_days": float("nan")}, "keep_days nan is not"),
        ({"keep_days": float("inf")}, "keep_days inf is not"),
        ({"keep_days": "7"}, "keep_days '7' is not"),
    ],
)
def test_wrong_values(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        RemoteSettings(**({"url": "s3://b"} | changes))
    assert caught.value.hint


def test_what_they_stand_for() -> None:
    settings = RemoteSettings("s3://b", {"secret": "hush"}, key_file="/k", keep=3, keep_days=1.5)
    assert settings.retention == RetentionPolicy(3, 1.5)
    assert isinstance(settings.key_source, KeyFile)
    assert "hush" not in repr(settings)
    assert isinstance(RemoteSettings("s3://b", key_command=("x",)).key_source, KeyCommand)


def test_opened(tmp_path: Path) -> None:
    store = open_store(RemoteSettings(f"file://{tmp_path}/store"))
    assert store.list() == ()
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nosuchkind://me:hush@x", r"nosuchkind://\*\*\*@x cannot be used as a store"),
        ("smb://x/y", "smb://x/y needs a package that is not installed"),
    ],
)
def test_kinds_that_are_none(url: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        open_store(RemoteSettings(url))
    assert caught.value.hint


def test_credentials_in_the_url_are_not_shown() -> None:
    assert "hush" not in repr(open_store(RemoteSettings("memory://me:hush@place/x")))


@pytest.mark.parametrize("name", ["fsspec", "zstandard", "cryptography"])
def test_without_the_extra(name: str) -> None:
    """Settings can be made, the rest of Torpor works, and opening a store says what to install."""
    script = f"""
import sys
sys.modules[{name!r}] = None
import torpor.daemon, torpor.snapshot.store
from torpor.errors import ConfigError
from torpor.snapshot.remote.settings import RemoteSettings, open_store
settings = RemoteSettings("memory://x", key_file="/k")
try:
    open_store(settings)
except ConfigError as exc:
    print(exc.hint)
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert ran.stdout == "pip install torpor[stores]\n", ran.stderr


def test_nothing_is_loaded_before_it_is_needed() -> None:
    script = (
        "import sys, torpor.snapshot.remote.settings as s; s.RemoteSettings('s3://b', keep=1)\n"
        "print({'fsspec', 'zstandard', 'cryptography'} & sys.modules.keys())"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert ran.stdout == "set()\n", ran.stderr
