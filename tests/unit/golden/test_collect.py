"""What a collection removes, and the record of failures."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from torpor.golden import failures
from torpor.golden.failures import Failure, failure_bytes, parse_failure
from torpor.golden.manifest import GoldenUnusable
from torpor.golden.store import GoldenStore

from tests.unit.golden.conftest import Clock
from tests.unit.golden.making import KEY, OTHER, SIZE_BYTES, left, publish, tree

THIRD = "ef" * 16


def test_the_longest_unused_goes_first(store: GoldenStore, root: Path, clock: Clock) -> None:
    goldens = [publish(store, key=key) for key in (KEY, OTHER, THIRD)]
    for golden in (goldens[1], goldens[2], goldens[0]):
        clock.now += 10
        store.used(golden)
    assert [golden.manifest.key for golden in store.list()] == [KEY, THIRD, OTHER]
    assert store.list()[0].last_used == clock.now
    assert store.collect() == ()
    tight = GoldenStore(root, 2 * SIZE_BYTES, clock)
    (gone,) = tight.collect()
    assert (gone.folder, gone.size_bytes) == (goldens[1].folder, SIZE_BYTES)
    assert gone.reason == f"longest unused, and all goldens together exceed {2 * SIZE_BYTES} bytes"
    assert left(root) - {f"{KEY}/{goldens[0].manifest.build}/used"} - {
        f"{THIRD}/{goldens[2].manifest.build}/used"
    } == tree(goldens[0]) | tree(goldens[2])
    with tight.hold(goldens[2]):
        assert len(GoldenStore(root, 0, clock).collect()) == 1
        assert [golden.folder for golden in store.list()] == [goldens[2].folder]
    assert len(GoldenStore(root, 0, clock).collect()) == 1
    assert left(root) == set()


def test_its_making_counts_as_a_use(store: GoldenStore, clock: Clock) -> None:
    golden = publish(store)
    assert golden.last_used == pytest.approx((golden.folder / "manifest.json").stat().st_mtime)
    store.used(golden)
    store.used(golden)
    found = store.find(KEY)
    assert found
    assert found.last_used == clock.now


def test_a_use_that_cannot_be_noted(
    store: GoldenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden = publish(store)
    (tmp_path / "elsewhere").touch()
    (golden.folder / "used").symlink_to(tmp_path / "elsewhere")
    store.used(golden)
    assert (tmp_path / "elsewhere").stat().st_mtime < 4e9
    (golden.folder / "used").unlink()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "utime", full)
    store.used(golden)


def test_removed(store: GoldenStore, root: Path) -> None:
    golden, other = publish(store), publish(store, key=OTHER)
    with store.hold(golden):
        assert store.remove(KEY) == 0
        publish(store)
        assert store.remove(KEY) == 1
        assert left(root) == tree(golden) | tree(other)
    assert store.remove(KEY) == 1
    assert store.remove(KEY) == 0
    assert left(root) == tree(other)
    with pytest.raises(GoldenUnusable):
        store.remove("../" + KEY)
    with pytest.raises(GoldenUnusable):
        store.find("")


def test_drafts_of_the_living_and_the_dead(store: GoldenStore, root: Path) -> None:
    draft = store.draft("mine")
    for name in ("no-lock", "free", "link", "open"):
        (root / f".draft-{name}" / "image").mkdir(parents=True, mode=0o700)
        (root / f".draft-{name}").chmod(0o755 if name == "open" else 0o700)
    (root / ".draft-free" / "lock").touch()
    (root / ".draft-free" / "image" / "pages.img").write_bytes(b"1234")
    (root / ".draft-link" / "lock").symlink_to(root / ".lock")
    gone = store.collect()
    assert {(each.folder.name, each.reason) for each in gone} == {
        (f".draft-{name}", "its builder is no more") for name in ("no-lock", "free", "link")
    }
    assert {each.size_bytes for each in gone if each.folder.name == ".draft-free"} == {4}
    assert {path.name for path in root.iterdir()} == {".lock", ".draft-mine", ".draft-open"}
    store.discard(draft)


def test_the_damaged_and_the_incomplete(store: GoldenStore, root: Path) -> None:
    damaged, incomplete = publish(store), publish(store, key=OTHER)
    os.truncate(damaged.image / "pages.img", 1)
    (incomplete.folder / "manifest.json").unlink()
    reasons = {gone.folder: gone.reason for gone in store.collect()}
    assert reasons == {
        damaged.folder: f"{damaged.image}/pages.img has 1 bytes, not 1000",
        incomplete.folder: "incomplete",
    }
    assert left(root) == {KEY, f"{KEY}/last-failure.json"}


def test_what_is_not_ours_to_judge_stays(store: GoldenStore, root: Path) -> None:
    golden = publish(store)
    (root / "lost+found").mkdir()
    (root / "README").touch()
    (root / KEY / ".nfs0001").touch()
    assert store.collect() == ()
    assert store.list() == (golden,)
    assert {path.name for path in root.iterdir()} == {".lock", KEY, "README", "lost+found"}


def test_a_disk_that_will_not_remove(
    store: GoldenStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden = publish(store)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refuse)
        assert store.remove(KEY) == 0
        assert GoldenStore(root, 0).collect() == ()
    assert store.find(KEY) == golden


# Failures


def test_longer_and_longer_waits(store: GoldenStore, root: Path) -> None:
    now, waits = 1000.0, []
    for _ in range(11):
        store.failed(KEY, "no memory", now)
        may, words = store.may_build(KEY, now)
        assert not may
        assert "no memory" in words
        wait_s = 0
        while not GoldenStore(root, 0).may_build(KEY, now + wait_s)[0]:
            wait_s += 10
        waits.append(wait_s)
        now += wait_s
    assert waits == [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600]
    assert store.may_build(KEY, now - 3601)[0], "the clock was set back"
    assert store.may_build(OTHER, now) == (True, "")
    assert store.failures()[KEY].in_a_row == 11
    store.succeeded(KEY)
    store.succeeded(KEY)
    assert store.may_build(KEY, now) == (True, "")
    assert left(root) == set()


def test_the_words(store: GoldenStore, root: Path) -> None:
    store.failed(KEY, "no memory", 1000.0)
    words = "building failed once, next try in 7 s: no memory"
    assert store.may_build(KEY, 1003.0) == (False, words)
    store.failed(KEY, "x" * 100_000, 1010.0)
    assert store.may_build(KEY, 1010.0)[1].startswith(
        "building failed 2 times in a row, next try in 20 s: xxx"
    )
    path = root / KEY / "last-failure.json"
    assert path.stat().st_size < 5000
    assert json.loads(path.read_bytes())["at"] == "1970-01-01T00:16:50+00:00"


def test_failures_survive_the_removal_of_the_golden(store: GoldenStore) -> None:
    publish(store)
    store.failed(KEY, "no memory", 1000.0)
    assert store.remove(KEY) == 1
    assert not store.may_build(KEY, 1000.0)[0]
    store.succeeded(KEY)


def test_succeeded_leaves_the_golden(store: GoldenStore, root: Path) -> None:
    golden = publish(store)
    store.failed(KEY, "no memory", 1000.0)
    store.succeeded(KEY)
    assert left(root) == tree(golden)


def test_old_failures_are_forgotten(store: GoldenStore, root: Path, clock: Clock) -> None:
    store.failed(KEY, "no memory", clock.now)
    (root / KEY / "last-failure.json.new").touch()
    clock.now += 86400
    store.collect()
    assert left(root) == {KEY, f"{KEY}/last-failure.json"}
    clock.now += 7 * 86400
    store.collect()
    assert left(root) == set()


@pytest.mark.parametrize("name", ["open", "mkdir", "rename"])
def test_a_full_disk_is_remembered(
    store: GoldenStore, root: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, name, full)
        store.failed(KEY, "no memory", 1000.0)
        store.failed(KEY, "no memory", 1000.0)
        assert not store.may_build(KEY, 1019.0)[0]
    assert not store.may_build(KEY, 1019.0)[0]
    assert not [path for path in left(root) if path.endswith((".json", ".new"))]
    store.failed(KEY, "no memory", 1000.0)
    assert not GoldenStore(root, 0).may_build(KEY, 1039.0)[0]
    store.succeeded(KEY)
    assert store.may_build(KEY, 1000.0)[0]


def test_a_root_open_to_others(store: GoldenStore, root: Path) -> None:
    root.mkdir(parents=True)
    root.chmod(0o755)
    store.failed(KEY, "no memory", 1000.0)
    assert not store.may_build(KEY, 1000.0)[0]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"{}",
        b"[" * 60_000,
        b'{"version": 1, "at": "now", "in_a_row": 1, "reason": ""}',
        b'{"version": 1, "at": "2026-01-01T00:00:00", "in_a_row": 1, "reason": ""}',
        b'{"version": 1, "at": "2026-01-01T00:00:00Z", "in_a_row": -1, "reason": ""}',
        b'{"version": 1, "at": "2026-01-01T00:00:00Z", "in_a_row": 1, "reason": 1}',
    ],
)
def test_a_damaged_record_is_no_failure(store: GoldenStore, root: Path, raw: bytes) -> None:
    store.failed(KEY, "no memory", 1000.0)
    (root / KEY / "last-failure.json").write_bytes(raw)
    assert store.may_build(KEY, 1000.0) == (True, "")
    assert store.failures() == {}
    with pytest.raises(ValueError, match=r"."):
        parse_failure(raw)


def test_the_record_is_not_read_through_a_link(store: GoldenStore, root: Path) -> None:
    store.failed(KEY, "no memory", 1000.0)
    path = root / KEY / failures.FAILURE
    path.rename(root / "elsewhere")
    path.symlink_to(root / "elsewhere")
    assert store.failures() == {}


def test_the_round_trip_of_a_failure() -> None:
    failure = Failure("né \n", 1_700_000_000.25, 3)
    assert parse_failure(failure_bytes(failure)) == failure
