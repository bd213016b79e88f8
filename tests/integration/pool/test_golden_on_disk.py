"""Goldens whose files or environment are not what they were: found out, never used, built anew."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torpor.golden.manifest import sealed

from tests.e2e.cells import value
from tests.home import find_runsc, write_kernelspec
from tests.integration.pool.making import IMAGE_FILES, IS_ROOT
from tests.integration.pool.pooled import (
    PoolHome,
    eventually,
    kernel,
    nothing_is_left,
    pool_home,
)

pytestmark = [
    pytest.mark.slow,  # minutes: `make slow`
    pytest.mark.runsc,
    pytest.mark.timeout(180),
]

IMAGES = sorted(IMAGE_FILES)


def flip(file: Path, at: int | None = None) -> None:
    """Change one bit of ``file`` and leave its size and its times as they were."""
    seen = file.stat()
    where = seen.st_size // 2 if at is None else at
    with file.open("r+b") as opened:
        opened.seek(where)
        byte = opened.read(1)[0]
        opened.seek(where)
        opened.write(bytes([byte ^ 1]))
    os.utime(file, ns=(seen.st_atime_ns, seen.st_mtime_ns))


def edit(build: Path, **changes: Any) -> None:
    """Change the manifest as somebody would who knows how its sum is made."""
    file = build / "manifest.json"
    body = json.loads(file.read_bytes())
    del body["sum"]
    file.write_bytes(sealed({**body, **changes}))


def truncated(build: Path) -> None:
    pages = build / "image/pages.img"
    os.truncate(pages, pages.stat().st_size - 4096)


def without_pages(build: Path) -> None:
    (build / "image/pages.img").unlink()


def without_image(build: Path) -> None:
    shutil.rmtree(build / "image")


def with_more(build: Path) -> None:
    (build / "image/more.img").write_bytes(b"more")


def linked(build: Path) -> None:
    pages, elsewhere = build / "image/pages.img", build / "elsewhere"
    pages.rename(elsewhere)
    pages.symlink_to(elsewhere)


def half_a_manifest(build: Path) -> None:
    manifest = build / "manifest.json"
    os.truncate(manifest, manifest.stat().st_size // 2)


def another_version(build: Path) -> None:
    edit(build, version=2)


def of_another_key(build: Path) -> None:
    edit(build, key="0" * 64)


def unsealed(build: Path) -> None:
    body = json.loads((build / "manifest.json").read_bytes())
    (build / "manifest.json").write_text(json.dumps({**body, "python": "2.7"}))


def no_manifest(build: Path) -> None:
    (build / "manifest.json").unlink()


def flipped(name: str) -> Callable[[Path], None]:
    def damage(build: Path) -> None:
        flip(build / "image" / name)

    damage.__name__ = f"flipped-{name}"
    return damage


USUAL = [truncated, without_pages, with_more, half_a_manifest, another_version]
USUAL += [flipped(name) for name in IMAGES]
RARE = [without_image, linked, of_another_key, unsealed, no_manifest]
DAMAGES = [*USUAL, *(pytest.param(each, marks=pytest.mark.slow) for each in RARE)]


@pytest.fixture(scope="module")
def many() -> Any:
    """One home for all damages: its daemon is stopped, its goldens are replaced, it starts again."""
    with pool_home() as home:
        yield home


def starts_cold_beside_it(home: PoolHome, workspace: Path, build: Path) -> None:
    """The first start after a damage: cold, and of the damaged build nothing is left or used."""
    before = len(home.launches())
    with kernel(workspace):
        assert home.launches()[before:] == ["created"]
        goldens = home.goldens()
        assert build.name not in [each["build"] for each in goldens["goldens"]]
        assert not home.clones() or home.logged("golden built")
        said = [*goldens["failures"], *home.logged("golden is damaged")]
        assert [each for each in said if each["reason"]] or not (build / "manifest.json").exists()
    assert not build.exists()
    nothing_is_left(home)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_is_found_before_the_golden_is_used(
    many: PoolHome, golden: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    many.paths.log.unlink(missing_ok=True)
    build = many.plant(golden)
    damage(build)
    starts_cold_beside_it(many, tmp_path, build)


def open_build(root: Path, build: Path) -> Path:
    build.chmod(0o755)
    return build


def open_key(root: Path, build: Path) -> Path:
    build.parent.chmod(0o775)
    return build.parent


def open_image(root: Path, build: Path) -> Path:
    (build / "image").chmod(0o711)
    return build / "image"


def open_root(root: Path, build: Path) -> Path:
    root.chmod(0o755)
    return root


def anothers_build(root: Path, build: Path) -> Path:
    os.chown(build, 12345, 12345)
    return build


def linked_key(root: Path, build: Path) -> Path:
    elsewhere = root.parent / "elsewhere"
    shutil.rmtree(elsewhere, ignore_errors=True)
    build.parent.rename(elsewhere)
    build.parent.symlink_to(elsewhere)
    return build.parent


@pytest.mark.parametrize(
    "let_in",
    [
        open_build,
        open_root,
        *(
            pytest.param(each, marks=pytest.mark.slow)
            for each in (open_key, open_image, linked_key)
        ),
        pytest.param(
            anothers_build, marks=pytest.mark.skipif(not IS_ROOT, reason="only root can give away")
        ),
    ],
    ids=lambda let_in: let_in.__name__,
)
def test_a_golden_others_could_have_written_is_not_used(
    golden: Path, tmp_path: Path, let_in: Callable[[Path, Path], Path]
) -> None:
    """Kernels start all the same, the reason is in the log or the state, and nothing spins."""
    with pool_home() as home:
        build = home.plant(golden)
        let_in(home.goldens_folder, build)
        with kernel(tmp_path):
            assert home.launches() == ["created"]
            assert home.clones() == []
        before = len(home.log())
        with kernel(tmp_path):
            assert home.launches() == ["created"] * 2
        assert len(home.log()) - before < 50, "the log is flooded"
        done = home.torpor("golden", "list", "--json")
        said = json.dumps(home.log()) + done.stdout + json.dumps(home.pool())
        assert any(word in said for word in ("open to other", "belongs to user", "is not a folder"))


def test_a_bit_that_flips_under_a_live_pool(golden: Path, tmp_path: Path) -> None:
    """Clones of a damaged image would hold damaged memory: the next restore must not use it."""
    with pool_home() as home:
        build = home.plant(golden)
        with kernel(tmp_path):
            home.until_ready()
        flip(build / "image/pages.img")
        with kernel(tmp_path):
            pass
        eventually(
            lambda: not (build / "manifest.json").exists(), "the damaged build is given up", 10
        )


@pytest.mark.parametrize(
    "name",
    [
        "pages.img",
        pytest.param("checkpoint.img", marks=pytest.mark.slow),
        pytest.param("pages_meta.img", marks=pytest.mark.slow),
    ],
)
def test_half_a_file_under_a_live_pool(golden: Path, tmp_path: Path, name: str) -> None:
    """Restoring fails for somebody who waits: the start goes on cold."""
    other = tmp_path / "other"
    other.mkdir()
    with pool_home() as home:
        build = home.plant(golden)
        with kernel(tmp_path):
            home.until_ready()
        file = build / "image" / name
        os.truncate(file, file.stat().st_size // 2)
        with kernel(other):
            assert home.launches() == ["cloned", "created"]
            assert "could not be restored" in home.last_why()
        assert home.logged("clone is sick")
        assert home.logged("golden is given up")
        assert home.counters()["sick"] >= 1
        assert not (build / "manifest.json").exists()


@pytest.mark.parametrize(
    "what",
    [
        pytest.param("build", marks=pytest.mark.slow),
        pytest.param("key", marks=pytest.mark.slow),
        pytest.param("root", marks=pytest.mark.slow),
    ],
)
def test_folders_deleted_under_a_live_pool(golden: Path, tmp_path: Path, what: str) -> None:
    with pool_home() as home:
        build = home.plant(golden)
        with kernel(tmp_path):
            home.until_ready()
        shutil.rmtree({"build": build, "key": build.parent, "root": home.goldens_folder}[what])
        for _ in range(3):
            with kernel(tmp_path):
                pass
        assert home.launches()[-1] == "created"
        eventually(lambda: home.logged("golden built"), "it is built anew", 40)
        home.until_ready()
        with kernel(tmp_path):
            assert home.launches()[-1] == "claimed"
        nothing_is_left(home)


def test_another_runsc_needs_another_golden(golden: Path, tmp_path: Path) -> None:
    """Even where the manifest claims the new runsc: the key says which one built it."""
    with pool_home() as home:
        build = home.plant(golden)
        edit(build, runsc_build="of-another-time")
        link, found = home.path / "data/runsc", find_runsc()
        assert found is not None
        copy = home.path / "data/bin/runsc"
        copy.parent.mkdir()
        shutil.copy(Path(found).resolve(), copy)
        sidecars = Path(found).resolve().parent / "gvisor-bin"
        if sidecars.is_dir():
            shutil.copytree(sidecars, copy.parent / "gvisor-bin")
        link.unlink()
        link.symlink_to(copy)
        with kernel(tmp_path):
            assert home.launches() == ["created"]
            assert home.last_why() == "there is no golden yet"
        eventually(lambda: home.logged("golden built"), "one for this runsc is built")
        keys = {each.parent.parent.name for each in home.goldens_folder.glob("*/*/manifest.json")}
        assert len(keys) == 2
        home.until_ready()
        with kernel(tmp_path):
            assert home.launches()[-1] == "claimed"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A venv of these tests' own, which has ipykernel by way of ours, and a module to change."""
    folder = tmp_path_factory.mktemp("venv") / "venv"
    command = [sys.executable, "-m", "venv", "--without-pip", str(folder)]
    subprocess.run(command, check=True)
    [site] = folder.glob("lib/python3*/site-packages")
    [ours] = [each for each in sys.path if each.endswith("site-packages") and sys.prefix in each]
    (site / "ours.pth").write_text(f"{ours}\n")
    (site / "changing.py").write_text("VALUE = 1\n")
    os.utime(site / "changing.py", (1_600_000_000, 1_600_000_000))
    return folder


def test_an_environment_that_changes(environment: Path, tmp_path: Path) -> None:
    """A module that is loaded, then a new package: each ends the golden, with its clones."""
    [site] = environment.glob("lib/python3*/site-packages")
    config = "c.Torpor.templates = {'default': {'warm_up': ['changing']}}\n"
    with pool_home(config) as home:
        argv = [str(environment / "bin/python"), "-m", "ipykernel_launcher"]
        write_kernelspec(home.path / "jupyter", argv=[*argv, "-f", "{connection_file}"])
        home.build(tmp_path)
        home.until_ready()
        (site / "changing.py").write_text("VALUE = 2\n")
        with kernel(tmp_path) as (_, kc):
            assert value(kc, "import changing; changing.VALUE") == "2"
            assert home.launches() == ["created"]
        stale = eventually(lambda: home.logged("golden is stale"), "the change is seen")
        assert "changing.py" in stale[-1]["reason"]
        home.until_ready()
        (site / "added").mkdir()
        (site / "added/__init__.py").write_text("HERE = True\n")
        with kernel(tmp_path) as (_, kc):
            assert home.launches()[-1] == "created"
            assert value(kc, "import added; added.HERE") == "True"
        assert str(site) in home.logged("golden is stale")[-1]["reason"]
        home.until_ready()
        with kernel(tmp_path) as (_, kc):
            assert home.launches()[-1] == "claimed"
            assert value(kc, "import added, changing; (added.HERE, changing.VALUE)") == "(True, 2)"
        nothing_is_left(home)
