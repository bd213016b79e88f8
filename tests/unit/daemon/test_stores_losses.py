"""What happens when the disk, the store or the way there is not what it was: nothing is lost."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torpor.daemon.stores import Stores
from torpor.errors import Busy, ConfigError, NoRoom, SnapshotUnusable, StoreUnavailable
from torpor.lifecycle import Status
from torpor.snapshot.build import Snapshot
from torpor.snapshot.remote.configured import StoreSettings, parse_store
from torpor.snapshot.store import SnapshotStore

from tests.unit.daemon.storing import MIB, World, until
from tests.unit.snapshot.making import CONTENT, KERNEL, OTHER, SIZE_BYTES, publish


def a_chunk(world: World, tmp_path: Path) -> Path:
    return next(path for path in (tmp_path / "store").rglob("00*") if path.is_file())


def flip(path: Path) -> None:
    raw = path.read_bytes()
    path.write_bytes(bytes([raw[0] ^ 1]) + raw[1:])


def harms(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "flipped": lambda: flip(snapshot.image / "pages.img"),
        "cut": lambda: (snapshot.image / "pages.img").write_bytes(b"p"),
        "missing": lambda: (snapshot.image / "pages.img").unlink(),
        "no image": lambda: shutil.rmtree(snapshot.image),
    }


async def test_a_copy_stays_while_the_store_lacks_a_chunk(tmp_path: Path) -> None:
    world = World(tmp_path)
    publish(world.local)
    await world.stores.push(KERNEL, 1)
    a_chunk(world, tmp_path).unlink()
    assert await world.stores.drop_surely(KERNEL, 1) is False
    assert world.here() == [(KERNEL, 1)]
    assert world.stores.pushed == {}, "it is to be pushed again"
    await world.stores.push(KERNEL, 1)
    assert await world.stores.drop_surely(KERNEL, 1) is True
    async with world.stores.at_hand(KERNEL, 1) as snapshot:
        assert (snapshot.image / "pages.img").read_bytes() == CONTENT["pages.img"]


async def test_what_the_store_lost_is_sent_again_before_the_copy_goes(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.configured = parse_store({"url": world.url, "local": "drop"})
    publish(world.local)
    world.kernel(Status.ASLEEP, 1)
    await world.stores.push(KERNEL, 1)
    a_chunk(world, tmp_path).unlink()
    async with world.running():
        await until(lambda: world.here() == [])
    assert world.remote.holds(KERNEL, 1)


@pytest.mark.parametrize("harm", ["flipped", "cut", "missing", "no image"])
@pytest.mark.parametrize("which", [1, None, "mine"])
async def test_the_store_stands_in_for_a_damaged_copy(
    tmp_path: Path, harm: str, which: int | str | None
) -> None:
    world = World(tmp_path)
    snapshot = publish(world.local, name="mine")
    await world.stores.push(KERNEL, 1)
    harms(snapshot)[harm]()
    async with world.stores.at_hand(KERNEL, which) as found:
        assert found.manifest == snapshot.manifest
        assert (found.image / "pages.img").read_bytes() == CONTENT["pages.img"]
    assert world.local.verify(snapshot) is None


@pytest.mark.parametrize("harm", ["flipped", "cut", "missing", "no image"])
async def test_a_damaged_copy_that_the_store_does_not_have(tmp_path: Path, harm: str) -> None:
    world = World(tmp_path)
    snapshot = publish(world.local)
    harms(snapshot)[harm]()
    with pytest.raises(SnapshotUnusable) as caught:
        async with world.stores.at_hand(KERNEL, 1):
            pass
    assert "rm --disk" in caught.value.hint
    assert (world.local._root / KERNEL / "1").exists(), "what there is of it stays"
    world.configured = parse_store({"url": "nosuchthing://x"})
    with pytest.raises(SnapshotUnusable, match=r"cannot take its place.*nosuchthing"):
        await world.stores.fetch(KERNEL, 1)


async def test_another_one_does_not_stand_in(tmp_path: Path) -> None:
    """The kernel went on elsewhere, or the manifest itself is damaged: a person decides."""
    world = World(tmp_path)
    elsewhere = SnapshotStore(tmp_path / "elsewhere", MIB)
    world.remote.push(publish(elsewhere, template="another"))
    snapshot = publish(world.local)
    flip(snapshot.image / "pages.img")
    for _ in range(2):
        with pytest.raises(SnapshotUnusable) as caught:
            await world.stores.fetch(KERNEL, 1)
        assert "rm --disk" in caught.value.hint
        (snapshot.folder / "manifest.json").write_text("{}")
    assert world.local.unusable()[0][:2] == (KERNEL, 1)
    world.local.drop(KERNEL, 1)
    assert (await world.stores.fetch(KERNEL, 1)).manifest.template == "another"


async def test_without_a_store_content_is_for_whoever_restores(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.configured = None
    snapshot = publish(world.local)
    flip(snapshot.image / "pages.img")
    async with world.stores.at_hand(KERNEL, 1) as found:
        assert found == snapshot


async def test_where_one_is_whole(tmp_path: Path) -> None:
    world = World(tmp_path)
    assert await world.stores.has(KERNEL, 1) is False
    assert await world.stores.is_sound_here(KERNEL, 1) is False
    snapshot = publish(world.local)
    assert await world.stores.has(KERNEL, 1) is False
    assert await world.stores.is_sound_here(KERNEL, 1) is True
    await world.stores.push(KERNEL, 1)
    assert await world.stores.has(KERNEL, 1) is True
    (snapshot.image / "pages.img").unlink()
    assert await world.stores.has(KERNEL, 1) is True
    assert await world.stores.is_sound_here(KERNEL, 1) is False


async def test_an_id_that_snapshots_have_is_refused(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.stores.require_unused(KERNEL, ask=True)
    publish(world.local)
    with pytest.raises(Busy, match="there are snapshots of a kernel") as caught:
        await world.stores.require_unused(KERNEL)
    assert "another id" in caught.value.hint
    world.remote.push(publish(world.local, kernel_id=OTHER))
    world.local.drop(OTHER)
    await world.stores.require_unused(OTHER)
    with pytest.raises(Busy):
        await world.stores.require_unused(OTHER, ask=True)
    world.configured = parse_store({"url": "nosuchthing://x"})
    await world.stores.require_unused("somebody", ask=True)


async def test_a_folder_that_is_not_mounted_is_no_empty_store(tmp_path: Path) -> None:
    world = World(tmp_path)
    assert await world.stores.look(5) == ""
    assert not (tmp_path / "store").exists(), "looking makes nothing"
    publish(world.local)
    await world.stores.push(KERNEL, 1)
    (tmp_path / "store").rename(tmp_path / "away")
    for makes in (lambda: None, (tmp_path / "store").mkdir):
        makes()
        assert "is it mounted?" in await world.stores.look(5)
        with pytest.raises(StoreUnavailable, match="not the store it was"):
            await world.stores.push(KERNEL, 1)
        with pytest.raises(StoreUnavailable):
            await world.stores.remove(KERNEL, 1)
        with pytest.raises(StoreUnavailable):
            await world.stores.drop_surely(KERNEL, 1)
    assert list((tmp_path / "store").iterdir()) == []
    assert world.here() == [(KERNEL, 1)]
    (tmp_path / "store").rmdir()
    (tmp_path / "away").rename(tmp_path / "store")
    assert await world.stores.drop_surely(KERNEL, 1) is True


async def test_another_disk_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    world, second = World(tmp_path), World(tmp_path / "second")
    publish(world.local)
    await world.stores.push(KERNEL, 1)
    second.configured = parse_store({"url": world.url})
    assert await second.stores.look(5) == "", "of a store that another machine began"
    assert [row.kernel_id for row in second.stores.known] == [KERNEL]
    mark = tmp_path / "store" / "torpor-store"
    wanted = mark.read_text()
    mark.write_text("0" * 32)
    for each in (world, second):
        assert "is another store than it was" in await each.stores.look(5)
    with pytest.raises(StoreUnavailable) as caught:
        await world.stores.push(KERNEL, 1)
    assert caught.value.hint.endswith(f"echo {wanted} > {mark}")
    mark.write_text(f"{wanted}\n")  # as the hint has it
    assert await world.stores.look(5) == ""
    (tmp_path / "marks.json").write_text("no json")
    assert await world.stores.look(5) == ""


async def test_room_is_made_for_a_fetch_by_a_daemon_that_knows_nothing_yet(tmp_path: Path) -> None:
    world = World(tmp_path)
    publish(world.local)
    await world.stores.push(KERNEL, 1)
    world.local.drop(KERNEL)
    publish(world.local, kernel_id=OTHER)
    await world.stores.push(OTHER, 1)
    budget = world.local.used_bytes() + SIZE_BYTES // 2
    tight = SnapshotStore(tmp_path / "local", budget)
    stores = Stores(lambda: world.configured, tight, tmp_path / "marks.json")
    async with stores.at_hand(KERNEL, 1):
        assert [each.kernel_id for each in tight.list()] == [KERNEL]
    world.remote.drop(OTHER)
    with pytest.raises((NoRoom, SnapshotUnusable)):
        await Stores(lambda: world.configured, tight).fetch(OTHER, 1)


@pytest.mark.parametrize("exc", [RuntimeError("530 Login incorrect"), KeyError("x"), Busy("now")])
async def test_whatever_goes_wrong_is_tried_again_with_pauses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exc: Exception
) -> None:
    monkeypatch.setattr("torpor.daemon.tiering._FIRST_PAUSE_S", 30.0)
    world = World(tmp_path)
    publish(world.local)
    world.kernel(Status.ASLEEP, 1)
    asked = []

    async def push(kernel_id: str, generation: int) -> None:
        asked.append(generation)
        raise exc

    monkeypatch.setattr(world.stores, "push", push)
    async with world.running():
        await until(lambda: len(asked) >= 1)
        await asyncio.sleep(0.8)
        assert len(asked) == 1
        [trouble] = [each for key, each in world.tiering.troubles.items() if key == (KERNEL, 1)]
        assert str(exc.args[0]) in trouble.reason


async def test_a_round_that_fails_is_not_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torpor.daemon.tiering._LOOK_S", 0.05)
    world = World(tmp_path)
    right, calls = world.tiering._round, []

    async def fails_once() -> float:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("what")
        return await right()

    monkeypatch.setattr(world.tiering, "_round", fails_once)
    async with world.running():
        await until(lambda: len(calls) > 1)


@pytest.mark.parametrize(
    "change", [{"options": {"auto_mkdir": True}}, {"key_file": "/k"}, {"url": "file:///elsewhere"}]
)
async def test_pushed_is_what_this_place_and_key_has(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    world = World(tmp_path)
    publish(world.local)
    await world.stores.push(KERNEL, 1)
    assert world.stores.pushed
    world.configured = parse_store({"url": world.url} | change)
    await world.stores.open()
    assert world.stores.pushed == {}


async def test_pushed_to_what_the_store_was_before(tmp_path: Path) -> None:
    """The configuration changes while something is on its way."""
    world = World(tmp_path)
    snapshot = publish(world.local)
    old = world.configured
    assert old is not None

    def push(*_: Any, **__: Any) -> Any:
        changed = StoreSettings(old.remote, after_s=7.0)
        world.stores._opened = (changed, SimpleNamespace())  # type: ignore[assignment]
        return world.remote.push(snapshot)

    world.stores._opened = (old, SimpleNamespace(push=push))  # type: ignore[assignment]
    await world.stores.push(KERNEL, 1)
    assert world.stores.pushed == {}


def test_no_store_in_memory() -> None:
    with pytest.raises(ConfigError, match="end with it"):
        parse_store({"url": "memory://x"})
