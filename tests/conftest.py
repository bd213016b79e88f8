"""What holds for every test: it leaves nothing where temporary files are, no cgroup, nothing that is open."""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.world import cgroups

_TMP = Path("/tmp")
# Not all that is there is ours: these are the names that Python, IPython and the guest give.
_OURS = ("tmp", ".torpor-", ".ipython", "torpor-user-")
_SETTLE_S = 5.0
_LONG_S = 0.1
_seen: dict[str, str] = {}


def pytest_configure() -> None:
    """Let the tests clean up also when they are told to end: what they have started outlives them."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Have a later collection of garbage look only at what the tests have made, which takes milliseconds."""
    gc.collect()
    gc.freeze()


def _there() -> set[str]:
    found = set()
    with os.scandir(_TMP) as entries:
        for entry in entries:
            if not entry.name.startswith(_OURS):
                continue
            try:
                if entry.stat(follow_symlinks=False).st_uid == os.geteuid():
                    found.add(entry.name)
            except FileNotFoundError:
                continue
    return found


@pytest.fixture(scope="session", autouse=True)
def nothing_left_in_tmp() -> Iterator[None]:
    """Fail the session when something is still there at its end, and say since which test."""
    before = _there()
    yield
    ends_at = time.monotonic() + _SETTLE_S  # a process that is just ending removes its own
    while (new := _there() - before) and time.monotonic() < ends_at:
        time.sleep(0.1)
    left = {name: _seen.get(name, "the end") for name in new}
    assert not left, f"left in {_TMP}, by name, with the test after which it was there: {left}"


@pytest.fixture(scope="session", autouse=True)
def no_cgroup_left() -> Iterator[None]:
    """Fail the session when a sandbox's cgroup outlives its processes, and say since which test."""
    yield
    ends_at = time.monotonic() + _SETTLE_S
    while (left := cgroups()) and time.monotonic() < ends_at:
        time.sleep(0.1)
    told = {path: _seen.get(path, "the end") for path in left}
    assert not left, f"cgroups left, with the test after which they were there: {told}"


@pytest.fixture(autouse=True)
def nothing_left_open(noted: None) -> Iterator[None]:
    """Have a test that left a socket or file to the garbage collector fail itself.

    Else another test would, or the session after its last one, whenever the collector comes by. Only those that
    took a while are looked at, which are those that open something.
    """
    began = time.monotonic()
    yield
    if time.monotonic() - began > _LONG_S:
        gc.collect()


@pytest.fixture(autouse=True)
def noted(
    request: pytest.FixtureRequest, nothing_left_in_tmp: None, no_cgroup_left: None
) -> Iterator[None]:
    """Note which test something new was there after."""
    yield
    for name in [*_there(), *cgroups()]:
        _seen.setdefault(name, request.node.nodeid)
