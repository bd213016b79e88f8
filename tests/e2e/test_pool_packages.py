"""What is installed into an environment is what the next kernel imports, whatever a golden has loaded."""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cells import run
from tests.e2e.pool_home import PoolHome, claimed, kernel, pool_home, start_of, told, warm

CONFIG = """
c.Torpor.templates = {"loaded": {"warm_up": ["torpor_probe", "torpor_edited"]}}
"""
KERNEL = "project"
NO_GOLDEN = {"how": "created", "why": "there is no golden yet"}

pytestmark = [
    pytest.mark.slow,  # minutes: `make slow`
    pytest.mark.runsc,
    pytest.mark.timeout(180),
]


def write_wheel(folder: Path, name: str, version: str) -> Path:
    """Write the wheel of a package that has nothing but ``VERSION``."""
    about = f"{name}-{version}.dist-info"
    files = {
        f"{name}/__init__.py": f"VERSION = {version!r}\n",
        f"{name}/part.py": f"VERSION = {version!r}\n",
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{about}/WHEEL": (
            "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        ),
    }
    record = ""
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=")
        record += f"{path},sha256={digest.decode()},{len(text)}\n"
    files[f"{about}/RECORD"] = f"{record}{about}/RECORD,,\n"
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return wheel


class Project:
    """A folder with notebooks and, in it, the environment that their kernels run in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.wheels = folder.parent / "wheels"
        self.wheels.mkdir()
        venv = [sys.executable, "-m", "venv", "--without-pip", str(folder / ".venv")]
        subprocess.run(venv, check=True)
        [self.site] = (folder / ".venv" / "lib").glob("python3*/site-packages")
        self.python = str(folder / ".venv" / "bin" / "python")
        (self.site / "ours.pth").write_text(f"{sysconfig.get_path('purelib')}\n{folder}/src\n")
        (folder / "src").mkdir()
        self.edit("1")

    def pip(self, *words: str) -> None:
        """Run pip on the environment, as people do."""
        command = [sys.executable, "-m", "pip", "--python", self.python, "--no-input", *words]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=60)

    def install(self, name: str, version: str) -> None:
        """Install a version of a package from a wheel, with pip."""
        wheel = write_wheel(self.wheels, name, version)
        self.pip("install", "--no-index", "--disable-pip-version-check", str(wheel))

    def unpack(self, name: str, version: str) -> None:
        """Do what ``install`` does for a package that is not there yet, without pip: sooner."""
        with zipfile.ZipFile(write_wheel(self.wheels, name, version)) as archive:
            archive.extractall(self.site)

    def edit(self, version: str) -> None:
        """Save a module that the environment has from the workspace."""
        (self.folder / "src" / "torpor_edited.py").write_text(f"VERSION = {version!r}\n")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with a package installed that goldens load."""
    made = Project(tmp_path_factory.mktemp("project"))
    made.unpack("torpor_probe", "1")
    return made


@pytest.fixture(scope="module")
def home(project: Project) -> Iterator[PoolHome]:
    """A home with a kernel in the project's environment."""
    with pool_home(CONFIG) as made:
        argv = [project.python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        made.spec(KERNEL, template="loaded", argv=argv)
        yield made


@pytest.fixture(autouse=True)
def clean_world(home: PoolHome) -> Iterator[None]:
    """After each test nothing is left but what is the pool's."""
    yield
    home.wait_settled()


@pytest.fixture
def ready(home: PoolHome, project: Project) -> None:
    """A clone with what is installed now waits."""
    if home.ready(project.folder, KERNEL) == 0:
        warm(home, project.folder, kernel_name=KERNEL)


IMPORTED = """
import sys
loaded = [each in sys.modules for each in ('torpor_probe', 'torpor_edited')]
import torpor_probe, torpor_probe.part, torpor_edited
[loaded, torpor_probe.VERSION, torpor_probe.part.VERSION, torpor_edited.VERSION]
"""


def imported(home: PoolHome, project: Project, how: str) -> list[object]:
    """Start a kernel so and give what it has loaded already, and the versions it imports."""
    if how == "claimed":
        home.wait_ready(project.folder, kernel_name=KERNEL)
    with kernel(project.folder, kernel_name=KERNEL, how=how) as (_, kc):
        return list(told(kc, IMPORTED))


@pytest.mark.usefixtures("ready")
def test_an_environment_in_the_workspace(home: PoolHome, project: Project) -> None:
    code = """
import os, sys
def written(path):
    try:
        open(path, 'x').close()
        return True
    except OSError as error:
        return error.errno
[os.getcwd(), sys.prefix, sys.executable, sorted(os.listdir()), 'torpor_probe' in os.listdir(site),
 written('from-inside.txt'), written('src/from-inside.txt'), written('.venv/x'), written('.venv/bin/x'),
 written(f'{site}/x.pth'), written(f'{site}/torpor_probe/x'), written('/mnt/workspace/.venv/x')]
"""
    at = project.folder
    with claimed(home, at, kernel_name=KERNEL) as (_, kc):
        seen = told(kc, f"site = {str(project.site)!r}\n{code}")
        read_only = seen[-5:]
        run(kc, "import subprocess; subprocess.run(['rm', '-rf', '.venv'])")
        assert project.site.is_dir()
    assert seen[:4] == [str(at), f"{at}/.venv", project.python, [".venv", "src"]]
    assert seen[4:7] == [True, True, True]
    assert set(read_only[:4]) == {30}
    assert read_only[4] in (2, 30)
    assert (at / "from-inside.txt").exists()
    assert not (project.site / "x.pth").exists()


@pytest.mark.usefixtures("ready")
def test_a_module_of_the_workspace_that_is_edited(home: PoolHome, project: Project) -> None:
    assert imported(home, project, "claimed") == [[True, True], "1", "1", "1"]
    home.wait_ready(project.folder, kernel_name=KERNEL)
    project.edit("2")
    with kernel(project.folder, kernel_name=KERNEL) as (km, kc):
        assert start_of(km) == NO_GOLDEN
        assert told(kc, IMPORTED) == [[False, False], "1", "1", "2"]
    assert imported(home, project, "claimed") == [[True, True], "1", "1", "2"]


@pytest.mark.usefixtures("ready")
def test_an_upgrade_of_what_the_golden_has_loaded(home: PoolHome, project: Project) -> None:
    with claimed(home, project.folder, kernel_name=KERNEL) as (km, kc):
        assert told(kc, IMPORTED)[:3] == [[True, True], "1", "1"]
        home.wait_ready(project.folder, kernel_name=KERNEL)
        project.install("torpor_probe", "2")
        project.unpack("torpor_other", "1")
        with kernel(project.folder, kernel_name=KERNEL) as (later, other):
            assert start_of(later) == NO_GOLDEN
            assert told(other, IMPORTED)[:3] == [[False, False], "2", "2"]
        # The kernel that runs sees what is new, and all of it once it was restarted.
        assert told(kc, "import torpor_other; torpor_other.VERSION") == "1"
        km.restart_kernel(now=True)
        kc.wait_for_ready(timeout=30)
        assert told(kc, IMPORTED)[:3] == [[False, False], "2", "2"]
        assert told(kc, "import torpor_other; torpor_other.VERSION") == "1"
    assert "torpor_probe" in home.events("golden is stale")[-1]["reason"]


def test_new_packages_and_those_that_go(home: PoolHome, project: Project) -> None:
    project.unpack("torpor_new", "1")
    by_hand, about = project.site / "torpor_by_hand", project.site / "torpor_by_hand-1.dist-info"
    by_hand.mkdir()
    (by_hand / "__init__.py").write_text("VERSION = '1'\n")
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: torpor_by_hand\nVersion: 1\n")
    code = "import torpor_new, torpor_by_hand; [torpor_new.VERSION, torpor_by_hand.VERSION]"
    with kernel(project.folder, kernel_name=KERNEL) as (_, kc):
        assert told(kc, code) == ["1", "1"]
    project.pip("uninstall", "-y", "torpor_new")
    shutil.rmtree(by_hand)
    with kernel(project.folder, kernel_name=KERNEL) as (_, kc):
        for name in ("torpor_new", "torpor_by_hand"):
            assert run(kc, f"import {name}").error == "ModuleNotFoundError"
        assert told(kc, "import importlib.metadata as m; m.version('torpor_by_hand')") == "1"


@pytest.mark.slow  # a build that fails is tried again after 10 s
@pytest.mark.usefixtures("ready")
def test_an_upgrade_while_the_golden_is_built(home: PoolHome, project: Project) -> None:
    project.install("torpor_probe", "3")
    with kernel(project.folder, kernel_name=KERNEL, how="created"):
        pass
    for version in ("4", "5"):
        home.wait(lambda: bool(home.pool()["building"]), "golden being built")
        project.install("torpor_probe", version)
        with kernel(project.folder, kernel_name=KERNEL) as (_, kc):
            assert told(kc, IMPORTED)[1:3] == [version, version]
    assert imported(home, project, "claimed")[:3] == [[True, True], "5", "5"]
