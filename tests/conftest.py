"""What holds for every test: it leaves nothing where temporary files are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

_TMP = Path("/tmp")
# Not all that is there is ours: these are the names that Python, IPython and the guest give.
_OURS = ("tmp", ".torpor-", ".ipython", "torpor-user-")
_seen: dict[str, str] = {}


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
    left = {name: _seen.get(name, "the end") for name in _there() - before}
    assert not left, f"left in {_TMP}, by name, with the test after which it was there: {left}"


@pytest.fixture(autouse=True)
def noted_in_tmp(request: pytest.FixtureRequest, nothing_left_in_tmp: None) -> Iterator[None]:
    """Note which test something new was there after."""
    yield
    for name in _there():
        _seen.setdefault(name, request.node.nodeid)
