"""Snapshots that cannot be used: a clear error to who asks, the snapshot kept, a fresh start offered."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager
from torpor.errors import AtCapacity, LaunchError, NoRoom, SandboxError, SnapshotUnusable

from tests.e2e.cells import run, tell, value
from tests.e2e.racing import Falling
from tests.e2e.sleeping import (
    daemon_pid,
    do,
    events,
    generations,
    own_kernel,
    sandbox_pids,
    snapshots,
    state,
    status,
    wait,
)
from tests.home import start, stop, torpor_home

pytestmark = [pytest.mark.runsc, pytest.mark.timeout(120)]

Pair = tuple[KernelManager, BlockingKernelClient]
QUIET = '"freeze_after_s": 0, "hibernate_after_s": 0'


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    with torpor_home(f'c.Torpor.templates = {{"default": {{{QUIET}}}}}\n') as folder:
        yield folder


@pytest.fixture
def pair(home: Path, tmp_path: Path) -> Iterator[Pair]:
    workspace = tmp_path / "ws"
    workspace.mkdir()
    with own_kernel(home, workspace) as started:
        yield started


def folder_of(home: Path, km: KernelManager) -> Path:
    """Give the folder of a kernel's newest snapshot."""
    [*_, newest] = sorted((home / "state/snapshots" / str(km.kernel_id)).iterdir())
    return newest


def truncated(folder: Path) -> None:
    pages = folder / "image/pages.img"
    os.truncate(pages, pages.stat().st_size // 2)


def flipped(folder: Path) -> None:
    pages = folder / "image/pages.img"
    with pages.open("r+b") as file:
        file.seek(pages.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def of_another(folder: Path) -> None:
    change(folder, owner_uid=12345)


def of_the_future(folder: Path) -> None:
    change(folder, version=99)


def of_another_build(folder: Path) -> None:
    change(folder, runsc_build="release-19700101.0")


def of_another_processor(folder: Path) -> None:
    change(folder, cpu_features=["quantum"])


def without_a_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def without_pages(folder: Path) -> None:
    (folder / "image/pages.img").unlink()


def change(folder: Path, **changes: object) -> None:
    from torpor.golden.manifest import sealed

    path = folder / "manifest.json"
    body = json.loads(path.read_bytes())
    body.pop("sum")
    path.write_bytes(sealed(body | changes))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (flipped, "pages.img"),
        *(
            pytest.param(harm, said, marks=pytest.mark.slow)
            for harm, said in (
                (truncated, "pages.img"),
                (of_another, "belongs to user 12345"),
                (of_the_future, "version 99"),
                (of_another_build, "release-19700101.0"),
                (of_another_processor, "quantum"),
                (without_a_manifest, "gone"),
                (without_pages, "pages.img"),
            )
        ),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_a_snapshot_that_cannot_be_used(
    home: Path, pair: Pair, harm: Callable[[Path], None], said: str
) -> None:
    km, kc = pair
    tell(kc, "x = 1")
    do(km, "hibernate")
    folder = folder_of(home, km)
    harm(folder)
    before = names(folder)
    ran = run(kc, "x += 1", timeout_s=20)
    assert ran.error is not None
    assert "could not be woken" in ran.reply["evalue"]
    assert said in ran.reply["evalue"]
    assert "restart the kernel to start fresh" in ran.reply["traceback"][-1]
    assert [each["content"]["evalue"] for each in ran.of_type("error")] == [ran.reply["evalue"]]
    assert status(km) == "hibernated"
    assert said in state(km)["reason"]
    assert sandbox_pids(home) == []
    with pytest.raises(SandboxError, match=said):
        do(km, "wake")
    assert names(folder) == before, "the snapshot is kept"
    km.restart_kernel(now=True)
    kc.wait_for_ready(timeout=30)
    assert value(kc, "'x' in globals()") == "False"
    do(km, "hibernate")
    assert value(kc, "1 + 1") == "2"


def names(folder: Path) -> list[str]:
    """Give what is in a snapshot, without its digests, which come a while after it."""
    return sorted(
        path.name for path in folder.rglob("*") if not path.name.startswith("digests.json")
    )


@pytest.mark.slow
def test_a_snapshot_that_went_while_no_daemon_ran_is_missed_at_its_start(
    home: Path, pair: Pair, tmp_path: Path
) -> None:
    km, kc = pair
    tell(kc, "x = 1")
    do(km, "hibernate")
    os.kill(daemon_pid(home), signal.SIGKILL)
    folder, away = folder_of(home, km), tmp_path / "away"
    shutil.move(folder, away)
    wait(km.is_alive, lambda: "torpord does not come back")
    told = state(km)
    assert (told["status"], told["reason"]) == (
        "hibernated",
        "generation 1 of its snapshot is gone",
    )
    assert run(kc, "x", timeout_s=20).error == "WakeFailed"
    shutil.move(away, folder)
    assert value(kc, "x") == "1"
    assert state(km)["reason"] is None


def test_an_older_generation_is_never_woken_in_place_of_the_newest(home: Path, pair: Pair) -> None:
    km, kc = pair
    tell(kc, "x = 1")
    do(km, "hibernate")
    old = folder_of(home, km)
    kept = home / "kept"
    shutil.copytree(old, kept)
    tell(kc, "x = 2")
    do(km, "hibernate")
    new = folder_of(home, km)
    assert new != old
    # In two steps: what is half there is removed, as the older ones are just after a wake.
    new.rename(home / "away")
    kept.rename(new)
    ran = run(kc, "x", timeout_s=20)
    assert "manifest" in ran.reply["evalue"]
    shutil.rmtree(home / "away")


@pytest.mark.slow
def test_a_workspace_that_comes_back(home: Path, pair: Pair, tmp_path: Path) -> None:
    km, kc = pair
    tell(kc, "x = 1")
    do(km, "hibernate")
    (tmp_path / "ws").rename(tmp_path / "away")
    assert "workspace" in run(kc, "x += 1", timeout_s=20).reply["evalue"]
    (tmp_path / "away").rename(tmp_path / "ws")
    assert value(kc, "x") == "1"


@pytest.mark.slow
def test_a_template_that_was_edited(home: Path, pair: Pair) -> None:
    km, kc = pair
    tell(kc, "x = 1")
    do(km, "hibernate")
    config = home / "config/torpor_config.py"
    before = config.read_text()
    config.write_text(before.replace(QUIET, QUIET + ', "open_files": 4096'))
    assert "template default has changed" in run(kc, "x", timeout_s=20).reply["evalue"]
    config.write_text(before.replace(QUIET, QUIET + ', "pool_most": 2'))
    assert value(kc, "x") == "1"
    config.write_text(before)


@pytest.mark.slow
def test_a_changed_library(home: Path, pair: Pair, tmp_path: Path) -> None:
    """What is mapped into the kernel must be the file that it was."""
    from torpor.golden.fingerprint import changed, parse_fingerprint

    km, kc = pair
    tell(kc, "import numpy")
    do(km, "hibernate")
    body = json.loads((folder_of(home, km) / "manifest.json").read_bytes())
    named = [group[0] for group in body["environment"]["files"]]
    assert any("numpy" in each for each in named)
    assert changed(parse_fingerprint(body["environment"])) is None
    [_, rows] = next(each for each in body["environment"]["files"] if "numpy" in each[0])
    rows[0][1] += 1
    change(folder_of(home, km), environment=body["environment"])
    assert "has changed since" in run(kc, "1", timeout_s=20).reply["evalue"]


def test_no_room_for_snapshots(tmp_path: Path) -> None:
    config = (
        f'c.Torpor.templates = {{"default": {{{QUIET}}}}}\n'
        "c.TorporDaemon.snapshots_max_bytes = 1000000\n"
    )
    with torpor_home(config) as home:
        km, kc = start(tmp_path)
        tell(kc, "x = 1")
        with pytest.raises(NoRoom, match="together"):
            do(km, "hibernate")
        assert status(km) == "running"
        assert value(kc, "x") == "1"
        assert snapshots() == []
        assert not list((home / "state/snapshots").glob("+drafts/*"))
        stop(km, kc)


@pytest.mark.slow
def test_a_sandbox_that_dies_while_it_is_saved(home: Path, pair: Pair) -> None:
    km, kc = pair
    tell(kc, "big = bytearray(300_000_000); big[::4096] = b'x' * len(big[::4096])")
    for _ in range(5):
        before, pid = generations(km), state(km)["sandbox"]["pid"]
        falling = Falling(km)
        wait(lambda: status(km) != "running", lambda: "never hibernating")
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        if not falling.over(LaunchError, SandboxError):
            break
        tell(kc, "1")  # it was asleep already: once more
        wait(lambda: len(generations(km)) == 1, lambda: str(generations(km)))
    else:
        pytest.fail("it is always asleep before it can be killed")
    wait(lambda: status(km) == "gone", lambda: status(km))
    assert generations(km) == before


@pytest.mark.parametrize(
    "after_s",
    [0.1, *(pytest.param(s, marks=pytest.mark.slow) for s in (0.02, 0.06, 0.15, 0.2, 0.25, 0.3))],
)
def test_the_daemon_dies_while_a_kernel_falls_asleep_or_wakes(
    home: Path, pair: Pair, after_s: float
) -> None:
    """Whatever the moment: the kernel is there, and what was asked is done once."""
    import threading

    km, kc = pair
    tell(kc, "x = 0")
    for verb in ("hibernate", "wake", "hibernate"):
        km.is_alive()  # which starts the daemon

        def strike(pid: int = daemon_pid(home)) -> None:
            time.sleep(after_s)
            os.kill(pid, signal.SIGKILL)

        killer = threading.Thread(target=strike)
        killer.start()
        try:
            do(km, verb)
        except SandboxError as exc:
            print(verb, exc)
        killer.join()
        km.is_alive()  # as a server does every few seconds
        tell(kc, "x += 1")
    assert value(kc, "x") == "3"
    assert status(km) == "running"
    wait(
        lambda: len(list((home / "state/k").iterdir())) == 1,
        lambda: str(list((home / "state/k").iterdir())),
    )


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_restore_that_hangs(home: Path, pair: Pair, tmp_path: Path) -> None:
    """Whoever asked is told in bounded time; the snapshot stays, and other kernels notice nothing."""
    km, kc = pair
    tell(kc, "x = 1")
    do(km, "hibernate")
    other = start(tmp_path)
    theirs = set(sandbox_pids(home))
    try:
        began = time.monotonic()
        msg_id = kc.execute("x")
        while time.monotonic() < began + 3:
            for pid in set(sandbox_pids(home)) - theirs:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
            time.sleep(0.002)
        assert set(sandbox_pids(home)) > theirs
        assert value(other[1], "6 * 7") == "42"
        while True:
            reply = kc.get_shell_msg(timeout=90)
            if reply["parent_header"].get("msg_id") == msg_id:
                break
        assert time.monotonic() < began + 75
        assert "could not be woken" in reply["content"]["evalue"]
        wait(lambda: status(km) == "hibernated", lambda: status(km))
        wait(lambda: set(sandbox_pids(home)) <= theirs, lambda: str(sandbox_pids(home)))
        assert value(kc, "x") == "1"
    finally:
        stop(*other)


@pytest.mark.slow
def test_no_memory_at_wake(home: Path, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    from torpor.daemon import waking
    from torpor.snapshot.build import Snapshot

    km, _ = pair
    do(km, "hibernate")
    size = snapshots()[-1]["bytes"]
    monkeypatch.setattr(waking, "available_bytes", lambda: size)

    class Manifest:
        size_bytes = size

    with pytest.raises(AtCapacity, match="does not fit"):
        waking._require_memory(Snapshot(Manifest(), Path()))  # type: ignore[arg-type]
    assert events(home, "hibernated")
    assert isinstance(SnapshotUnusable("x"), SandboxError)
