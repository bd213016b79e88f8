"""What holds when a store, or the disk here, has lost something: on each kind of file system there is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from torpor.errors import Busy
from torpor.snapshot.errors import SnapshotUnusable, TransferCancelled
from torpor.snapshot.remote.store import RemoteStore
from torpor.snapshot.remote.transfer import Progress
from torpor.snapshot.store import SnapshotStore

from tests.contract.remote_place import (
    CHUNK_BYTES,
    Key,
    Place,
    RemoteFixtures,
    after,
    copy_of,
    publish,
)
from tests.unit.snapshot.making import KERNEL


class RemoteLossesContract(RemoteFixtures):
    @pytest.mark.parametrize("harm", ["gone", "cut"])
    def test_what_it_has_lost_is_sent_again(
        self,
        store: RemoteStore,
        place: Place,
        local: SnapshotStore,
        other: SnapshotStore,
        harm: str,
    ) -> None:
        snapshot = publish(local)
        row = store.push(snapshot)
        assert store.holds(KERNEL, 1, snapshot.manifest)
        name, raw = min(place.chunks().items(), key=lambda each: len(each[1]))
        if harm == "gone":
            place.remove(name)
        else:
            place.put(name, raw[:-1])
        assert not store.holds(KERNEL, 1, snapshot.manifest)
        assert not store.holds(KERNEL, 1)
        assert store.list() == (row,), "its manifest is there"
        seen: list[Progress] = []
        assert store.push(snapshot, seen.append) == row
        assert seen[-1].wire_bytes == len(raw)
        assert store.holds(KERNEL, 1)
        assert other.verify(store.fetch(KERNEL, 1, other)) is None

    def test_lost_of_an_upload_in_other_pieces(
        self, store: RemoteStore, place: Place, key: Key | None, local: SnapshotStore
    ) -> None:
        snapshot = publish(local)
        place.store(key, chunk_bytes=2 * CHUNK_BYTES).push(snapshot)
        place.remove(next(iter(place.chunks())))
        store.push(snapshot)
        assert store.holds(KERNEL, 1, snapshot.manifest)

    def test_holds_another(self, store: RemoteStore, local: SnapshotStore) -> None:
        snapshot = publish(local)
        assert not store.holds(KERNEL, 1)
        store.push(snapshot)
        assert not store.holds(KERNEL, 1, replace(snapshot.manifest, template="another"))

    def test_mended(
        self, store: RemoteStore, local: SnapshotStore, other: SnapshotStore, other_root: Path
    ) -> None:
        """What is damaged here gives way to what the store has, once that is all there."""
        store.push(publish(local))
        there = store.fetch(KERNEL, 1, other)
        pages = there.image / "pages.img"
        pages.write_bytes(bytes(pages.stat().st_size))
        assert other.damaged_copy_of(there.manifest)
        with pytest.raises(TransferCancelled):
            store.fetch(KERNEL, 1, other, mend=True, cancelled=after(6))
        assert other.damaged_copy_of(there.manifest), "it stays until there is another"
        again = store.fetch(KERNEL, 1, other, mend=True)
        assert other.verify(again) is None
        assert not other.damaged_copy_of(there.manifest)
        assert [path.name for path in (other_root / KERNEL).iterdir()] == ["1"]
        assert list((other_root / "+drafts").iterdir()) == []

    def test_nothing_else_is_mended(
        self, store: RemoteStore, local: SnapshotStore, other: SnapshotStore
    ) -> None:
        store.push(publish(local))
        another = publish(other, template="another")
        assert not other.damaged_copy_of(another.manifest)
        with pytest.raises(SnapshotUnusable, match="has generation 1 already"):
            store.fetch(KERNEL, 1, other, mend=True)
        with other.hold(another), pytest.raises(Busy):
            other.mend(copy_of(other, another), another.manifest)
        assert other.verify(another) is None
