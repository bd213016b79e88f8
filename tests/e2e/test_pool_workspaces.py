"""A claimed kernel has its workspace where a cold one has it: under its host path, as the template says."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager
from traitlets import Unicode
from traitlets.config import Configurable

from tests.e2e.cells import run
from tests.e2e.pool_home import (
    PoolHome,
    claimed,
    kernel,
    pool_home,
    start_of,
    state_of,
    told,
    warm,
)
from tests.home import KERNEL, stop

pytestmark = [pytest.mark.runsc, pytest.mark.timeout(180)]

MODES = ("ro", "none", "overlay")
CONFIG = """
c.Torpor.templates = {
    "default": {"warm_up": ()},
    "cold": {"pool_most": 0},
    "ro": {"workspace": "ro", "warm_up": ()},
    "none": {"workspace": "none", "warm_up": ()},
    "overlay": {"workspace": "overlay", "warm_up": ()},
    "coldro": {"workspace": "ro", "pool_most": 0},
    "coldnone": {"workspace": "none", "pool_most": 0},
    "coldoverlay": {"workspace": "overlay", "pool_most": 0},
}
"""
LOOK = """
import importlib, os, sys
def tried(call, *args):
    try:
        return call(*args)
    except (OSError, ImportError) as error:
        return f'{type(error).__name__} {getattr(error, "errno", "")}'
def wrote(path):
    os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
    with open(path, 'a') as file:
        file.write('from inside')
    return open(path).read()
[os.getcwd(), sorted(os.listdir()), [each for each in os.listdir(os.path.dirname(os.getcwd())) if each[:2] == 'ws'],
 tried(lambda: open('mine.txt').read()),
 tried(wrote, 'new.txt'), tried(wrote, 'mine.txt'), tried(wrote, 'sub/new.txt'), tried(wrote, 'more/deep/new.txt'),
 tried(lambda: importlib.import_module('helper').__file__),
 tried(lambda: importlib.import_module('pkg.inner').__file__),
 tried(os.rename, 'old.txt', 'renamed.txt'), tried(os.remove, 'gone.txt'), tried(os.symlink, 'mine.txt', 'link'),
 os.stat('.').st_uid, oct(os.stat('.').st_mode)]
"""


@pytest.fixture(scope="module")
def place() -> Iterator[Callable[[str, str], Path]]:
    """Makes folders below given ones; skips where that may not be. They go after the home's daemon."""
    made: list[Path] = []

    def make(parent: str, name: str) -> Path:
        folder = Path(parent)
        missing = [each for each in (folder, *folder.parents) if not each.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            made.extend(reversed(missing))
            made.append(Path(tempfile.mkdtemp(prefix=name, dir=parent)))
        except PermissionError:
            pytest.skip(f"nothing can be made in {parent}")
        return made[-1]

    yield make
    for folder in reversed(made):
        shutil.rmtree(folder, ignore_errors=True)
        if folder.parent == Path("/var/tmp"):  # what test_nothing_is_made_on_the_host looks for
            shutil.rmtree(Path("/tmp") / folder.name, ignore_errors=True)


@pytest.fixture(scope="module")
def home(place: Callable[[str, str], Path]) -> Iterator[PoolHome]:
    """A home with a template for each way to show a workspace, and the same without a pool.

    ``place`` is asked for so that its folders outlive the daemon.
    """
    with pool_home(CONFIG) as made:
        for template in ("cold", *(f"cold{mode}" for mode in MODES), *MODES):
            made.spec(template, template=template)
        yield made


@pytest.fixture(autouse=True)
def clean_world(home: PoolHome) -> Iterator[None]:
    """After each test nothing is left but what is the pool's."""
    yield
    home.wait_settled()


def fill(folder: Path) -> Path:
    """Put the same files into a workspace again."""
    folder.mkdir(parents=True, exist_ok=True)
    for each in folder.iterdir():
        shutil.rmtree(each) if each.is_dir() else each.unlink()
    for name in ("mine.txt", "old.txt", "gone.txt"):
        (folder / name).write_text("from the host;")
    (folder / "sub").mkdir()
    (folder / "pkg").mkdir()
    for name in ("helper.py", "pkg/__init__.py", "pkg/inner.py"):
        (folder / name).write_text("x = 1\n")
    return folder


def on_disk(folder: Path) -> dict[str, str]:
    """Give every file of a workspace with its text, but byte code."""
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def seen_from(folder: Path, *, how: str | None, **kwargs: object) -> tuple[Any, dict[str, str]]:
    """Start a kernel in a fresh workspace; give what it saw, and what is there afterwards."""
    fill(folder)
    with kernel(folder, how=how, **kwargs) as (km, kc):
        assert km.kernel_id
        return told(kc, f"import os\n{LOOK}"), on_disk(folder)


def without(folder: Path, thing: Any) -> Any:
    """Give what a kernel saw with the workspace's own path taken out of it."""
    if isinstance(thing, list):
        return [without(folder, each) for each in thing]
    if isinstance(thing, str):
        return thing.replace(str(folder), "WORKSPACE").replace(folder.name, "NAME")
    return thing


@pytest.fixture(scope="module")
def cold(home: PoolHome, place: Callable[[str, str], Path]) -> Any:
    """What a cold kernel sees and leaves in its workspace."""
    folder = place("/tmp", "ws-")
    seen, left = seen_from(folder, how="created", kernel_name="cold")
    assert seen[0] == str(folder)
    assert left["more/deep/new.txt"] == "from inside"
    assert left["mine.txt"] == "from the host;from inside"
    return without(folder, seen), left


@pytest.fixture(scope="module")
def golden(home: PoolHome, tmp_path_factory: pytest.TempPathFactory) -> None:
    """There is a golden, and clones of it wait for some other workspace."""
    warm(home, tmp_path_factory.mktemp("other"))


PLACES = {
    "below /tmp": ("/tmp", "ws-"),
    "below /var/tmp": ("/var/tmp", "ws-"),
    "elsewhere": ("/srv", "ws-"),
    "in a home": (str(Path.home() / "torpor-test"), "ws-"),
    "odd": ("/tmp", "ws  -ä 日本 'q\" $x \\n#%&;~-"),
    "deep in a folder of the image": ("/mnt/torpor-test/a/b", "ws-"),
    "in the sandbox's own home": ("/home/sandbox", "ws-"),
    "where clones have theirs": ("/mnt/workspace", "ws-"),
}


@pytest.mark.usefixtures("golden")
@pytest.mark.parametrize("where", PLACES.values(), ids=PLACES)
def test_places(place: Callable[[str, str], Path], cold: Any, where: tuple[str, str]) -> None:
    if any(where[0].startswith(each) for each in ("/usr", "/var/lib")):
        pytest.skip("this user's home belongs to the system: workspaces in it are read-only")
    folder = place(*where)
    seen, left = seen_from(folder, how="cloned")
    assert (without(folder, seen), left) == cold


@pytest.mark.usefixtures("golden")
@pytest.mark.parametrize("parent", ["/srv", "/var/tmp", "/mnt/workspace"])
def test_nothing_is_made_on_the_host(place: Callable[[str, str], Path], parent: str) -> None:
    folder = place(parent, "ws-")
    with kernel(folder, how="cloned"):
        pass
    assert list(folder.iterdir()) == []
    assert not (Path("/tmp") / folder.name).exists()


@pytest.mark.usefixtures("golden")
@pytest.mark.parametrize("how", ["cloned", "claimed"])
def test_by_a_symbolic_link(place: Callable[[str, str], Path], home: PoolHome, how: str) -> None:
    folder, link = place("/srv", "ws-"), place("/srv", "links-") / "ws"
    link.symlink_to(folder)
    fill(folder)
    if how == "claimed":  # clones that wait know the link: their files cannot be changed later
        with kernel(link):
            pass
        home.wait_ready(folder)
    with kernel(link, how=how) as (_, kc):
        code = f"[os.getcwd(), open('{link}/mine.txt').read(), os.path.realpath('{link}')]"
        assert told(kc, f"import os; {code}") == [str(folder), "from the host;", str(folder)]


@pytest.mark.usefixtures("golden")
@pytest.mark.parametrize("mode", [pytest.param("ro", marks=pytest.mark.slow), "none", "overlay"])
def test_modes(home: PoolHome, tmp_path: Path, mode: str) -> None:
    folder, name = tmp_path / "ws", mode
    if mode == "none":  # its golden is the same as that of other modes, but for the kernel's name
        name = home.spec(KERNEL, template=mode)
    try:
        with kernel(fill(folder), kernel_name=name):
            pass
        home.wait_ready(folder if mode != "none" else None, kernel_name=name)
        seen, left = seen_from(folder, how="claimed", kernel_name=name)
    finally:
        home.spec(KERNEL)
    cold, left_by_cold = seen_from(folder, how="created", kernel_name=f"cold{mode}")
    assert left == left_by_cold
    if mode == "none":  # what a private home holds besides is nobody's business
        seen[1:3] = cold[1:3]
        assert str(folder) not in str(seen)
    assert seen == cold
    assert left == on_disk(fill(folder)), f"{mode} lets something be written"


@pytest.mark.usefixtures("golden")
def test_files_go_both_ways_while_it_runs(home: PoolHome, tmp_path: Path) -> None:
    warm(home, tmp_path)
    (tmp_path / "early.txt").write_text("before the claim")  # after the clone was restored
    with claimed(home, tmp_path) as (km, kc):
        assert told(kc, "open('early.txt').read()") == "before the claim"
        (tmp_path / "deep" / "er").mkdir(parents=True)
        (tmp_path / "deep" / "er" / "late.txt").write_text("from the host")
        assert told(kc, "open('deep/er/late.txt').read()") == "from the host"
        run(kc, "open('deep/er/late.txt', 'w').write('changed inside')")
        assert (tmp_path / "deep" / "er" / "late.txt").read_text() == "changed inside"
        (tmp_path / "deep" / "er" / "late.txt").write_text("and changed on the host")
        deadline = time.monotonic() + 5
        while told(kc, "open('deep/er/late.txt').read()") != "and changed on the host":
            assert time.monotonic() < deadline
        run(kc, "open('made.txt', 'w').write('x')")
        status = (tmp_path / "made.txt").stat()
        assert (status.st_uid, status.st_gid) == (os.getuid(), os.getgid())
        assert state_of(km)["workspace"] == {"path": str(tmp_path), "mode": "rw", "reason": ""}


class Server(Configurable):
    """What the manager of a Jupyter server has above it."""

    root_dir = Unicode()


def start_below(root: Path, cwd: Path) -> tuple[KernelManager, BlockingKernelClient]:
    km = KernelManager(kernel_name=KERNEL, parent=Server(root_dir=str(root)))
    km.start_kernel(cwd=str(cwd))
    kc = km.client()
    kc.start_channels()
    kc.wait_for_ready(timeout=60)
    return km, kc


@pytest.mark.usefixtures("golden")
def test_folders_below_the_workspace_share_its_clones(home: PoolHome, tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "nöte books").mkdir()
    warm(home, tmp_path)
    for below in ("sub", "nöte books", "."):
        home.wait_ready(tmp_path)
        km, kc = start_below(tmp_path, tmp_path / below)
        try:
            assert start_of(km)["how"] == "claimed", start_of(km)
            code = (
                "import os; [os.getcwd(), [str(each) for each in _dh], get_ipython().starting_dir]"
            )
            here = os.path.normpath(tmp_path / below)
            assert told(kc, code) == [here, [here], here]
            above = os.path.relpath(tmp_path / "mine.txt", here)
            assert told(kc, f"open({above!r}).read()") == "from the host;"
            run(kc, "open('here.txt', 'w').close()")
            assert (tmp_path / below / "here.txt").exists()
        finally:
            stop(km, kc)


@pytest.mark.usefixtures("golden")
def test_folder_that_is_replaced_while_clones_wait(home: PoolHome, tmp_path: Path) -> None:
    folder = tmp_path / "ws"
    folder.mkdir()
    (folder / "who.txt").write_text("old")
    warm(home, folder)
    folder.rename(tmp_path / "aside")
    folder.mkdir()
    (folder / "who.txt").write_text("new")
    with kernel(folder) as (_, kc):
        assert told(kc, "open('who.txt').read()") == "new"
        run(kc, "open('made.txt', 'w').close()")
    assert (folder / "made.txt").exists()
    assert not (tmp_path / "aside" / "made.txt").exists()


@pytest.mark.usefixtures("golden")
def test_folder_that_is_removed_while_clones_wait(home: PoolHome, tmp_path: Path) -> None:
    folder = tmp_path / "ws"
    folder.mkdir()
    warm(home, folder)
    folder.rmdir()
    km = KernelManager(kernel_name=KERNEL)
    with pytest.raises(Exception, match="is not a folder"):
        km.start_kernel(cwd=str(folder))


@pytest.mark.slow
@pytest.mark.usefixtures("golden")
def test_folder_that_is_removed_costs_others_nothing(home: PoolHome, tmp_path: Path) -> None:
    gone, stays = tmp_path / "gone", tmp_path / "stays"
    gone.mkdir()
    stays.mkdir()
    warm(home, stays)
    built = len(home.events("golden built"))
    with kernel(gone, how="cloned"):
        gone.rmdir()
    until = time.monotonic() + 6  # so long the pool takes to try three times to refill
    while time.monotonic() < until and not home.events("golden is given up"):
        time.sleep(0.1)
    assert home.events("golden is given up") == []
    assert len(home.events("golden built")) == built
    with claimed(home, stays):
        pass
