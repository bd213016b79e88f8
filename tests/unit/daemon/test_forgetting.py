"""What a kernel that is no more had on the disk goes, though a transfer may just have begun."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from torpor.daemon import snapshots as module
from torpor.daemon.snapshots import Snapshots
from torpor.errors import Busy, SnapshotUnusable


class Store:
    """Two snapshots without a name, one with; the second is in use for ``busy`` looks."""

    def __init__(self, busy: int) -> None:
        self.busy = busy
        self.there = {1: "", 2: "", 3: "kept"}

    def list(self, _kernel_id: str) -> list[Any]:
        return [SimpleNamespace(generation=key, name=name) for key, name in self.there.items()]

    def drop(self, _kernel_id: str, generation: int) -> None:
        if generation == 2 and self.busy:
            self.busy -= 1
            raise Busy("somebody uses it")
        del self.there[generation]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FORGET_PAUSE_S", 0.001)


async def test_one_that_is_in_use_goes_as_soon_as_it_is_not() -> None:
    store = Store(busy=3)
    await Snapshots(cast(Any, store)).forget("k")
    assert store.there == {3: "kept"}


async def test_one_that_stays_in_use_is_told(caplog: pytest.LogCaptureFixture) -> None:
    store = Store(busy=1000)
    with caplog.at_level("WARNING", "torpor.daemon"):
        await Snapshots(cast(Any, store)).forget("k")
    assert store.there == {2: "", 3: "kept"}
    assert [record.message for record in caplog.records] == ["snapshots stay"]


async def test_other_trouble_is_told_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(busy=0)

    def drop(*_: object) -> None:
        raise SnapshotUnusable("no")

    monkeypatch.setattr(store, "drop", drop)
    with caplog.at_level("WARNING", "torpor.daemon"):
        await Snapshots(cast(Any, store)).forget("k")
    assert [record.message for record in caplog.records] == ["snapshots stay"]
