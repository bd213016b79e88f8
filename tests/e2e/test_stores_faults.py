"""Stores that fail, hang, or give back something else: a clear error, and the kernel sleeps on."""

from __future__ import annotations

import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager
from torpor.errors import NoRoom, SandboxError, StoreUnavailable

from tests.e2e.cells import run, tell, value
from tests.e2e.sleeping import (
    do,
    events,
    sandbox_pids,
    snapshots,
    state,
    status,
    wait,
    wait_status,
)
from tests.e2e.stores import (
    a_key,
    configure,
    connected,
    places,
    plaintext,
    store_config,
    store_home,
    torpor,
    wait_places,
)
from tests.home import start, stop, torpor_home
from tests.integration.stores.s3_server import make_bucket, s3_server

pytestmark = [pytest.mark.runsc, pytest.mark.timeout(180)]

Pair = tuple[KernelManager, BlockingKernelClient]


@contextmanager
def kernel(home: Path, workspace: Path) -> Iterator[Pair]:
    workspace.mkdir(exist_ok=True)
    km, kc = start(workspace)
    try:
        yield km, kc
    finally:
        stop(km, kc)


@contextmanager
def silence() -> Iterator[str]:
    """Give the address of somebody who takes connections and never says a word."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def s3_options(address: str) -> dict[str, Any]:
    return {
        "key": "access-key-id",
        "secret": "a-very-secret-access-key",
        "client_kwargs": {"endpoint_url": address},
    }


@pytest.mark.s3
@pytest.mark.slow
def test_a_store_that_hangs_or_is_away(tmp_path: Path) -> None:
    """On an S3 server: asleep, it goes silent, then away, then comes back."""
    with s3_server(tmp_path) as address, silence() as silent:
        make_bucket(address, "bucket")
        url, key = "s3://bucket/torpor", str(a_key(tmp_path))

        def config(at: str, timeout_s: float = 5) -> str:
            more = {"options": s3_options(at), "key_file": key, "local": "drop"}
            return store_config(url, **more, timeout_s=timeout_s)

        with (
            torpor_home("c.TorporDaemon.concurrent_starts = 2\n" + config(address)) as home,
            kernel(home, tmp_path / "a") as (km, kc),
            kernel(home, tmp_path / "b") as (km2, kc2),
            kernel(home, tmp_path / "c") as (km3, kc3),
            kernel(home, tmp_path / "d") as (km4, kc4),
        ):
            for number, (each, client) in enumerate(((km, kc), (km2, kc2), (km3, kc3))):
                tell(client, f"x = {number}")
                do(each, "hibernate")
            wait(lambda: plaintext(home) == [], lambda: str(plaintext(home)))
            configure(home, config(silent, 7))  # asked three times: no fetch ends for 21 s
            tell(kc4, "x = 3")
            do(km4, "hibernate")  # which does not reach the store

            for client in (kc, kc2, kc3):
                client.execute("x")
            asked = (km, km2, km3)
            wait(
                lambda: [status(each) for each in asked] == ["fetching"] * 3,
                lambda: str([state(each) for each in asked]),
            )
            assert "fetched" in str(state(km3)["sleep"]["outlook"])
            began = time.monotonic()
            torpor("shutdown", str(km3.kernel_id))
            assert time.monotonic() - began < 20, "one that waits for its snapshot can be ended"
            began = time.monotonic()
            assert value(kc4, "x") == "3"
            assert time.monotonic() - began < 10, "others' fetches hold no turn, of which two are"
            found = torpor("snapshots")
            assert "what was known of it is shown" in found["store"]["note"]
            assert {each["kernel_id"] for each in found["snapshots"]} >= {km.kernel_id}
            for each in (km, km2):
                wait(lambda it=each: status(it) == "hibernated", lambda: str(state(km)), 60)
            assert "no answer in 7 s" in str(state(km)["reason"])

            with socket.socket() as unused:
                unused.bind(("127.0.0.1", 0))
                configure(home, config(f"http://127.0.0.1:{unused.getsockname()[1]}", 1))
                with pytest.raises(StoreUnavailable, match="failed 3 times"):
                    do(km, "wake")
                ran = run(kc, "x", timeout_s=60)
                assert "could not be woken" in ran.reply["evalue"]
                assert "failed 3 times" in ran.reply["evalue"]
                assert status(km) == "hibernated"
                assert sandbox_pids(home) != [], "the others run"
            configure(home, config(address))
            assert value(kc, "x") == "0"
            assert value(kc2, "x") == "1"
            do(km4, "hibernate")
            wait(lambda: plaintext(home) == [], lambda: str(torpor("snapshots")), 60)
            assert value(kc4, "x") == "3"
            wait(
                lambda: km3.kernel_id not in {each["kernel_id"] for each in snapshots()},
                lambda: str(snapshots()),
                60,
            )
            said = (home / "state/torpord.log").read_text() + str(torpor("snapshots"))
            assert "a-very-secret" not in said
            assert "access-key-id" not in said


def flipped(folder: Path) -> None:
    chunk = max(folder.rglob("0*"), key=lambda path: path.stat().st_size)
    raw = bytearray(chunk.read_bytes())
    raw[len(raw) // 2] ^= 1
    chunk.write_bytes(raw)


def without_a_chunk(folder: Path) -> None:
    max(folder.rglob("0*"), key=lambda path: path.stat().st_size).unlink()


def without_a_manifest(folder: Path) -> None:
    (folder / "manifest").unlink()


def flipped_manifest(folder: Path) -> None:
    raw = bytearray((folder / "manifest").read_bytes())
    raw[-9] ^= 1
    (folder / "manifest").write_bytes(raw)


def gone(folder: Path) -> None:
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def away(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return a_key(tmp_path_factory.mktemp("key"))


@pytest.fixture(scope="module")
def home(away: Path, key: Path) -> Iterator[Path]:
    more = {"key_file": str(key), "local": "drop"}
    with store_home(
        f"file://{away}/s", more, "c.TorporDaemon.snapshots_max_bytes = 200 << 20\n"
    ) as folder:
        yield folder


def asleep(home: Path, km: KernelManager, kc: BlockingKernelClient) -> None:
    tell(kc, "x = 1")
    do(km, "hibernate")
    wait_places(km, {1: ["store"]})
    wait(lambda: plaintext(home) == [], lambda: str(plaintext(home)))


def must_not_wake(home: Path, km: KernelManager, kc: BlockingKernelClient, said: str) -> None:
    ran = run(kc, "x += 1", timeout_s=30)
    assert ran.error is not None
    assert "could not be woken" in ran.reply["evalue"]
    assert said in ran.reply["evalue"]
    wait_status(km, "hibernated")  # the reply may come first
    assert said in state(km)["reason"]
    assert plaintext(home) == []
    assert list((home / "state/snapshots").glob("+drafts/.draft-*")) == []
    with pytest.raises(SandboxError, match=said):
        do(km, "wake")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (flipped, "is damaged in the store"),
        (without_a_chunk, "is missing in the store"),
        (without_a_manifest, "the store has no generation 1"),
        (flipped_manifest, "generation 1 of kernel"),
        (gone, "the store has no generation 1"),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_what_the_store_has_is_not_what_was_sent(
    home: Path, away: Path, tmp_path: Path, harm: Callable[[Path], None], said: str
) -> None:
    with kernel(home, tmp_path / "ws") as (km, kc):
        asleep(home, km, kc)
        folder = away / "s" / str(km.kernel_id) / "1"
        shutil.copytree(folder, tmp_path / "kept")
        harm(folder)
        must_not_wake(home, km, kc, said)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "kept", folder)
        assert value(kc, "x") == "1"


def test_sealed_with_another_key(home: Path, key: Path, tmp_path: Path) -> None:
    with kernel(home, tmp_path / "ws") as (km, kc):
        asleep(home, km, kc)
        right = key.read_text()
        key.write_text(secrets.token_hex(32))
        must_not_wake(home, km, kc, "in the store is sealed with the key")
        [row] = [each for each in snapshots() if each["kernel_id"] == km.kernel_id]
        assert row["on"] == ["store"]
        key.write_text("no key")
        must_not_wake(home, km, kc, "is not a key")
        key.write_text(right)
        assert value(kc, "x") == "1"


def test_the_disk_is_full_when_it_is_to_be_fetched(home: Path, tmp_path: Path) -> None:
    with kernel(home, tmp_path / "ws") as (km, kc):
        asleep(home, km, kc)
        ballast = home / "state/snapshots/+ballast"
        ballast.write_bytes(bytes(190 << 20))
        with pytest.raises(NoRoom, match="200 MiB"):
            do(km, "wake")
        assert "do not fit" in run(kc, "x", timeout_s=20).reply["evalue"]
        assert status(km) == "hibernated"
        ballast.unlink()
        assert value(kc, "x") == "1"


@pytest.mark.slow
def test_room_is_made_by_what_the_store_has(tmp_path: Path) -> None:
    """Three kernels where there is room for two; none is refused, and none is lost."""
    config = "c.TorporDaemon.snapshots_max_bytes = 200 << 20\n"
    with (
        store_home(f"file://{tmp_path}/s", {}, config) as home,
        kernel(home, tmp_path / "a") as (km, kc),
        kernel(home, tmp_path / "b") as (km2, kc2),
        kernel(home, tmp_path / "c") as (km3, kc3),
    ):
        clients = (kc, kc2, kc3)
        for number, (each, client) in enumerate(zip((km, km2, km3), clients, strict=True)):
            tell(client, f"import os; x = {number}; bulk = os.urandom(40 << 20)")
            do(each, "hibernate")
            wait_places(each, {1: ["disk", "store"]})
        assert places(km) == {1: ["store"]}, "the oldest went"
        assert [each["generation"] for each in events(home, "made room")] == [1]
        shutil.move(tmp_path / "s", tmp_path / "away")
        (tmp_path / "s").write_text("no folder")
        assert value(kc2, "x") == "1"
        with pytest.raises(NoRoom):
            do(km2, "hibernate")  # what the store may not have is not removed
        assert "disk" in places(km3)[1]
        (tmp_path / "s").unlink()
        shutil.move(tmp_path / "away", tmp_path / "s")
        wait_places(km3, {1: ["disk", "store"]}, 40)
        do(km2, "hibernate")
        for number, client in enumerate(clients):
            assert value(client, "x") == str(number)


@pytest.mark.slow
def test_a_store_that_comes_later(tmp_path: Path) -> None:
    """Sent again until it is taken; meanwhile the copy on the disk stays."""
    blocked = tmp_path / "blocked"
    blocked.write_text("where the store is to be")
    with (
        store_home(f"file://{blocked}/s", {"local": "drop"}) as home,
        kernel(home, tmp_path / "ws") as (km, kc),
    ):
        tell(kc, "x = 1")
        do(km, "hibernate")
        wait(lambda: bool(torpor("snapshots")["store"]["note"]), lambda: "no note")
        [row] = torpor("snapshots")["snapshots"]
        assert row["on"] == ["disk"]
        assert value(kc, "x") == "1"
        do(km, "hibernate")
        blocked.unlink()
        wait(lambda: plaintext(home) == [], lambda: str(torpor("snapshots")), 60)
        assert value(kc, "x") == "1"


@pytest.mark.slow
def test_sent_only_after_a_while(tmp_path: Path) -> None:
    with (
        store_home(f"file://{tmp_path}/s", {"after_s": 10}) as home,
        kernel(home, tmp_path / "ws") as (km, kc),
    ):
        began = time.time()
        do(km, "hibernate")
        time.sleep(1)
        assert places(km) == {1: ["disk"]}
        wait_places(km, {1: ["disk", "store"]}, 40)
        assert time.time() - began >= 10
        row = torpor("snapshots", "push", str(km.kernel_id))
        assert row["on"] == ["disk", "store"]
        assert value(kc, "1") == "1"


def test_moving_and_removing_by_hand(tmp_path: Path) -> None:
    with (
        store_home(f"file://{tmp_path}/s", {"after_s": 1000}) as home,
        kernel(home, tmp_path / "ws") as (km, kc),
    ):
        kernel_id = str(km.kernel_id)
        tell(kc, "x = 1")
        torpor("checkpoint", kernel_id, "mine")
        wait_places(km, {1: ["disk", "store"]})
        do(km, "hibernate")
        assert places(km)[2] == ["disk"]
        assert torpor("snapshots", "push", kernel_id, "2")["generation"] == 2
        assert places(km) == {1: ["disk", "store"], 2: ["disk", "store"]}
        shutil.rmtree(home / "state/snapshots" / kernel_id / "1")
        assert places(km)[1] == ["store"]
        assert torpor("snapshots", "fetch", kernel_id, "mine")["generation"] == 1
        assert places(km)[1] == ["disk", "store"]
        refused = torpor("snapshots", "rm", kernel_id, "2", fails=True)
        assert "sleeps in generation 2" in refused["error"]["message"]
        assert torpor("snapshots", "rm", kernel_id, "mine")["from_store"] is True
        assert places(km) == {2: ["disk", "store"]}
        assert value(kc, "x") == "1"


@pytest.mark.slow
def test_restored_from_what_an_ended_kernel_has_left(tmp_path: Path) -> None:
    """Without any store: a checkpoint somebody named outlives its kernel and becomes another."""
    from tests.e2e.stores import QUIET

    workspace = tmp_path / "ws"
    with torpor_home(QUIET) as home:
        with kernel(home, workspace) as (km, kc):
            tell(kc, "x = ['as it was']")
            torpor("checkpoint", str(km.kernel_id), "before")
            tell(kc, "x.append('later')")
        wait(lambda: torpor("kernels")["kernels"] == [], lambda: "it lives")
        for which in ((), ("before",), ("1",)):
            with connected(torpor("restore", str(km.kernel_id), *which)) as other:
                assert value(other, "x") == "['as it was']"
        nothing = torpor("restore", str(km.kernel_id), "never", fails=True)
        assert "no snapshot 'never'" in nothing["error"]["message"]
        workspace.rename(tmp_path / "moved")
        refused = torpor("restore", str(km.kernel_id), fails=True)
        assert "its workspace" in refused["error"]["message"]
        (tmp_path / "moved").rename(workspace)
        configure(home, QUIET.replace('"freeze_after_s"', '"open_files": 2048, "freeze_after_s"'))
        refused = torpor("restore", str(km.kernel_id), fails=True)
        assert "template default has changed since in open_files" in refused["error"]["message"]
        configure(home, QUIET)
        wait(lambda: torpor("kernels")["kernels"] == [], lambda: "something is left")
        wait(lambda: list((home / "state/k").iterdir()) == [], lambda: "a sandbox is left")
        torpor("snapshots", "rm", str(km.kernel_id), "before")
        assert snapshots() == []
