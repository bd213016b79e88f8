"""Publish a golden in a process that is killed before its first system call, its second, ...

Arguments: a folder to work in; "older" for a key that has a build already. One line of JSON for each
death, with what a new process finds, and at last one for the process that came through.
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

from torpor.golden.store import GoldenStore

from tests.unit.golden.making import KEY, a_manifest, fill, left, publish, tree

STEPS = ("open", "close", "mkdir", "rmdir", "unlink", "rename", "fsync", "fchmod", "utime", "dup")


def main(base: Path, older: bool) -> None:
    os.fsync = lambda fd: None  # a kill does not lose what is in the page cache
    for last in itertools.count(1):
        root = base.parent / str(last)
        store = GoldenStore(root, 10_000)
        if older:
            publish(store, build="older")
        child = os.fork()
        if not child:
            build(GoldenStore(root, 10_000), last)
        _, status = os.waitpid(child, 0)
        print(json.dumps(what_is_left(root, find_first=last % 2 == 0)))
        if not os.WIFSIGNALED(status):
            sys.exit(os.WEXITSTATUS(status))


def build(store: GoldenStore, last: int) -> None:
    manifest = a_manifest(build="newer")
    draft = store.draft("newer")
    fill(draft)
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
    store.publish(draft, manifest)
    os._exit(0)


def what_is_left(root: Path, find_first: bool) -> dict[str, object]:
    store = GoldenStore(root, 10_000)
    first = store.find(KEY) if find_first else None
    collected = [gone.reason for gone in store.collect()]
    golden = store.find(KEY)
    assert not find_first or golden == first
    rest = left(root) - (tree(golden) if golden else set())
    return {
        "found": golden.manifest.build if golden else None,
        "damage": store.verify(golden) if golden else None,
        "failures": len(store.failures()),
        "collected": collected,
        "rest": len(rest),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] == "older")
