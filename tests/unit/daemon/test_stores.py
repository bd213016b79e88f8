"""What goes to a store, what comes back and what leaves it; in memory, on a store of fsspec's."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from torpor.daemon.snapshots import Snapshots
from torpor.daemon.stores import Stores
from torpor.daemon.threads import in_thread
from torpor.errors import Busy, ConfigError, SnapshotUnusable, TransferCancelled
from torpor.golden.image import Digests
from torpor.lifecycle import Status
from torpor.snapshot.build import Snapshot
from torpor.snapshot.later import is_complete
from torpor.snapshot.remote.configured import StoreSettings, parse_store
from torpor.snapshot.remote.transfer import Progress
from torpor.snapshot.store import SnapshotStore

from tests.unit.daemon.storing import MIB, World, until
from tests.unit.snapshot.making import KERNEL, OTHER, publish
from tests.unit.snapshot.test_later import flip, publish_later


async def test_what_a_kernel_sleeps_in_is_sent_and_what_has_a_name(tmp_path: Path) -> None:
    world = World(tmp_path)
    publish(world.local)
    publish(world.local, name="before")
    publish(world.local)
    publish(world.local, kernel_id=OTHER)
    world.kernel(Status.ASLEEP, 3)
    world.kernel(Status.LIVE, 1, OTHER)
    async with world.running():
        await until(lambda: world.stored() == [(KERNEL, 2), (KERNEL, 3)])
        await asyncio.sleep(0.1)
    assert world.stored() == [(KERNEL, 2), (KERNEL, 3)]
    assert len(world.here()) == 4, "nothing goes that is to be kept"


async def test_dropped_only_when_the_store_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torpor.daemon.tiering._FIRST_PAUSE_S", 0.1)
    world = World(tmp_path, local="drop")
    world.configured, right = (
        parse_store({"url": "nosuchthing://x", "local": "drop"}),
        (world.configured),
    )
    publish(world.local)
    publish(world.local)
    publish(world.local, kernel_id=OTHER)
    world.kernel(Status.ASLEEP, 2)
    world.kernel(Status.LIVE, 1, OTHER)
    async with world.running():
        await until(lambda: "store" in world.tiering.troubles)
        assert len(world.here()) == 3
        assert "nosuchthing" in world.tiering.troubles["store"].reason
        world.configured = right
        await until(lambda: world.here() == [])
        assert world.stored() == [(KERNEL, 1), (KERNEL, 2), (OTHER, 1)]
        assert "store" not in world.tiering.troubles


async def test_what_is_in_use_or_made_for_a_moment_stays(tmp_path: Path) -> None:
    world = World(tmp_path, local="drop")
    publish(world.local)
    publish(world.local)
    kernel = world.kernel(Status.LIVE, 2)
    world.stores.passing.add((KERNEL, 2))
    async with world.running():
        async with kernel.lock:
            await asyncio.sleep(0.2)
            assert world.stored() == []
        await until(lambda: world.here() == [(KERNEL, 2)])
        await asyncio.sleep(0.2)
        assert world.stored() == [(KERNEL, 1)]
        assert world.here() == [(KERNEL, 2)]


async def test_a_copy_in_use_stays_until_it_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torpor.daemon.tiering._FIRST_PAUSE_S", 0.05)
    world = World(tmp_path, local="drop")
    snapshot = publish(world.local, name="before")
    async with world.running():
        with world.local.hold(snapshot):
            await until(lambda: world.stored() == [(KERNEL, 1)])
            await asyncio.sleep(0.3)
            assert world.here() == [(KERNEL, 1)]
        await until(lambda: world.here() == [])


async def test_copies_of_kernels_that_never_were_here_go_too(tmp_path: Path) -> None:
    world = World(tmp_path, local="drop")
    world.remote.push(publish(world.local))
    publish(world.local, kernel_id=OTHER)
    async with world.running():
        await until(lambda: world.here() == [(OTHER, 1)])
        await until(lambda: bool(world.tiering.troubles))
    assert world.stored() == [(KERNEL, 1)], "what nobody has sent stays where it is"


async def test_it_waits_as_long_as_it_is_told(tmp_path: Path) -> None:
    world = World(tmp_path, after_s=0.5)
    publish(world.local)
    kernel = world.kernel(Status.ASLEEP, 1)
    async with world.running():
        await until(lambda: world.stored() == [(KERNEL, 1)])  # looks from the beginning
        assert time.time() - kernel.row.tier_since >= 0.5


async def test_a_kernel_that_is_no_more_leaves_but_for_its_names(tmp_path: Path) -> None:
    world = World(tmp_path)
    for name in ("", "before", ""):
        world.remote.push(publish(world.local, name=name))
    world.local.drop(KERNEL)
    world.stores.leave(KERNEL)
    async with world.running():
        await until(lambda: world.stored() == [(KERNEL, 2)])
        await until(lambda: not world.stores.leaving)


async def test_retention_spares_what_a_kernel_sleeps_in(tmp_path: Path) -> None:
    world = World(tmp_path, keep=1)
    for _ in range(4):
        world.remote.push(publish(world.local))
    world.local.drop(KERNEL)
    world.kernel(Status.ASLEEP, 2)
    async with world.running():
        await until(lambda: world.stored() == [(KERNEL, 2), (KERNEL, 4)])
        publish(world.local, generation=5)
        world.kernels[KERNEL].row = replace(world.kernels[KERNEL].row, generation=5)
        world.stores.news.set()
        await until(lambda: world.stored() == [(KERNEL, 5)])


async def test_what_the_store_refuses_is_told_and_does_not_hold_up_others(tmp_path: Path) -> None:
    world = World(tmp_path)
    elsewhere = SnapshotStore(tmp_path / "elsewhere", MIB)
    world.remote.push(publish(elsewhere, template="another"))
    publish(world.local)
    publish(world.local, kernel_id=OTHER)
    world.kernel(Status.ASLEEP, 1)
    world.kernel(Status.ASLEEP, 1, OTHER)
    async with world.running():
        await until(lambda: (OTHER, 1) in world.stored())
        await until(lambda: (KERNEL, 1) in world.tiering.troubles)
    assert "has another generation 1" in world.tiering.troubles[KERNEL, 1].reason


async def test_fetched_held_and_gone_again(tmp_path: Path) -> None:
    world = World(tmp_path)
    snapshot = publish(world.local, name="before")
    world.remote.push(snapshot)
    for which in (1, "before", None):
        world.local.drop(KERNEL)
        heard: list[int] = []
        at_hand = world.stores.at_hand(
            KERNEL, which, told=lambda it, to=heard: to.append(it.percent), keep=False
        )
        async with at_hand as found:
            assert found == Snapshot(snapshot.manifest, found.folder)
            with pytest.raises(Busy):
                world.local.drop(KERNEL, 1)
        assert heard[0] == 0
        assert heard[-1] == 100
        assert world.here() == []
    async with world.stores.at_hand(KERNEL, 1):
        pass
    assert world.here() == [(KERNEL, 1)]
    async with world.stores.at_hand(KERNEL, "before", keep=False):
        pass
    assert world.here() == [(KERNEL, 1)], "it was here before"
    assert world.stores.transfers == []


async def test_one_without_all_digests_is_sent_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torpor.snapshot.image.LARGE_BYTES", 100)
    world = World(tmp_path)
    published = publish_later(world.local)
    assert not is_complete(published.manifest.files)
    await world.stores.push(KERNEL, 1)
    stored = world.remote.manifest(KERNEL, 1)
    assert stored is not None
    assert is_complete(stored.files)
    assert await world.stores.has_for_certain(KERNEL, 1)
    async with world.stores.at_hand(KERNEL, 1) as here:
        assert here.manifest == stored
    assert await world.stores.drop_surely(KERNEL, 1)
    fetched = await world.stores.fetch(KERNEL, 1)
    assert fetched.manifest == stored
    assert world.local.verify(fetched) is None


async def test_one_without_all_digests_is_compared_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torpor.snapshot.image.LARGE_BYTES", 100)
    world = World(tmp_path)
    elsewhere = SnapshotStore(tmp_path / "elsewhere", MIB)
    for store, changes in ((elsewhere, {"hostname": "another"}), (world.local, {})):
        publish_later(store, **changes)
        publish_later(store, kernel_id=OTHER)
    for kernel_id in (KERNEL, OTHER):
        there = elsewhere.get(kernel_id, 1)
        assert there is not None
        world.remote.push(elsewhere.complete(there))
    assert await world.stores.has_for_certain(OTHER, 1)
    assert not await world.stores.has_for_certain(KERNEL, 1)


async def test_one_is_on_its_way_while_its_digests_are_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torpor.snapshot.image.LARGE_BYTES", 100)
    world = World(tmp_path)
    publish_later(world.local)
    began, go_on, of = threading.Event(), threading.Event(), Digests.of

    def slow(digests: Digests, path: Path) -> str:
        began.set()
        assert go_on.wait(10)
        return of(digests, path)

    monkeypatch.setattr(Digests, "of", slow)
    pushing = asyncio.create_task(world.stores.push(KERNEL, 1))
    try:
        await until(began.is_set)
        [transfer] = world.stores.transfers
        assert (transfer.kernel_id, transfer.direction) == (KERNEL, "push")
    finally:
        go_on.set()
    await pushing
    assert world.stores.transfers == []
    assert world.stored() == [(KERNEL, 1)]


async def test_one_that_was_touched_before_is_not_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torpor.snapshot.image.LARGE_BYTES", 100)
    world = World(tmp_path)
    flip(publish_later(world.local))
    with pytest.raises(SnapshotUnusable, match="was changed after it was written"):
        await world.stores.push(KERNEL, 1)
    assert world.stores.transfers == []
    assert world.stored() == []
    assert world.here() == [(KERNEL, 1)]


async def test_the_last_copy_is_not_dropped(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.remote.push(publish(world.local))
    world.local.drop(KERNEL)
    async with world.stores.at_hand(KERNEL, 1, keep=False):
        world.remote.drop(KERNEL)  # another machine's retention, or somebody by hand
    assert world.here() == [(KERNEL, 1)]


async def test_a_damaged_snapshot_is_not_copied(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path / "snapshots", 100 << 20)
    pages = publish(store).image / "pages.img"
    pages.write_bytes(bytes([pages.read_bytes()[0] ^ 1]) + pages.read_bytes()[1:])
    again = SnapshotStore(tmp_path / "snapshots", 100 << 20)  # the next daemon's
    found = again.get(KERNEL, 1)
    assert found is not None
    with pytest.raises(SnapshotUnusable, match=r"pages\.img"):
        await Snapshots(again).copy(found, OTHER)
    assert [each.kernel_id for each in again.list()] == [KERNEL]


async def test_nothing_to_be_found(tmp_path: Path) -> None:
    world = World(tmp_path)
    for which, said in ((1, "no generation 1"), ("x", "no snapshot 'x'"), (None, "no snapshot")):
        with pytest.raises(SnapshotUnusable, match=said):
            async with world.stores.at_hand(KERNEL, which):
                pass
    world.configured = None
    with pytest.raises(SnapshotUnusable, match="is not on this disk"):
        async with world.stores.at_hand(KERNEL, 1):
            pass
    with pytest.raises(SnapshotUnusable, match="has no snapshot"):
        await world.stores.find(KERNEL, None)
    with pytest.raises(ConfigError, match="no store is configured"):
        await world.stores.ask(lambda store, stopped: None, name="x")
    assert await world.stores.remove(KERNEL, 1) is False


async def test_the_newest_wherever_it_is(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.remote.push(publish(world.local))
    assert await world.stores.find(KERNEL, None) == 1
    publish(world.local)
    assert await world.stores.find(KERNEL, None) == 2
    world.local.drop(KERNEL)
    assert await world.stores.find(KERNEL, None) == 1


async def test_a_look(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.remote.push(publish(world.local, name="before"))
    assert await world.stores.look(5) == ""
    assert [row.name for row in world.stores.known] == ["before"]
    assert world.stores.has_name(KERNEL, "before")
    assert not world.stores.has_name(OTHER, "before")
    assert world.stores.shown == world.url
    await world.stores.push(KERNEL, 1)
    world.remote.drop(KERNEL)
    assert await world.stores.look(5) == ""
    assert world.stores.pushed == {}, "somebody removed it: it is sent again"
    world.configured = parse_store({"url": "nosuchthing://x"})
    assert "what was known" in await world.stores.look(5)


async def test_a_store_that_is_configured_wrong_for_a_while(tmp_path: Path) -> None:
    world = World(tmp_path)

    def settings() -> StoreSettings | None:
        if world.configured is None:
            raise ConfigError("not now")
        return world.configured

    stores = Stores(settings, world.local)
    first = await stores.open()
    world.configured = None
    assert await stores.open() is first
    world.configured = parse_store({"url": f"{world.url}/other"})
    assert await stores.open() is not first


async def test_room_is_made_of_what_the_store_surely_has(tmp_path: Path) -> None:
    world = World(tmp_path)
    one = publish(world.local).manifest.size_bytes
    publish(world.local, kernel_id=OTHER)
    await world.stores.push(KERNEL, 1)
    await world.stores.push(OTHER, 1)
    world.remote.drop(KERNEL)
    await world.stores.make_room(one)
    assert len(world.here()) == 2, "there is room"
    await world.stores.make_room(100 * MIB - 2 * one)
    assert world.here() == [(KERNEL, 1)], "what the store does not have stays"


async def test_released_in_the_middle(tmp_path: Path) -> None:
    world = World(tmp_path)
    publish(world.local)
    began, go_on = threading.Event(), threading.Event()

    class Slow:
        shown = "slow"

        def push(
            self,
            snapshot: Snapshot,
            progress: Callable[[Progress], None],
            *,
            cancelled: Callable[[], bool],
        ) -> None:
            began.set()
            while not cancelled():
                go_on.wait(0.01)
            raise TransferCancelled("stopped")

    assert world.configured is not None
    world.stores._opened = (world.configured, Slow())  # type: ignore[assignment]
    pushing = asyncio.create_task(world.stores.push(KERNEL, 1))
    await until(began.is_set)
    [transfer] = world.stores.transfers
    assert transfer.to_json()["direction"] == "push"
    await world.stores.release(KERNEL)
    assert world.stores.transfers == []
    with pytest.raises(TransferCancelled):
        await pushing


async def test_a_thread_that_is_cancelled_ends_first() -> None:
    ended = []

    def work(stopped: Callable[[], bool]) -> None:
        while not stopped():
            time.sleep(0.01)
        ended.append(True)

    task = asyncio.create_task(in_thread(work, name="test"))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [True]


async def test_a_thread_that_hangs_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torpor.daemon.threads._LEAVE_S", 0.1)
    hanging = threading.Event()
    task = asyncio.create_task(in_thread(lambda _stopped: hanging.wait(5), name="test"))
    await asyncio.sleep(0.05)
    began = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - began < 4
    hanging.set()


async def test_what_a_thread_raises() -> None:
    with pytest.raises(KeyError):
        await in_thread(lambda _stopped: {}["x"], name="test")
    assert await in_thread(lambda stopped: stopped(), name="test") is False
