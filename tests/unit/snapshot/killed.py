"""Publish a snapshot in a process that is killed before its first system call, its second, ...

Arguments: a folder to work in; what to do there, "publish", "answered" or "drop". One line of JSON
for each death, with what a new process finds, and at last one for the process that came through.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torpor.snapshot.store import SnapshotStore

from tests.unit.golden.killed import STEPS
from tests.unit.snapshot.making import (
    KERNEL,
    a_manifest,
    fill,
    generations,
    left,
    publish,
    tree,
    whole,
)

BUDGET_BYTES = 1 << 20


def main(base: Path, act: str) -> None:
    os.fsync = lambda fd: None  # a kill does not lose what is in the page cache
    for last in itertools.count(1):
        root = base.parent / str(last)
        store = SnapshotStore(root, BUDGET_BYTES)
        publish(store)
        publish(store, name="kept")
        publish(store)
        child = os.fork()
        if not child:
            ACTS[act](SnapshotStore(root, BUDGET_BYTES), last)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(json.dumps(what_is_left(root)))
        if not os.WIFSIGNALED(status):
            sys.exit(os.WEXITSTATUS(status))


def kill_before_step(last: int) -> None:
    steps = itertools.count(1)

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if next(steps) == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return call

    for name in STEPS:
        setattr(os, name, counted(getattr(os, name)))
    fcntl.flock = counted(fcntl.flock)


def publish_one(store: SnapshotStore, last: int) -> None:
    kill_before_step(last)
    draft = store.draft(1000)
    fill(draft)
    store.publish(draft, a_manifest(generation=4))


def answer(store: SnapshotStore, last: int) -> None:
    kill_before_step(last)
    store.answered(KERNEL, 3)


def drop(store: SnapshotStore, last: int) -> None:
    kill_before_step(last)
    store.drop(KERNEL)


ACTS = {"publish": publish_one, "answered": answer, "drop": drop}


def what_is_left(root: Path) -> dict[str, object]:
    store = SnapshotStore(root, BUDGET_BYTES)
    before = generations(store)
    latest = store.latest(KERNEL)
    reconciled = store.reconcile([KERNEL])
    found = whole(store)
    assert generations(store) == before
    return {
        "generations": before,
        "latest": latest.manifest.generation if latest else None,
        "damage": [store.verify(snapshot) for snapshot in found if store.verify(snapshot)],
        "unusable": len(reconciled.unusable),
        "removed": [gone.reason for gone in reconciled.removed],
        "rest": len(left(root) - tree(*found)),
        "next": store.next_generation(KERNEL),
        "room": publish(store).manifest.generation,
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
