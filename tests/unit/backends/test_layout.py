"""The files of a sandbox, and what can be read from a damaged folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from torpor.backends.base import Handle
from torpor.backends.local_layout import Layout, log_words, panic_words


def _handle(**changes: object) -> Handle:
    fields: dict[str, object] = {
        "backend": "local",
        "sandbox_id": "s",
        "pid": 1,
        "pid_start": 2,
        "runsc": "/r",
        "runsc_build": "b",
        "root": "/x",
        "uid": 3,
        "cgroups": ("/c",),
        "directory": "/d",
        "workspace": None,
        "workspace_mode": "none",
    }
    return Handle(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "deep/k1")
    layout.make_folders()
    return layout


def test_what_is_written_is_read(layout: Layout) -> None:
    layout.write_plan({"a": [1, None]})
    layout.write_groups(["/c/1", "/c/2"])
    layout.write_record(_handle())
    assert layout.read_plan() == {"a": [1, None]}
    assert layout.read_groups() == ["/c/1", "/c/2"]
    assert layout.read_record() == _handle()
    for path in (layout.plan, layout.groups, layout.record):
        assert path.stat().st_mode & 0o777 == 0o600


def test_nothing_or_rubbish_is_no_record(layout: Layout) -> None:
    assert layout.read_record() is None
    assert layout.read_groups() == []
    for text in ("", "{", "[]", json.dumps({**_handle().to_json(), "version": 0})):
        layout.record.write_text(text)
        assert layout.read_record() is None


def test_folders_are_made_once(layout: Layout) -> None:
    with pytest.raises(FileExistsError):
        layout.make_folders()
    layout.make_fifos()
    layout.remove()
    layout.remove()
    assert not layout.directory.exists()


def test_last_words_prefer_the_crash(layout: Layout) -> None:
    assert layout.last_words() == ""
    (layout.log / "runsc.log").write_text('{"msg":"starting: no such file","level":"error"}\n')
    assert layout.last_words() == "runsc: starting: no such file"
    (layout.log / "panic.log").write_text("panic: oh\n\ngoroutine 1 [running]:\n")
    assert layout.last_words() == "gVisor crashed: panic: oh"
    layout.clear_logs()
    assert layout.last_words() == ""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ""),
        ("warning: slow\n", ""),
        ("x\nfatal error: all goroutines are asleep\n", "gVisor crashed: fatal error: all"),
    ],
)
def test_panic_words(text: str, words: str) -> None:
    assert panic_words(text).startswith(words)
    assert bool(panic_words(text)) is bool(words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ""),
        ("plain text", "runsc: plain text"),
        ('{"msg":"one"}\n{"msg":"two"}', "runsc: two"),
        ('{"msg":"one"}\n{"msg":"tw', "runsc: one"),
        ("[]", "runsc: []"),
    ],
)
def test_log_words(text: str, words: str) -> None:
    assert log_words(text) == words
