"""Publishing that fails, or dies, at each of its steps."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from torpor.golden.store import GoldenStore

from tests.unit.golden.making import KEY, a_manifest, fill, left, publish, tree

# What cleaning up needs as well: then a collection does it, once it can.
NEEDED = (("open", True), ("unlink", True))


class Faults:
    """Has the calls of one function fail from the ``first`` on, ``last`` included."""

    def __init__(self, real: Callable[..., Any], first: int, last: int) -> None:
        self.calls, self._real, self._wrong = 0, real, range(first, last + 1)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.calls in self._wrong:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._real(*args, **kwargs)


@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("name", ["fsync", "rename", "open", "mkdir", "utime", "fchmod", "unlink"])
def test_a_full_disk(root: Path, name: str, lasting: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for first in range(1, 100):
        store = GoldenStore(root / str(first), 10_000)
        older = publish(store)
        manifest = a_manifest()
        draft = store.draft(manifest.build)
        fill(draft)
        faults = Faults(getattr(os, name), first, 10**6 if lasting else first)
        newer = None
        with monkeypatch.context() as patch:
            patch.setattr(os, name, faults)
            with suppress(OSError):
                newer = store.publish(draft, manifest)
        if not newer and (name, lasting) not in NEEDED:
            assert not draft.exists()
        store.collect()
        golden = store.find(KEY)
        assert golden
        assert golden == (newer or older) or (name, lasting) == ("open", True)
        assert store.verify(golden) is None
        assert left(root / str(first)) == tree(golden)
        publish(store)
        if faults.calls < first:
            break
    else:
        pytest.fail("it never ran through")


@pytest.mark.parametrize("before", ["nothing", "older"])
def test_killed_at_each_step(root: Path, before: str) -> None:
    root.parent.mkdir()
    script = Path(__file__).with_name("killed.py")
    env = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, script, root, before],
        capture_output=True,
        text=True,
        env=env,
        cwd=Path(__file__).parents[3],
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    found = [outcome["found"] for outcome in outcomes]
    first_new = found.index("newer")
    assert first_new > 10
    assert set(found[:first_new]) == {"older" if before == "older" else None}
    assert set(found[first_new:]) == {"newer"}
    assert {outcome["damage"] for outcome in outcomes} == {None}
    assert {outcome["failures"] for outcome in outcomes} == {0}
    assert {outcome["rest"] for outcome in outcomes} == {0}
    assert outcomes[0]["collected"] == ["its builder is no more"]
    reasons = {reason for outcome in outcomes for reason in outcome["collected"]}
    expected = {"its builder is no more"}
    if before == "older":
        expected |= {"superseded by a newer build", "incomplete"}
    assert reasons == expected


def test_the_draft_of_a_live_builder_in_another_process(root: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from torpor.golden.store import GoldenStore\n"
        "store = GoldenStore(Path(sys.argv[1]), 1); store.draft('b1')\n"
        "print('made', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, root],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    ) as builder:
        assert builder.stdout
        builder.stdout.readline()
        store = GoldenStore(root, 1)
        assert store.collect() == ()
        assert (root / ".draft-b1").exists()
        builder.kill()
        builder.wait()
        assert [gone.reason for gone in store.collect()] == ["its builder is no more"]
    assert left(root) == set()
