"""Private uids are claimed once, given back, and taken over from the dead."""

from __future__ import annotations

from pathlib import Path

import pytest
from torpor.backends.local_slots import UidSlots, has_every_uid
from torpor.errors import LaunchError


@pytest.fixture
def slots(tmp_path: Path) -> UidSlots:
    return UidSlots(tmp_path / "uids", 5000, 3)


def _directory(base: Path, name: str) -> Path:
    path = base / name
    path.mkdir()
    return path


def test_each_sandbox_gets_its_own_and_keeps_it(slots: UidSlots, tmp_path: Path) -> None:
    directories = [_directory(tmp_path, name) for name in "abc"]
    uids = [slots.claim(each.name, each) for each in directories]
    assert sorted(uids) == [5000, 5001, 5002]
    assert [slots.claim("other", each) for each in directories] == uids
    assert [slots.held_by(each) for each in directories] == uids


def test_none_left_is_said(slots: UidSlots, tmp_path: Path) -> None:
    for name in "abc":
        slots.claim(name, _directory(tmp_path, name))
    with pytest.raises(LaunchError, match="all 3 sandbox uids"):
        slots.claim("d", _directory(tmp_path, "d"))


def test_release_frees_and_twice_is_fine(slots: UidSlots, tmp_path: Path) -> None:
    directory = _directory(tmp_path, "a")
    slots.release(directory)
    slots.claim("a", directory)
    slots.release(directory)
    slots.release(directory)
    assert slots.held_by(directory) is None


def test_a_slot_whose_sandbox_is_gone_is_taken_over(slots: UidSlots, tmp_path: Path) -> None:
    directories = [_directory(tmp_path, name) for name in "abc"]
    uids = [slots.claim(each.name, each) for each in directories]
    directories[1].rmdir()
    (slots.folder / "stray").write_text("not a slot")
    assert slots.claim("d", _directory(tmp_path, "d")) == uids[1]


def test_an_unwritable_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LaunchError, match="cannot claim a uid"):
        UidSlots(tmp_path / "file", 1, 1).claim("a", tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("         0          0 4294967295\n", True),
        ("0 1000 1\n", False),
        ("0 100000 65536\n", False),
        ("", False),
    ],
)
def test_only_the_first_namespace_has_every_uid(text: str, *, expected: bool) -> None:
    assert has_every_uid(text) is expected
