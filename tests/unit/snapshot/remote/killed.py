"""Push or fetch in a process that is killed before its first call of the store, its second, ...

Arguments: "push" or "fetch", and a folder to work in. One line of JSON for each death, with what a
new process finds, and at last one for the process that came through.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
from pathlib import Path

import fsspec
from torpor.snapshot.store import SnapshotStore

import tests.fakes.faulty_fs  # noqa: F401  makes the kind "faulty" known
from tests.contract.remote_place import Key, Place, publish
from tests.unit.snapshot.making import KERNEL, left


def main(act: str, base: Path) -> None:
    os.fsync = lambda fd: None  # a kill does not lose what is in the page cache
    for last in itertools.count(1):
        folder = base / str(last)
        local = SnapshotStore(folder / "local", 1 << 22)
        snapshot = publish(local)
        place = Place(f"file://{folder}/store")
        if act == "fetch":
            place.store(Key()).push(snapshot)
        child = os.fork()
        if not child:
            steps = itertools.count(1)

            def before(
                what: str, path: str, steps: itertools.count = steps, last: int = last
            ) -> None:
                if next(steps) == last:
                    os.kill(os.getpid(), signal.SIGKILL)

            options = {"inner": fsspec.filesystem("file"), "before": before}
            store = Place(f"faulty://{folder}/store", options).store(Key())
            if act == "push":
                store.push(snapshot)
            else:
                store.fetch(KERNEL, 1, SnapshotStore(folder / "other", 1 << 22))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(json.dumps(what_is_left(act, place, folder)))
        if not os.WIFSIGNALED(status):
            sys.exit(os.WEXITSTATUS(status))


def what_is_left(act: str, place: Place, folder: Path) -> dict[str, object]:
    other = SnapshotStore(folder / "other", 1 << 22)
    snapshot = SnapshotStore(folder / "local", 1 << 22).latest(KERNEL)
    assert snapshot
    other.reconcile([KERNEL])
    listed = len(place.store(Key()).list() if act == "push" else other.list())
    rest = sorted(left(folder / "other")) if (folder / "other").exists() else []
    wire_bytes = 0
    if act == "push":
        seen = [0]
        place.store(Key()).push(snapshot, lambda progress: seen.append(progress.wire_bytes))
        wire_bytes = seen[-1]
    fetched = place.store(Key()).fetch(KERNEL, 1, other)
    return {
        "listed": listed,
        "left": rest,
        "wire_bytes": wire_bytes,
        "uploads": len({name.split("/")[3] for name in place.chunks()}),
        "fetched": fetched.manifest == snapshot.manifest and other.verify(fetched) is None,
    }


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
