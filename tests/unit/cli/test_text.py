"""Tables, sizes, ages and log lines."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from torpor.cli.log_lines import Line, Tail, last_lines
from torpor.cli.text import age, size, table


def test_table() -> None:
    assert table(["A", "LONG"], [["value", ""], [1, "x"]]) == "A      LONG\nvalue\n1      x"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1 << 20, "1.0 MiB"),
        (512 << 20, "512 MiB"),
        (1 << 60, "1048576 TiB"),
    ],
)
def test_size(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("timestamp", "text"),
    [
        ("2026-11-22T10:00:00+00:00", "0 s"),
        ("2026-11-22T09:58:31Z", "89 s"),
        ("2026-11-22T08:30:00+00:00", "90 min"),
        ("2026-11-22T07:00:00", "3 h"),
        ("2026-11-20T10:00:00+00:00", "2 d"),
        ("2026-11-22T10:00:05+00:00", "0 s"),
        ("", "-"),
        (None, "-"),
        ("yesterday", "-"),
    ],
)
def test_age(timestamp: str | None, text: str) -> None:
    assert age(timestamp, datetime(2026, 11, 22, 10, tzinfo=UTC)) == text


def logged(at: int, event: str, **fields: object) -> str:
    return json.dumps(
        {"at": f"2026-11-22T10:00:{at:02}", "level": "info", "event": event, **fields}
    )


def test_a_line_as_text() -> None:
    line = Line(
        "torpord",
        {
            "at": "2026-11-22T10:00:00.123+00:00",
            "level": "error",
            "event": "launch failed",
            "kernel_id": "5e1f0000-1111",
            "seconds": 1.5,
            "error": "no room",
            "trace": "Traceback\n  here",
        },
    )
    assert line.text() == (
        "2026-11-22T10:00:00.123 error   torpord [5e1f0000] launch failed seconds=1.5"
        ' error="no room"\n    Traceback\n      here'
    )


def events(folder: Path, *names: str, kernel: str = "", count: int = 0) -> list[object]:
    with ExitStack() as stack:
        tails = [stack.enter_context(closing(Tail(name, folder / name))) for name in names]
        return [line.fields["event"] for line in last_lines(tails, kernel=kernel, count=count)]


def test_both_logs_come_in_the_order_of_their_times(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("\n".join([logged(1, "one"), logged(3, "three"), ""]))
    (tmp_path / "b").write_text("\n".join([logged(2, "two"), "plain text", ""]))
    assert events(tmp_path, "a", "b", "none") == ["plain text", "one", "two", "three"]


def test_the_bridges_plain_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    (tmp_path / "a").write_text(
        "2026-11-22 16:41:07,865 INFO kernel e90e-1: open\n2026-11-22 16:41:07,900 WARNING odd\n"
    )
    with closing(Tail("bridge", tmp_path / "a")) as tail:
        one, two = tail.read()
    assert one.fields == {
        "at": "2026-11-22T16:41:07.865+00:00",
        "level": "info",
        "event": "open",
        "kernel_id": "e90e-1",
    }
    assert (two.fields["level"], two.fields["event"]) == ("warning", "odd")


def test_only_one_kernel_and_only_the_last(tmp_path: Path) -> None:
    lines = [logged(n, str(n), kernel_id=f"{'ab'[n % 2]}-{n}") for n in range(9)]
    (tmp_path / "a").write_text("\n".join([*lines, ""]))
    assert events(tmp_path, "a", kernel="b-", count=2) == ["5", "7"]


def test_the_log_that_was_rotated_away_last_is_shown_too(tmp_path: Path) -> None:
    (tmp_path / "a.1").write_text(logged(1, "old") + "\n")
    (tmp_path / "a").write_text(logged(2, "new") + "\n")
    assert events(tmp_path, "a") == ["old", "new"]


def test_following_across_halves_of_lines_and_rotation(tmp_path: Path) -> None:
    path = tmp_path / "a"
    tail = Tail("a", path)
    assert tail.read() == []
    with path.open("w") as file:
        file.write(logged(1, "one") + "\n" + logged(2, "two")[:10])
        file.flush()
        assert [line.fields["event"] for line in tail.read()] == ["one"]
        file.write(logged(2, "two")[10:] + "\n")
        file.flush()
        assert [line.fields["event"] for line in tail.read()] == ["two"]
        file.write(logged(3, "three") + "\n")
    path.rename(tmp_path / "a.1")
    path.write_text(logged(4, "four") + "\n")
    assert [line.fields["event"] for line in tail.read()] == ["three", "four"]
    path.unlink()
    assert tail.read() == []
    tail.close()
    tail.close()
