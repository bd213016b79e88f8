from __future__ import annotations

import base64
import os
import sys
from pathlib import Path

import pytest
from torpor.errors import ConfigError
from torpor.snapshot.remote.keys import KeyCommand, KeyFile, parse_key

RAW = bytes(range(100, 132))
TEXTS = [
    RAW,
    RAW.hex().encode(),
    RAW.hex().upper().encode() + b"\n",
    base64.b64encode(RAW) + b"\r\n",
]


@pytest.mark.parametrize("text", TEXTS)
def test_every_form(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(text)
    path.chmod(0o600)
    assert KeyFile(path).key().raw == RAW
    command = KeyCommand([sys.executable, "-c", f"import os; os.write(1, {text!r})"])
    assert command.key().raw == RAW


@pytest.mark.parametrize(
    "text",
    [b"", b"\n", RAW[:-1], RAW + b"xy", RAW.hex()[:-2].encode(), b"0f" * 16, b"secret-but-no-key"],
)
def test_no_key(text: bytes) -> None:
    with pytest.raises(ConfigError, match="the file is not a key") as caught:
        parse_key(text, "the file")
    assert "head -c 32" in caught.value.hint
    assert "secret-but" not in str(caught.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_a_file_that_others_can_read(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    path.write_bytes(RAW)
    path.chmod(mode)
    with pytest.raises(ConfigError, match="not yours alone") as caught:
        KeyFile(path).key()
    assert "chmod 600" in caught.value.hint


def test_no_file(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "key")
    for name in ("none", "link", "."):
        with pytest.raises(ConfigError) as caught:
            KeyFile(tmp_path / name).key()
        assert caught.value.hint
        assert str(tmp_path) in caught.value.message


def test_a_file_that_is_changed(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(RAW)
    path.chmod(0o600)
    source = KeyFile(path)
    first = source.key()
    path.write_bytes(b"n" * 32)
    assert source.key().key_id != first.key_id


def test_a_command_is_asked_once(tmp_path: Path) -> None:
    script = f"import os; os.mkdir({str(tmp_path / 'once')!r}); os.write(1, {RAW!r})"
    source = KeyCommand([sys.executable, "-c", script])
    assert source.key() == source.key()


@pytest.mark.parametrize(
    ("script", "timeout_s", "words"),
    [
        ("import sys; sys.exit('no such secret')", 30, "failed with 1: no such secret"),
        ("print('x')", 30, "is not a key"),
        ("import time; time.sleep(30)", 0.5, r"did not end in 0\.5 s"),
    ],
)
def test_a_command_that_gives_none(script: str, timeout_s: float, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        KeyCommand([sys.executable, "-c", script], timeout_s=timeout_s).key()
    assert caught.value.hint


def test_no_such_command() -> None:
    with pytest.raises(ConfigError, match="cannot be started"):
        KeyCommand([f"/none-{os.getpid()}"]).key()
