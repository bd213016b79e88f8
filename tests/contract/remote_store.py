"""What holds for every object store: one suite, run on each kind of file system there is.

A subclass gives the fixture ``place``.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from torpor.snapshot.build import Snapshot
from torpor.snapshot.errors import NoRoom, SnapshotUnusable, TransferCancelled
from torpor.snapshot.manifest import snapshot_bytes
from torpor.snapshot.remote.retention import RetentionPolicy
from torpor.snapshot.remote.store import RemoteStore
from torpor.snapshot.remote.transfer import Progress
from torpor.snapshot.store import SnapshotStore

from tests.contract.remote_place import (
    CHUNK_BYTES,
    NOW_S,
    Key,
    Place,
    RemoteFixtures,
    after,
    an_image,
    publish,
)
from tests.unit.snapshot.making import KERNEL, OTHER, left


class RemoteStoreContract(RemoteFixtures):
    def test_there_and_back(
        self, store: RemoteStore, local: SnapshotStore, other: SnapshotStore, other_root: Path
    ) -> None:
        snapshot = publish(local, name="a name")
        seen: list[Progress] = []
        row = store.push(snapshot, seen.append)
        assert store.list() == (row,)
        assert (row.kernel_id, row.generation, row.name) == (KERNEL, 1, "a name")
        assert seen[-1].done_bytes == seen[-1].total_bytes == snapshot.manifest.size_bytes
        assert seen[-1].wire_bytes == row.stored_bytes
        assert store.manifest(KERNEL, 1) == snapshot.manifest
        fetched = store.fetch(KERNEL, 1, other, seen.append)
        assert fetched.manifest == snapshot.manifest
        assert fetched.folder == other_root / KERNEL / "1"
        assert other.verify(fetched) is None
        assert SnapshotStore(other_root, 1 << 22).latest(KERNEL) == fetched
        for name, raw in an_image().items():
            assert (fetched.image / name).read_bytes() == raw
            assert (fetched.image / name).stat().st_mode & 0o777 == 0o600
        assert (fetched.folder / "manifest.json").read_bytes() == snapshot_bytes(snapshot.manifest)

    def test_zeros_are_not_sent(
        self, store: RemoteStore, place: Place, local: SnapshotStore
    ) -> None:
        zeros = {"pages.img": bytes(5 * CHUNK_BYTES + 7)}
        assert store.push(publish(local, zeros)).stored_bytes == 0
        assert place.chunks() == {}

    def test_nothing_there(self, store: RemoteStore, local: SnapshotStore) -> None:
        assert store.list() == ()
        assert store.manifest(KERNEL, 1) is None
        assert store.drop(KERNEL) == ()
        assert store.retain(RetentionPolicy(1, 1)) == ()
        with pytest.raises(SnapshotUnusable, match="has no generation 1"):
            store.fetch(KERNEL, 1, local)

    def test_twice(self, store: RemoteStore, place: Place, local: SnapshotStore) -> None:
        snapshot = publish(local)
        row = store.push(snapshot)
        before = place.objects()
        assert store.push(snapshot) == row
        assert place.objects() == before

    def test_fetched_twice(
        self, store: RemoteStore, local: SnapshotStore, other: SnapshotStore
    ) -> None:
        store.push(publish(local))
        assert store.fetch(KERNEL, 1, other) == store.fetch(KERNEL, 1, other)

    def test_cancelled_anywhere_and_gone_on_with(
        self, store: RemoteStore, place: Place, local: SnapshotStore, other: SnapshotStore
    ) -> None:
        snapshot = publish(local)
        ended = False
        for calls in range(0, 400, 1 if place.is_quick else 30):
            try:
                row = store.push(snapshot, cancelled=after(calls))
            except TransferCancelled:
                assert store.list() == ()
            else:
                ended = True
                break
        assert ended
        assert len({name.split("/")[3] for name in place.chunks()}) == 1
        assert store.list() == (row,)
        assert store.fetch(KERNEL, 1, other).manifest == snapshot.manifest

    def test_a_cancelled_fetch_leaves_nothing(
        self,
        store: RemoteStore,
        local: SnapshotStore,
        other: SnapshotStore,
        other_root: Path,
        place: Place,
    ) -> None:
        store.push(publish(local))
        ended = False
        for calls in range(0, 400, 1 if place.is_quick else 30):
            try:
                fetched = store.fetch(KERNEL, 1, other, cancelled=after(calls))
            except TransferCancelled:
                assert other.list() == ()
                assert not other_root.exists() or left(other_root) == set()
            else:
                ended = True
                break
        assert ended
        assert other.latest(KERNEL) == fetched

    def test_what_was_sent_is_not_sent_again(
        self, store: RemoteStore, place: Place, key: Key | None, local: SnapshotStore
    ) -> None:
        snapshot = publish(local)

        def end_late(progress: Progress) -> None:
            if progress.done_bytes > 4 * CHUNK_BYTES:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            store.push(snapshot, end_late)
        sent = place.chunks()
        assert len(sent) >= 2
        cut = min(sent)
        place.put(cut, sent[cut][:-1])
        seen: list[Progress] = []
        row = place.store(key).push(snapshot, seen.append)
        again = place.chunks()
        kept = set(sent) - {cut}
        assert {name: again[name] for name in kept} == {name: sent[name] for name in kept}
        assert len(again[cut]) == len(sent[cut])
        assert seen[-1].wire_bytes == row.stored_bytes - sum(len(sent[name]) for name in kept)

    def test_an_upload_of_something_else_is_not_gone_on_with(
        self,
        store: RemoteStore,
        place: Place,
        local: SnapshotStore,
        other: SnapshotStore,
        tmp_path: Path,
    ) -> None:
        def end(progress: Progress) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            store.push(publish(local), end)
        snapshot = publish(other, {"pages.img": b"another"})
        store.push(snapshot)
        assert len({name.split("/")[3] for name in place.chunks()}) == 2
        third = SnapshotStore(tmp_path / "third", 1 << 22)
        assert store.fetch(KERNEL, 1, third).manifest == snapshot.manifest

    def test_two_at_once(
        self, place: Place, key: Key | None, local: SnapshotStore, other: SnapshotStore
    ) -> None:
        snapshot = publish(local)
        start = threading.Barrier(4)

        def push(_: int) -> object:
            start.wait(10)
            return place.store(key).push(snapshot)

        with ThreadPoolExecutor(4) as pool:
            rows = list(pool.map(push, range(4)))
        assert rows[0] in place.store(key).list()
        assert place.store(key).fetch(KERNEL, 1, other).manifest == snapshot.manifest
        late = place.store(key, clock=lambda: NOW_S + 10 * 86400)
        late.retain(RetentionPolicy())
        assert len({name.split("/")[3] for name in place.chunks()}) == 1
        assert len(late.list()) == 1

    def test_two_fetch_at_once(
        self, store: RemoteStore, local: SnapshotStore, other: SnapshotStore, other_root: Path
    ) -> None:
        store.push(publish(local))
        start = threading.Barrier(3)

        def fetch(_: int) -> Snapshot:
            start.wait(10)
            return store.fetch(KERNEL, 1, other)

        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(fetch, range(3)))
        assert found == [other.latest(KERNEL)] * 3
        inside = {f"image/{name}" for name in an_image()}
        assert left(other_root) >= {f"{KERNEL}/1/{name}" for name in inside}
        assert not [name for name in left(other_root) if "draft" in name]

    def test_an_older_generation(self, store: RemoteStore, local: SnapshotStore) -> None:
        first, named, newest = publish(local), publish(local, name="kept"), publish(local)
        store.push(newest)
        with pytest.raises(SnapshotUnusable, match=r"generation 3 .* already, and 1 is older"):
            store.push(first)
        store.push(named)
        assert [row.generation for row in store.list()] == [2, 3]

    def test_another_snapshot_of_that_generation(
        self, store: RemoteStore, place: Place, local: SnapshotStore, other: SnapshotStore
    ) -> None:
        store.push(publish(local))
        before = place.objects()
        theirs = publish(other, {"pages.img": b"another"})
        with pytest.raises(SnapshotUnusable, match="has another generation 1"):
            store.push(theirs)
        assert place.objects() == before
        with pytest.raises(SnapshotUnusable, match=r"is another generation 1 .* here"):
            store.fetch(KERNEL, 1, other)
        assert other.latest(KERNEL) == theirs

    def test_dropped(self, store: RemoteStore, place: Place, local: SnapshotStore) -> None:
        rows = [store.push(publish(local)) for _ in range(11)]
        theirs = store.push(publish(local, kernel_id=OTHER))
        assert store.drop(KERNEL, 1) == (1,)
        assert store.drop(KERNEL, 1) == ()
        assert [each.generation for each in store.list()[:-1]] == list(range(2, 12))
        assert store.drop(KERNEL) == tuple(range(2, 12))
        assert store.list() == (theirs,)
        assert {name.split("/")[0] for name in place.objects()} == {OTHER}
        assert store.drop(OTHER) == (1,)
        assert place.objects() == {}
        assert len(rows) == 11

    def test_a_kernel_that_is_no_more(
        self, store: RemoteStore, place: Place, local: SnapshotStore
    ) -> None:
        def end(progress: Progress) -> None:
            raise KeyboardInterrupt

        for name in ("", "kept", ""):
            store.push(publish(local, name=name))
        theirs = store.push(publish(local, kernel_id=OTHER))
        with pytest.raises(KeyboardInterrupt):
            store.push(publish(local), end)
        damaged = f"{KERNEL}/3/manifest"
        place.put(damaged, place.objects()[damaged][:-1])
        assert [each.generation for each in store.look(KERNEL).stored] == [1, 2]
        assert store.forget(KERNEL) == (1, 4)
        assert store.forget(KERNEL) == ()
        assert [each.generation for each in store.look(KERNEL).stored] == [2]
        assert damaged in place.objects(), "it may have had a name"
        assert theirs in store.list()
        assert store.forget("nobody") == ()

    def test_probed(self, store: RemoteStore, place: Place, local: SnapshotStore) -> None:
        store.probe()
        assert place.objects() == {}
        row = store.push(publish(local))
        before = place.objects()
        store.probe()
        assert place.objects() == before
        assert store.list() == (row,)

    def test_retained(self, store: RemoteStore, place: Place, local: SnapshotStore) -> None:
        for name in ("", "kept", "", "", ""):
            store.push(publish(local, {"pages.img": b"p"}, name=name))
        gone = store.retain(RetentionPolicy(keep=2), protect={(KERNEL, 1)})
        assert [each.generation for each in gone] == [3]
        assert [each.generation for each in store.list()] == [1, 2, 4, 5]
        assert len(place.chunks()) == 4

    def test_unfinished_uploads_go_when_they_are_old(
        self, store: RemoteStore, place: Place, key: Key | None, local: SnapshotStore
    ) -> None:
        def end(progress: Progress) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            store.push(publish(local), end)
        headless = f"{KERNEL}/1/chunks/{int(NOW_S):012x}{'f' * 20}/header.1234"
        place.put(headless, b"")
        before = place.objects()
        store.retain(RetentionPolicy())
        assert place.objects() == before
        place.store(key, clock=lambda: NOW_S + 3 * 86400).retain(RetentionPolicy())
        assert place.objects() == {}

    def test_whatever_is_broken_is_found(
        self,
        place: Place,
        key: Key | None,
        local: SnapshotStore,
        other: SnapshotStore,
        other_root: Path,
    ) -> None:
        place.store(key).push(publish(local))
        good = place.objects()
        tampered: list[dict[str, bytes | None]] = []
        chunks = list(place.chunks())
        manifest = f"{KERNEL}/1/manifest"
        for name in [*chunks, manifest] if place.is_quick else [chunks[-1], manifest]:
            raw = good[name]
            for at in {0, 20, len(raw) // 2, len(raw) - 1}:
                flipped = bytearray(raw)
                flipped[min(at, len(raw) - 1)] ^= 1
                tampered.append({name: bytes(flipped)})
            tampered += [{name: raw[:-1]}, {name: raw + b"x"}, {name: b""}]
        tampered += [{name: None} for name in chunks]
        tampered.append({chunks[1]: good[chunks[2]], chunks[2]: good[chunks[1]]})
        for changes in tampered:
            for name, raw in changes.items():
                place.put(name, raw) if raw is not None else place.remove(name)
            with pytest.raises(SnapshotUnusable) as caught:
                place.store(key).fetch(KERNEL, 1, other)
            assert caught.value.hint
            assert not other_root.exists() or left(other_root) == set()
            for name in changes:
                place.put(name, good[name])
        assert place.store(key).fetch(KERNEL, 1, other)

    def test_over_the_budget(
        self, store: RemoteStore, local: SnapshotStore, other_root: Path
    ) -> None:
        store.push(publish(local))
        small = SnapshotStore(other_root, 1000)
        with pytest.raises(NoRoom, match="all snapshots together"):
            store.fetch(KERNEL, 1, small)
        assert left(other_root) == set()

    def test_a_local_file_that_changed(
        self, store: RemoteStore, place: Place, local: SnapshotStore
    ) -> None:
        snapshot = publish(local)
        path = snapshot.image / "pages.img"
        for raw in (b"x" + path.read_bytes()[1:], b"short", path.read_bytes() + b"x"):
            path.write_bytes(raw)
            with pytest.raises(SnapshotUnusable, match="another content than was written"):
                store.push(snapshot)
            assert store.list() == ()
        local.drop(KERNEL)
        with pytest.raises(SnapshotUnusable, match="has been removed"):
            store.push(snapshot)

    def test_secrets_stay_here(self, place: Place, local: SnapshotStore) -> None:
        content = {"pages.img": b"torpor" * CHUNK_BYTES}
        place.store(Key()).push(publish(local, content))
        for name, raw in place.objects().items():
            assert b"very-secret" not in raw
            assert b"torpor" * 2 not in raw
            assert os.path.basename(name) == "manifest" or b"python3" not in raw

    def test_keys(self, place: Place, local: SnapshotStore, other: SnapshotStore) -> None:
        place.store(Key()).push(publish(local))
        place.store().push(publish(local, kernel_id=OTHER))
        wrong = place.store(Key(b"w" * 32))
        calls: list[tuple[Callable[[], object], str]] = [
            (lambda: wrong.fetch(KERNEL, 1, other), "sealed with the key .*, and the key here is"),
            (lambda: place.store().fetch(KERNEL, 1, other), "and there is no key here"),
            (lambda: place.store(Key()).fetch(OTHER, 1, other), "is not sealed, and this store"),
        ]
        for call, words in calls:
            with pytest.raises(SnapshotUnusable, match=words) as caught:
                call()
            assert "key" in caught.value.hint
        look = wrong.look()
        assert look.stored == ()
        assert [each[:2] for each in look.unusable] == [(KERNEL, 1), (OTHER, 1)]
        assert other.list() == ()
        assert wrong.retain(RetentionPolicy(1, 1)) == ()
        assert len(place.store().list()) == 1
