"""A disk that is not mounted, copies that are damaged, and removing one of two: nothing is lost."""

from __future__ import annotations

import asyncio
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from torpor.api import CHANNELS, Endpoints
from torpor.client import Client
from torpor.client_sleep import SleepClient
from torpor.config import user_paths
from torpor.errors import Busy, SandboxError

from tests.e2e.cells import run, tell, value
from tests.e2e.sleeping import do, events, own_kernel, snapshots, state, status, wait
from tests.e2e.stores import places, store_home, torpor, wait_places

pytestmark = [pytest.mark.runsc, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def away(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("away") / "store"


@pytest.fixture(scope="module")
def home(away: Path) -> Iterator[Path]:
    with store_home(f"file://{away}", {}) as folder:
        yield folder


def flip(pages: Path) -> None:
    with pages.open("r+b") as file:
        file.seek(pages.stat().st_size // 2)
        raw = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([raw[0] ^ 1]))


def cut(pages: Path) -> None:
    pages.write_bytes(pages.read_bytes()[:-1])


def without(pages: Path) -> None:
    pages.unlink()


def pages_of(home: Path, kernel_id: str, generation: int = 1) -> Path:
    return home / "state/snapshots" / kernel_id / str(generation) / "image" / "pages.img"


def test_not_mounted_is_not_empty(tmp_path: Path) -> None:
    """What only the store has is waited for, and nothing is written where it should be."""
    mount = tmp_path / "mount"
    mount.mkdir()
    with (
        store_home(f"file://{mount}/s", {"local": "drop"}) as home,
        own_kernel(home, tmp_path / "ws") as (km, kc),
    ):
        tell(kc, "x = 1")
        do(km, "hibernate")
        wait_places(km, {1: ["store"]})
        mount.rename(tmp_path / "not mounted")
        for makes in (mount.mkdir, (mount / "s").mkdir):
            makes()
            ran = run(kc, "x += 1", timeout_s=40)
            assert "is it mounted?" in ran.reply["evalue"]
            assert "is not the store it was" in ran.reply["evalue"]
            assert status(km) == "hibernated"
        assert "is not the store it was" in torpor("snapshots")["store"]["note"]
        [check] = [
            each
            for each in torpor("doctor", fails=None)["checks"]
            if each["name"] == "snapshot store"
        ]
        assert (check["state"], "is it mounted?" in check["fix"]) == ("warn", True)
        assert [each.name for each in mount.rglob("*")] == ["s"]
        shutil.rmtree(mount)
        (tmp_path / "not mounted").rename(mount)
        assert value(kc, "x") == "1"
        tell(kc, "x += 1")


@pytest.mark.parametrize("harm", [flip, cut, without], ids=lambda each: each.__name__)
def test_the_store_stands_in_for_a_damaged_copy(
    home: Path, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    with own_kernel(home, tmp_path / "ws") as (km, kc):
        tell(kc, "x = 1")
        do(km, "hibernate")
        wait_places(km, {1: ["disk", "store"]})
        harm(pages_of(home, str(km.kernel_id)))
        assert value(kc, "x") == "1"
        assert events(home, "damaged")[-1]["generation"] == 1


def test_both_are_damaged(home: Path, away: Path, tmp_path: Path) -> None:
    """An error that says so of both, nothing is removed, and a backup of either is enough."""
    with own_kernel(home, tmp_path / "ws") as (km, kc):
        kernel_id = str(km.kernel_id)
        tell(kc, "x = 1")
        do(km, "hibernate")
        wait_places(km, {1: ["disk", "store"]})
        shutil.copytree(away / kernel_id, tmp_path / "backup")
        flip(pages_of(home, kernel_id))
        chunk = max((away / kernel_id).rglob("0*"), key=lambda path: path.stat().st_size)
        chunk.unlink()
        ran = run(kc, "x", timeout_s=40)
        assert "the snapshot on this disk is damaged" in ran.reply["evalue"]
        assert "is missing in the store" in ran.reply["evalue"]
        assert status(km) == "hibernated"
        for place in ("--disk", "--store"):
            refused = torpor("snapshots", "rm", kernel_id, "1", place, fails=True)
            assert "sleeps in generation 1, and the" in refused["error"]["message"]
        assert pages_of(home, kernel_id).exists()
        shutil.rmtree(away / kernel_id)
        shutil.copytree(tmp_path / "backup", away / kernel_id)
        assert value(kc, "x") == "1"


def test_removed_in_one_place(home: Path, tmp_path: Path) -> None:
    with own_kernel(home, tmp_path / "ws") as (km, kc):
        kernel_id = str(km.kernel_id)
        tell(kc, "x = 1")
        do(km, "hibernate")
        wait_places(km, {1: ["disk", "store"]})
        refused = torpor("snapshots", "rm", kernel_id, "1", fails=True)
        assert "sleeps in generation 1" in refused["error"]["message"]
        removed = torpor("snapshots", "rm", kernel_id, "1", "--disk")
        assert (removed["removed"], removed["from_store"]) == (1, False)
        assert places(km) == {1: ["store"]}
        refused = torpor("snapshots", "rm", kernel_id, "1", "--store", fails=True)
        assert "the disk does not" in refused["error"]["message"]
        assert value(kc, "x") == "1"
        assert torpor("snapshots", "rm", kernel_id, "1", "--store")["from_store"] is True


def test_a_manifest_that_is_damaged_is_removed_by_hand(home: Path, tmp_path: Path) -> None:
    """The hint says how, and the store has the rest."""
    with own_kernel(home, tmp_path / "ws") as (km, kc):
        kernel_id = str(km.kernel_id)
        tell(kc, "x = 1")
        do(km, "hibernate")
        wait_places(km, {1: ["disk", "store"]})
        (pages_of(home, kernel_id).parent.parent / "manifest.json").write_text("{}")
        assert "rm --disk" in run(kc, "x", timeout_s=40).reply["evalue"]
        [row] = [each for each in snapshots() if each["kernel_id"] == kernel_id]
        assert "manifest of the snapshot is damaged" in row["trouble"]
        torpor("snapshots", "rm", kernel_id, "1", "--disk")
        assert value(kc, "x") == "1"
        assert state(km)["reason"] is None


def test_an_ended_kernel_keeps_its_snapshots_whatever_becomes_of_its_id(
    home: Path, away: Path, tmp_path: Path
) -> None:
    """A new kernel cannot have that id; and one that cannot be made takes nothing with it."""
    with own_kernel(home, tmp_path / "ws") as (km, kc):
        kernel_id = str(km.kernel_id)
        tell(kc, "x = 1")
        torpor("checkpoint", kernel_id, "mine")
        wait_places(km, {1: ["disk", "store"]})
    wait(lambda: torpor("kernels")["kernels"] == [], lambda: "it lives")
    client = SleepClient(Client(user_paths()))

    def restore(new_id: str) -> None:
        endpoints = Endpoints("tcp", "127.0.0.1", dict.fromkeys(CHANNELS, 0), "k")
        asyncio.run(client.restore(kernel_id, "mine", new_id, endpoints, lease=False))

    with pytest.raises(Busy, match="there are snapshots of a kernel"):
        restore(kernel_id)
    flip(pages_of(home, kernel_id))
    shutil.move(away / kernel_id, tmp_path / "moved")
    with pytest.raises(SandboxError, match="damaged"):
        restore(secrets.token_hex(8))
    shutil.move(tmp_path / "moved", away / kernel_id)
    with pytest.raises(Busy, match="there are snapshots of a kernel"):
        restore(kernel_id)
    assert {row["kernel_id"]: row["on"] for row in snapshots()}[kernel_id] == ["disk", "store"]
    torpor("snapshots", "rm", kernel_id, "mine", "--disk")
    with pytest.raises(Busy, match="there are snapshots of a kernel"):
        restore(kernel_id)
    assert (away / kernel_id / "1" / "manifest").exists()
    torpor("snapshots", "rm", kernel_id, "mine")
