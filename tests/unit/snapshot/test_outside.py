"""What a guest says that it holds: looked at in the workspace only, and compared after the sleep."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from torpor.snapshot.outside import (
    MOST_FILES,
    Outside,
    lost,
    parse_outside,
    take,
    why_not_restored,
    words,
)


@pytest.fixture
def ws(tmp_path: Path) -> Path:
    folder = tmp_path / "ws"
    (folder / "sub").mkdir(parents=True)
    (folder / "a").write_text("1234")
    (folder / "sub/b").write_text("1")
    (tmp_path / "secret").write_text("s")
    (folder / "out").symlink_to(tmp_path)
    (folder / "link").symlink_to("a")
    os.mkfifo(folder / "fifo")
    return folder


def taken(ws: Path, *paths: object) -> list[str]:
    return [each.path for each in take(str(ws), paths, ()).files]


def test_what_is_looked_at(ws: Path) -> None:
    paths = [f"{ws}/a", f"{ws}/sub/b", f"{ws}/sub", str(ws), f"{ws}/a"]
    assert taken(ws, *paths) == ["", "a", "sub", "sub/b"]


@pytest.mark.parametrize(
    "said",
    [
        "/etc/passwd",
        "{ws}/../secret",
        "{ws}/out/secret",
        "{ws}/link",
        "{ws}/fifo",
        "{ws}/none",
        "{ws}/a/b",
        "{ws}/a\0b",
        "{ws}2/a",
        "{ws}/./a",
        "{ws}/" + "x/" * 3000,
        "{ws}/" + "x" * 300,
        "{ws}/\ud800",
        "",
        7,
        None,
        ["{ws}/a"],
    ],
)
def test_what_is_not(ws: Path, said: object) -> None:
    path = said.replace("{ws}", str(ws)) if isinstance(said, str) else said
    assert taken(ws, path) == []


def test_no_workspace_and_too_many(ws: Path) -> None:
    assert take(None, [f"{ws}/a"], ()) == Outside()
    for number in range(MOST_FILES + 10):
        (ws / f"f{number}").touch()
    assert len(taken(ws, *(f"{ws}/f{n}" for n in range(MOST_FILES + 10)))) == MOST_FILES
    assert len(take(None, (), [f"tcp 192.0.2.7:{n}" for n in range(1, 500)]).peers) == 100


def test_which_peers_are_believed() -> None:
    good = ["tcp 192.0.2.7:443", "udp [2001:db8::1]:53"]
    bad = [
        "tcp 127.0.0.1:80",
        "tcp [::1]:80",
        "icmp 192.0.2.7:1",
        "tcp x:1",
        "tcp 1.2.3.4:٣",
        7,
        "",
    ]
    assert list(take(None, (), good + bad).peers) == good


def test_nothing_has_changed(ws: Path) -> None:
    outside = take(str(ws), [f"{ws}/a", f"{ws}/sub", str(ws)], ())
    (ws / "new").touch()
    os.chmod(ws / "a", 0o600)
    os.link(ws / "a", ws / "hard")
    assert lost(str(ws), outside) == []
    assert parse_outside(outside.to_json()) == outside


def gone(ws: Path) -> None:
    (ws / "a").unlink()


def linked(ws: Path) -> None:
    (ws / "a").rename(ws / "z")
    (ws / "a").symlink_to("z")


def folder(ws: Path) -> None:
    (ws / "a").unlink()
    (ws / "a").mkdir()


def replaced(ws: Path) -> None:
    (ws / "z").write_text("1234")
    (ws / "z").rename(ws / "a")


def cut(ws: Path) -> None:
    os.truncate(ws / "a", 1)


def written(ws: Path) -> None:
    with (ws / "a").open("a") as file:
        file.write("5")


def touched(ws: Path) -> None:
    os.utime(ws / "a", ns=(1, 1))


@pytest.mark.parametrize(
    ("change", "reason", "fatal"),
    [
        (gone, "is gone", True),
        (linked, "is no file any more", True),
        (folder, "is no file any more", True),
        (replaced, "was replaced", False),
        (cut, "was cut from 4 to 1 bytes", False),
        (written, "was written to", False),
        (touched, "was written to", False),
    ],
)
def test_what_has_changed(ws: Path, change: object, reason: str, fatal: bool) -> None:
    outside = take(str(ws), [f"{ws}/a", f"{ws}/sub/b"], ())
    assert callable(change)
    change(ws)
    [found] = lost(str(ws), outside)
    assert (found.kind, found.what, found.fatal) == ("file", f"{ws}/a", fatal)
    assert reason in found.reason
    why = why_not_restored([found])
    assert (why is not None) == fatal
    if why:
        assert f"{ws}/a" in why
        assert "put it back" in why
    assert words([found.to_json()]) == [f"file {ws}/a: {found.reason}"]


def test_a_workspace_that_went_away_or_is_another(ws: Path, tmp_path: Path) -> None:
    outside = take(str(ws), [str(ws), f"{ws}/a"], ())
    ws.rename(tmp_path / "away")
    assert [each.fatal for each in lost(str(ws), outside)] == [True, True]
    assert "(and 1 more)" in str(why_not_restored(lost(str(ws), outside)))


def test_connections_are_lost() -> None:
    [found] = lost(None, Outside(peers=("tcp 192.0.2.7:443",)))
    assert (found.kind, found.what, found.fatal) == ("connection", "tcp 192.0.2.7:443", False)


@pytest.mark.parametrize(
    "body",
    [
        [],
        {"files": {}},
        {"peers": [1]},
        {"files": [["a", "fifo", 1, 1, 1]]},
        {"files": [["a", "file", "1", 1, 1]]},
        {"files": [["a"]]},
    ],
)
def test_what_cannot_be_read(body: object) -> None:
    with pytest.raises(ValueError, match="outside"):
        parse_outside(body)
