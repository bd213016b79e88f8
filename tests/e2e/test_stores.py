"""Snapshots in an object store: sent while a kernel sleeps, fetched when it is to wake."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager

from tests.e2e.cells import run, tell, value
from tests.e2e.sleeping import (
    daemon_pid,
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
    connected,
    places,
    plaintext,
    store_home,
    torpor,
    wait_places,
)
from tests.home import start, stop, torpor_home
from tests.world import processes_of

pytestmark = [pytest.mark.runsc, pytest.mark.timeout(180)]

Pair = tuple[KernelManager, BlockingKernelClient]
SECRET = "a-secret-that-must-not-be-on-any-disk"


@pytest.fixture(scope="module")
def away(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that is the store."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def home(away: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    key = a_key(tmp_path_factory.mktemp("key"))
    with store_home(f"file://{away}/s", {"key_file": str(key), "local": "drop"}) as folder:
        yield folder


@pytest.fixture
def pair(home: Path, away: Path, tmp_path: Path) -> Iterator[Pair]:
    workspace = tmp_path / "ws"
    workspace.mkdir()
    km, kc = start(workspace)
    kernel_id = km.kernel_id
    yield km, kc
    stop(km, kc)
    wait(lambda: not sandbox_pids(home), lambda: str(sandbox_pids(home)))
    mine = [each for each in snapshots() if each["kernel_id"] == kernel_id]
    for each in mine:
        if each["name"]:
            torpor("snapshots", "rm", str(kernel_id), each["name"])
    wait(lambda: not (away / "s" / str(kernel_id)).exists(), lambda: str(snapshots()))
    assert plaintext(home) == []


def holds(folder: Path, text: str) -> list[str]:
    """Give the files below ``folder`` with that text in them."""
    found, wanted = [], text.encode()
    for root, _, names in os.walk(folder):  # what goes meanwhile is not there
        for path in (Path(root) / name for name in names):
            with contextlib.suppress(FileNotFoundError):
                if path.is_file() and wanted in path.read_bytes():
                    found.append(str(path))
    return found


def test_asleep_only_what_the_store_has_is_left(home: Path, away: Path, pair: Pair) -> None:
    km, kc = pair
    tell(kc, f"x = [{SECRET!r}]; gen = (i * i for i in range(9)); next(gen); next(gen)")
    for generation in (1, 2, 3):
        do(km, "hibernate")
        wait(lambda: plaintext(home) == [], lambda: str(plaintext(home)))
        assert places(km)[generation] == ["store"]
        assert holds(home / "state", SECRET) == []
        assert holds(away, SECRET) == []
        assert status(km) == "hibernated"
        tell(kc, f"x.append({generation}); x.append(next(gen))")
        wait_status(km, "running")
    assert value(kc, "x[1:]") == "[1, 4, 2, 9, 3, 16]"
    wait(lambda: plaintext(home) == [], lambda: str(plaintext(home)))
    wait(lambda: sorted(places(km)) == [2, 3], lambda: str(places(km)))  # "keep" is 2
    assert [each["generation"] for each in events(home, "fetched")] == [1, 2, 3]
    for name in ("torpord.log", "bridge.log"):
        assert "store.key" not in (home / "state" / name).read_text()


def test_rollback_and_fork_from_what_only_the_store_has(home: Path, pair: Pair) -> None:
    km, kc = pair
    tell(kc, "x = 1")
    torpor("checkpoint", str(km.kernel_id), "before")
    wait(lambda: plaintext(home) == [], lambda: str(plaintext(home)))
    assert (
        "in the store"
        in torpor("checkpoint", str(km.kernel_id), "before", fails=True)["error"]["message"]
    )
    tell(kc, "x = 2")
    torpor("rollback", str(km.kernel_id), "before")
    assert value(kc, "x") == "1"
    tell(kc, "x = 3")
    do(km, "hibernate")
    wait(lambda: plaintext(home) == [], lambda: str(plaintext(home)))
    with connected(torpor("fork", str(km.kernel_id))) as other:
        assert value(other, "x") == "3"
        assert status(km) == "hibernated"
        wait(lambda: plaintext(home) == [], lambda: str(plaintext(home)))
    assert value(kc, "x") == "3"
    wait(lambda: plaintext(home) == [], lambda: str(plaintext(home)))


def test_daemon_and_bridge_die_while_it_is_only_in_the_store(home: Path, pair: Pair) -> None:
    km, kc = pair
    tell(kc, "x = 1; print('said before')")
    do(km, "hibernate")
    wait(lambda: plaintext(home) == [], lambda: str(plaintext(home)))
    for pid in processes_of(home):
        with contextlib.suppress(ProcessLookupError):  # one may end with another
            os.kill(pid, signal.SIGKILL)
    assert [each["kernel_id"] for each in torpor("kernels")["kernels"]] == [km.kernel_id]
    assert status(km) == "hibernated"
    kc.kernel_info(reply=True, timeout=10)
    assert status(km) == "hibernated"
    assert value(kc, "x + 1") == "2"
    do(km, "hibernate")
    wait_places(km, {1: ["store"], 2: ["store"]})
    assert value(kc, "x + 2") == "3"


@pytest.mark.parametrize("after_s", [0.0, 0.05, 0.2])
def test_the_daemon_dies_while_a_snapshot_is_sent(home: Path, pair: Pair, after_s: float) -> None:
    import time

    km, kc = pair
    tell(kc, "import os; x = os.urandom(60 << 20)")
    digest = value(kc, "hash(x)")
    do(km, "hibernate")
    time.sleep(after_s)
    os.kill(daemon_pid(home), signal.SIGKILL)
    assert status(km) == "hibernated"
    wait_places(km, {1: ["store"]}, 40)
    wait(lambda: plaintext(home) == [], lambda: str(plaintext(home)))
    assert value(kc, "hash(x)") == digest


def test_woken_in_the_middle_of_a_push(home: Path, pair: Pair) -> None:
    km, kc = pair
    tell(kc, "import os; x = os.urandom(60 << 20); n = 0")
    for generation in range(1, 4):
        do(km, "hibernate")
        tell(kc, "n += 1")
        assert state(km)["sleep"]["generation"] == generation
    assert value(kc, "n") == "3"
    wait(lambda: torpor("snapshots")["store"]["note"] == "", lambda: "trouble")


def test_restored_on_another_machine(home: Path, tmp_path: Path) -> None:
    """Two homes, two daemons, one store and one key; and runsc somewhere else."""
    (tmp_path / "ws").mkdir()
    config = (home / "config/torpor_config.py").read_text()
    link, own = home / "data/runsc", home / "data/runsc-of-this-machine"
    common = link.resolve()
    shutil.copy2(common, own)
    link.unlink()
    link.symlink_to(own)
    km, kc = start(tmp_path / "ws")
    try:
        tell(kc, "import numpy, random; x = numpy.arange(5); random.seed(1)")
        tell(kc, "y = open('/tmp/f', 'w+'); y.write('in the sandbox'); y.flush()")
        tell(kc, "open('shared', 'w').write('in the workspace')")
        do(km, "hibernate")
        wait_places(km, {1: ["store"]})
        own.rename(tmp_path / "not-there")
        with torpor_home(config) as other:
            assert torpor("kernels")["kernels"] == []
            [row] = torpor("snapshots")["snapshots"]
            where = (row["kernel_id"], row["on"], row["has_kernel"])
            assert where == (km.kernel_id, ["store"], False)
            with connected(torpor("restore", str(km.kernel_id)[:8])) as kc2:
                seen = "int(x.sum()), y.seek(0), y.read(), open('shared').read()"
                wanted = "(10, 0, 'in the sandbox', 'in the workspace')"
                assert value(kc2, seen) == wanted
                drawn = value(kc2, "random.random()")
                [mine] = torpor("kernels")["kernels"]
                assert mine["kernel_id"] != km.kernel_id
                assert mine["start"]["how"] == "restored"
                torpor("hibernate", mine["kernel_id"])
                assert value(kc2, seen) == wanted
            wait(lambda: plaintext(other) == [], lambda: str(plaintext(other)))
            wait(lambda: len(torpor("snapshots")["snapshots"]) == 1, lambda: "not left")
        (tmp_path / "not-there").rename(own)
        assert value(kc, seen) == wanted
        assert value(kc, "random.random()") != drawn
    finally:
        stop(km, kc)
        link.unlink()
        link.symlink_to(common)


@pytest.fixture
def library() -> Iterator[Path]:
    """A library in the environment that nobody else uses."""
    spec = importlib.util.find_spec("xxlimited")
    assert spec is not None
    assert spec.origin is not None
    original = Path(spec.origin)
    folder = Path(tempfile.mkdtemp(prefix="torpor-test-", dir=sys.prefix))
    folder.chmod(0o755)
    shutil.copy(original, folder)
    yield folder / original.name
    shutil.rmtree(folder)


def test_an_environment_that_was_installed_once_more(pair: Pair, library: Path) -> None:
    """The same content in other files: they fit. Another content of that size: they do not."""
    km, kc = pair
    tell(kc, f"import sys; sys.path.insert(0, {str(library.parent)!r}); import xxlimited; x = 1")
    do(km, "hibernate")
    wait_places(km, {1: ["store"]})
    content = library.read_bytes()
    library.unlink()
    library.write_bytes(content)
    assert value(kc, "x, xxlimited.foo(1, 2)") == "(1, 3)"
    do(km, "hibernate")
    wait(lambda: places(km).get(2) == ["store"], lambda: str(places(km)))
    library.unlink()
    library.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    said = run(kc, "x", timeout_s=20).reply["evalue"]
    assert f"{library} has another content now" in said
    library.write_bytes(content)
    assert value(kc, "x") == "1"


def test_doctor_tries_the_store(home: Path, away: Path) -> None:
    def check(fails: bool = False) -> dict[str, str]:
        checks = torpor("doctor", fails=fails)["checks"]
        [found] = [each for each in checks if each["name"] == "snapshot store"]
        return found

    before = sorted(away.rglob("*"))
    found = check()
    assert found["state"] == "ok", found
    assert "writable, encrypted, local: drop" in found["found"]
    assert sorted(away.rglob("*")) == before
    config = home / "config/torpor_config.py"
    right = config.read_text()
    try:
        config.write_text(right.replace("store.key", "no.key"))
        assert "no.key cannot be read" in check()["found"]
        assert "head -c 32" in check()["fix"]
        config.write_text(right.replace("file://", "nosuchthing://"))
        assert check()["state"] == "warn"
        assert "nosuchthing" in check()["found"]
        config.write_text(right.replace("'drop'", "'dropped'"))
        [wrong] = [
            each
            for each in torpor("doctor", fails=True)["checks"]
            if each["name"] == "configuration"
        ]
        assert "'dropped' is unknown" in wrong["found"]
        assert "keep" in wrong["fix"]
    finally:
        config.write_text(right)
