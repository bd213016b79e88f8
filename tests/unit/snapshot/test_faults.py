"""Publishing, freeing and dropping that fail, or die, at each of their steps."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from torpor.snapshot.build import Snapshot
from torpor.snapshot.store import SnapshotStore

from tests.unit.golden.test_faults import Faults
from tests.unit.snapshot.making import (
    CONTENT,
    KERNEL,
    a_manifest,
    fill,
    generations,
    left,
    publish,
    rows,
    tree,
    whole,
)

BUDGET_BYTES = 1 << 20
# What cleaning up needs as well: then ``reconcile`` does it, once it can.
NEEDED = (("open", True), ("unlink", True))
CALLS = ["open", "fchmod", "fsync", "dup", "mkdir", "rename", "unlink", "stat", "listdir"]


@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_a_full_disk(root: Path, name: str, lasting: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for first in range(1, 100):
        store = SnapshotStore(root / str(first), BUDGET_BYTES)
        older = (publish(store), publish(store, name="kept"))
        draft = store.draft(2000)
        fill(draft)
        faults = Faults(getattr(os, name), first, 10**6 if lasting else first)
        newer = None
        with monkeypatch.context() as patch:
            patch.setattr(os, name, faults)
            with suppress(OSError):
                newer = store.publish(draft, a_manifest(generation=3))
        if not newer and (name, lasting) not in NEEDED:
            assert not draft.exists()
        later = SnapshotStore(root / str(first), BUDGET_BYTES)
        for each in (store, later):
            each.discard(draft)
            each.reconcile([KERNEL])
            assert_whole(each, root / str(first), older, newer, (name, lasting))
        assert store.room(BUDGET_BYTES - store.used_bytes()) is None
        publish(store)
        if faults.calls < first:
            assert first > 1
            break
    else:
        pytest.fail("it never ran through")


def assert_whole(
    store: SnapshotStore,
    root: Path,
    older: tuple[Snapshot, ...],
    newer: Snapshot | None,
    fault: tuple[str, bool],
) -> None:
    found = whole(store)
    assert found[:2] == older
    if newer or fault not in NEEDED:
        assert found[2:] == ((newer,) if newer else ())
    assert all(store.verify(snapshot) is None for snapshot in found)
    assert left(root) == tree(*found)


def test_a_manifest_that_cannot_be_written(store: SnapshotStore, root: Path) -> None:
    older = publish(store)
    draft = store.draft(2000)
    fill(draft)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            store.publish(draft, a_manifest(generation=2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert store.list() == rows(older)
    assert left(root) == tree(older)


@pytest.mark.parametrize("name", ["open", "mkdir", "stat", "statvfs"])
def test_a_draft_that_cannot_be_made(
    root: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for first in range(1, 100):
        store = SnapshotStore(root / str(first), BUDGET_BYTES)
        draft = None
        faults = Faults(getattr(os, name), first, first)
        with monkeypatch.context() as patch:
            patch.setattr(os, name, faults)
            with suppress(OSError):
                draft = store.draft(1000)
        if not draft:
            assert not (root / str(first)).exists() or left(root / str(first)) == set()
        assert (store.room(BUDGET_BYTES) is None) == (not draft)
        if faults.calls < first:
            assert first > 1
            break
    else:
        pytest.fail("it never ran through")


def killed(root: Path, act: str) -> list[dict[str, object]]:
    root.parent.mkdir()
    env = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("killed.py"), root, act],
        capture_output=True,
        text=True,
        env=env,
        cwd=Path(__file__).parents[3],
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outcomes: list[dict[str, object]] = [json.loads(line) for line in done.stdout.splitlines()]
    for outcome in outcomes:
        assert outcome["damage"] == []
        assert outcome["unusable"] == outcome["rest"] == 0
        assert outcome["room"] == outcome["next"]
    return outcomes


def once_each(found: list[object]) -> list[object]:
    """In the order in which they come first; each only once in a row."""
    return [each for n, each in enumerate(found) if not n or each != found[n - 1]]


def test_killed_while_publishing(root: Path) -> None:
    outcomes = killed(root, "publish")
    found = [outcome["generations"] for outcome in outcomes]
    first_new = found.index([1, 2, 3, 4])
    assert first_new > 20
    assert found[:first_new] == [[1, 2, 3]] * first_new
    assert found[first_new:] == [[1, 2, 3, 4]] * (len(found) - first_new)
    assert {outcome["latest"] for outcome in outcomes[first_new:]} == {4}
    removed = [outcome["removed"] for outcome in outcomes]
    assert ["its builder is no more"] in removed[:first_new]
    assert removed[first_new:] == [[]] * (len(found) - first_new)


def test_killed_while_freeing(root: Path) -> None:
    outcomes = killed(root, "answered")
    found = [outcome["generations"] for outcome in outcomes]
    assert once_each(found) == [[1, 2, 3], [2, 3]]
    assert {outcome["latest"] for outcome in outcomes} == {3}
    assert ["incomplete"] in [outcome["removed"] for outcome in outcomes]


def test_killed_while_dropping(root: Path) -> None:
    outcomes = killed(root, "drop")
    found = [outcome["generations"] for outcome in outcomes]
    assert once_each(found) == [[1, 2, 3], [2, 3], [3], []]
    assert outcomes[-1]["removed"] == []


def test_the_draft_of_a_live_maker_in_another_process(root: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from torpor.snapshot.store import SnapshotStore\n"
        "store = SnapshotStore(Path(sys.argv[1]), 1 << 20); print(store.draft(), flush=True)\n"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, root],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    ) as maker:
        assert maker.stdout
        draft = Path(maker.stdout.readline().strip())
        fill(draft)
        store = SnapshotStore(root, BUDGET_BYTES)
        assert store.reconcile([]).removed == ()
        assert store.used_bytes() == sum(map(len, CONTENT.values()))
        maker.kill()
        maker.wait()
        assert [gone.folder for gone in store.reconcile([]).removed] == [draft]
    assert left(root) == set()
    assert generations(store) == []
