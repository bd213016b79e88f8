"""boot.json, StartParams, the lean JSON under them, the signature and the argv that is executed."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torpor_guest.boot import BootError, parse_boot, parse_start
from torpor_guest.connection import make_connection
from torpor_guest.launch import kernel_argv
from torpor_guest.lean_json import dumps, loads
from torpor_guest.signing import sign

START = {"argv": ["a", "{connection_file}"], "env": {"A": "1"}, "cwd": "/", "kernel_name": "k"}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(VALUES)
def test_lean_json_is_json(value: Any) -> None:
    assert loads(dumps(value)) == value
    assert json.loads(dumps(value)) == value
    assert loads(f" \n{json.dumps(value, indent=2)}\n") == value


@pytest.mark.parametrize("text", ["", "{", '{"a": }', "1 2", "nul", '"\x01"', b"\xff"])
def test_lean_json_refuses_what_json_refuses(text: str | bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (its message is the scanner's)
        loads(text)


def test_lean_json_refuses_foreign_types() -> None:
    with pytest.raises(TypeError, match="object has no JSON form"):
        dumps([object()])


def test_boot_is_parsed_with_its_defaults() -> None:
    boot = parse_boot(json.dumps({"version": 1, "key": "k", "start": START}))
    assert boot.start is not None
    assert boot.start.argv == ("a", "{connection_file}")
    assert boot.start.env == {"A": "1"}
    assert boot.start.start_timeout_s == 30
    assert (boot.stderr_tail_bytes, boot.buffer_bytes) == (8192, 268435456)
    assert parse_boot('{"version": 1, "key": "", "start": null}').start is None


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"version": 2}, "version 2"),
        ({"key": None}, "key"),
        ({"key": "schlüssel"}, "key"),
        ({"start": 5}, "start"),
        ({"buffer_bytes": 0}, "buffer_bytes"),
        ({"stderr_tail_bytes": True}, "stderr_tail_bytes"),
    ],
)
def test_bad_boot_names_the_field(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(BootError, match=named):
        parse_boot(json.dumps({"version": 1, "key": "k", "start": None, **changes}))


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_boot_that_is_no_object(text: str) -> None:
    with pytest.raises(BootError, match="JSON"):
        parse_boot(text)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"argv": []}, "argv"),
        ({"argv": "ls"}, "argv"),
        ({"argv": ["a\0"]}, "argv"),
        ({"argv": [""]}, "argv"),
        ({"argv": ["\ud800"]}, "argv"),
        ({"env": {"A=B": "1"}}, "env"),
        ({"env": {"": "1"}}, "env"),
        ({"env": {"A": 1}}, "env"),
        ({"cwd": "here"}, "cwd"),
        ({"start_timeout_s": 0}, "start_timeout_s"),
        ({"start_timeout_s": True}, "start_timeout_s"),
        ({"start_timeout_s": float("nan")}, "start_timeout_s"),
        ({"kernel_name": None}, "kernel_name"),
    ],
)
def test_bad_start_names_the_field(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(BootError, match=named):
        parse_start({**START, **changes})


@given(st.binary(max_size=200), st.lists(st.binary(max_size=100), max_size=5))
def test_signature_is_hmac_sha256(key: bytes, parts: list[bytes]) -> None:
    expected = hmac.new(key, b"".join(parts), hashlib.sha256).hexdigest() if key else ""
    assert sign(key, parts) == expected.encode()


def test_connection_file_is_private_and_complete(tmp_path: Path) -> None:
    os.umask(os.umask(0))  # whatever it is, the file must not depend on it
    connection = make_connection(str(tmp_path / "new"), 'ke"y', "python3")
    body = json.loads(Path(connection.path).read_text())
    assert stat.S_IMODE(os.stat(connection.path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(tmp_path / "new").st_mode) == 0o700
    assert body["key"] == 'ke"y'
    assert (body["ip"], body["transport"]) == ("127.0.0.1", "tcp")
    ports = [body[f"{name}_port"] for name in ("shell", "iopub", "stdin", "control", "hb")]
    assert ports == list(connection.ports.values())
    assert len(set(ports)) == 5
    connection.remove()
    connection.remove()
    assert not Path(connection.path).exists()


def test_argv_gets_the_connection_file_and_ipykernel_is_started_quickly() -> None:
    assert kernel_argv(("R", "--f={connection_file}"), "/c") == ("R", "--f=/c")
    launcher = ("py", "-X", "dev", "-m", "ipykernel_launcher", "-f", "{connection_file}")
    words = kernel_argv(launcher, "/c")
    assert words[:3] == ("py", "-X", "dev")
    assert words[3].endswith("/quick_ipykernel.py")
    assert words[4:] == ("-f", "/c", "--Kernel._execute_sleep=0")
    assert kernel_argv(launcher, "/c", plain=True) == (*launcher[:-1], "/c")
    asked = (*launcher, "--Kernel._execute_sleep=0.1")
    assert kernel_argv(asked, "/c")[-1] == "--Kernel._execute_sleep=0.1"
    assert kernel_argv(("ipykernel_launcher",), "/c") == ("ipykernel_launcher",)
