"""When no clone can serve a start, a cold kernel does; log and kernel state say why."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking import BlockingKernelClient
from numpy._core import _multiarray_umath as umath

from tests.e2e.cells import run, value
from tests.e2e.pool_home import PoolHome, claimed, kernel, pool_home, start_of, told, warm

CONFIG = """
c.Torpor.templates = {
    "cold": {"pool_most": 0},
    "fixed": {"env": {"SET_BY": "template"}, "workspace": "ro", "warm_up": ()},
}
"""
NO_GOLDEN = "there is no golden yet"
PLAIN = "TORPOR_PLAIN_IPYKERNEL"

pytestmark = [
    pytest.mark.slow,  # minutes: `make slow`
    pytest.mark.runsc,
    pytest.mark.timeout(180),
]


@pytest.fixture(scope="module")
def home() -> Iterator[PoolHome]:
    """A home with some templates, and kernelspecs of their names."""
    with pool_home(CONFIG) as made:
        for template in ("cold", "fixed"):
            made.spec(template, template=template)
        yield made


@pytest.fixture(autouse=True)
def clean_world(home: PoolHome) -> Iterator[None]:
    """After each test nothing is left but what is the pool's."""
    yield
    home.wait_settled()


@dataclass(frozen=True)
class First:
    """How the first start of all was made, and what came of it."""

    start: dict[str, Any]
    folder: Path
    golden: str


@pytest.fixture(scope="module")
def first(home: PoolHome, tmp_path_factory: pytest.TempPathFactory) -> First:
    """The first start of all; clones wait in its workspace then."""
    folder = tmp_path_factory.mktemp("ws")
    with kernel(folder) as (km, _):
        told_start = start_of(km)
    home.wait_ready(folder)
    [golden] = home.goldens()
    return First(told_start, folder, golden["key"])


@pytest.fixture
def ws(first: First) -> Path:
    """A workspace for which clones of the ordinary kernel may wait."""
    return first.folder


@pytest.fixture
def ready(home: PoolHome, first: First) -> None:
    """A clone of the ordinary kernel waits."""
    home.wait_ready(first.folder, golden=first.golden)


def assert_started(
    home: PoolHome, cwd: Path, how: str, why: str | None, code: str = "1", **kwargs: object
) -> str:
    """Start a kernel so; state and log tell how and why, and it works. Give what ``code`` gives."""
    with kernel(cwd, **kwargs) as (km, kc):
        assert start_of(km) == {"how": how, "why": why}
        line = home.launched(str(km.kernel_id))
        assert (line["how"], line["why"]) == (how, why)
        return value(kc, code)


def test_the_first_start_is_cold(first: First) -> None:
    assert first.start == {"how": "created", "why": NO_GOLDEN}


@pytest.mark.usefixtures("ready")
def test_the_next_is_claimed(home: PoolHome, ws: Path) -> None:
    before = home.counters()
    assert_started(home, ws, "claimed", None)
    assert home.counters()["claimed"] == before.get("claimed", 0) + 1


def test_what_the_template_sets_is_set(home: PoolHome, ws: Path) -> None:
    (ws / "mine.txt").write_text("from the host")
    warm(home, ws, kernel_name="fixed")
    env = {**os.environ, "SET_BY": "the caller"}
    with claimed(home, ws, kernel_name="fixed") as (_, kc):
        assert value(kc, "import os; os.environ['SET_BY']") == "'template'"
        assert value(kc, "(os.getcwd(), open('mine.txt').read())") == repr(
            (str(ws), "from the host")
        )
        for path in ("mine.txt", "new.txt", "/mnt/workspace/new.txt"):
            assert run(kc, f"open({path!r}, 'a')").error in ("OSError", "FileNotFoundError")
        assert run(kc, "os.remove('mine.txt')").error == "OSError"
    assert [each.name for each in ws.iterdir()] == ["mine.txt"]
    with claimed(home, ws, kernel_name="fixed", env=env) as (_, kc):
        assert value(kc, "import os; os.environ['SET_BY']") == "'the caller'"


def test_another_workspace_gets_a_clone_made_for_it(home: PoolHome, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    code = "import os; (os.getcwd(), os.listdir())"
    got = assert_started(home, tmp_path, "cloned", "no clone was ready", code)
    assert got == repr((str(tmp_path), ["a.txt"]))


def test_another_command(home: PoolHome, ws: Path) -> None:
    argv = ["-m", "ipykernel_launcher", "-f", "{connection_file}", "--InteractiveShell.xmode=Plain"]
    name = home.spec("argv", argv=["python", *argv])
    code = "get_ipython().InteractiveTB.mode"
    assert assert_started(home, ws, "created", NO_GOLDEN, code, kernel_name=name) == "'Plain'"


def test_a_template_without_a_pool(home: PoolHome, ws: Path) -> None:
    assert_started(home, ws, "created", "its template has no pool", kernel_name="cold")
    assert home.ready(ws, "cold") == 0


def test_python_path(home: PoolHome, ws: Path, tmp_path: Path) -> None:
    (tmp_path / "from_the_path.py").write_text("x = 7\n")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    code = "import from_the_path; from_the_path.__file__"
    got = assert_started(home, ws, "created", NO_GOLDEN, code, env=env)
    assert got == repr(str(tmp_path / "from_the_path.py"))


@pytest.mark.parametrize(
    ("name", "text", "code", "expected"),
    [
        ("OMP_NUM_THREADS", "1", "os.environ['OMP_NUM_THREADS']", "1"),
        ("LC_ALL", "C", "locale.setlocale(locale.LC_ALL)", "C"),
    ],
)
def test_variables_that_count_at_the_start(
    home: PoolHome, ws: Path, name: str, text: str, code: str, expected: object
) -> None:
    env = {**os.environ, name: text}
    code = f"import locale, os, sys; {code}"
    got = assert_started(home, ws, "created", NO_GOLDEN, code, env=env)
    assert got == repr(expected)


def simd(kc: BlockingKernelClient) -> list[str]:
    code = (
        "import numpy._core._multiarray_umath as m; [k for k, v in m.__cpu_features__.items() if v]"
    )
    return list(told(kc, code))


@pytest.mark.usefixtures("ready")
def test_variables_that_numpy_reads_when_it_is_imported(home: PoolHome, ws: Path) -> None:
    off = [each for each in umath.__cpu_dispatch__ if umath.__cpu_features__[each]]
    env = {**os.environ, "NPY_DISABLE_CPU_FEATURES": " ".join(off)}
    with kernel(ws, kernel_name="cold", env=env) as (_, kc):
        assert not set(off) & set(simd(kc))
    with kernel(ws, env=env) as (_, kc):
        assert not set(off) & set(simd(kc))


@pytest.mark.usefixtures("ready")
def test_other_variables_do_not_count(home: PoolHome, ws: Path) -> None:
    env = {**os.environ, "TZ": "Asia/Tokyo", "ANY": "thing"}
    code = "import os, time; (os.environ['ANY'], time.tzname[0])"
    assert assert_started(home, ws, "claimed", None, code, env=env) == "('thing', 'JST')"


@pytest.mark.parametrize("by", ["variables", pytest.param("argv", marks=pytest.mark.slow)])
def test_what_a_kernel_reads_from_its_workspace_when_it_starts(
    home: PoolHome, tmp_path: Path, by: str
) -> None:
    profile = tmp_path / "ipython" / "profile_default"
    (profile / "startup").mkdir(parents=True)
    (profile / "startup" / "00.py").write_text("from_profile = 1\n")
    (profile / "ipython_config.py").write_text("c.InteractiveShell.xmode = 'Plain'\n")
    (tmp_path / "startup.py").write_text("from_startup = 1\n")
    (tmp_path / "file.py").write_text("from_file = 1\n")
    variables = {
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "PYTHONSTARTUP": str(tmp_path / "startup.py"),
    }
    words = ["-m", "ipykernel_launcher", "-f", "{connection_file}"]
    if by == "variables":
        name, env = home.spec(f"reads-{by}", argv=["python", *words]), {**os.environ, **variables}
        code = "[*map(globals().get, ('from_profile', 'from_startup')), get_ipython().InteractiveTB.mode]"
        expected: list[object] = [1, 1, "Plain"]
    else:
        words += [f"--IPKernelApp.exec_files={tmp_path}/file.py"]
        words += ["--IPKernelApp.exec_lines=import os; from_line = os.getcwd()"]
        name, env = home.spec(f"reads-{by}", argv=["python", *words]), dict(os.environ)
        code, expected = "[*map(globals().get, ('from_file', 'from_line'))]", [1, str(tmp_path)]
    with kernel(tmp_path, kernel_name=name, env=env) as (km, kc):
        assert told(kc, code) == expected
        clones_come = start_of(km)["why"] == NO_GOLDEN
    if clones_come:
        home.wait_ready(tmp_path, kernel_name=name)
    with kernel(tmp_path, kernel_name=name, env=env) as (_, kc):
        assert told(kc, code) == expected


@pytest.mark.parametrize("by", ["env of the kernelspec", "argv"])
def test_a_kernel_without_the_claim_hook(home: PoolHome, ws: Path, by: str) -> None:
    if by == "env of the kernelspec":
        name = home.spec("plain", env={PLAIN: "1"})
    else:
        launcher = "from ipykernel import kernelapp; kernelapp.launch_new_instance()"
        name = home.spec("code", argv=["python", "-c", launcher, "-f", "{connection_file}"])
    why = "this kernel has no claim hook (claim_code of the template)"
    assert_started(home, ws, "created", why, kernel_name=name)


def test_a_workspace_with_folders_of_torpor_in_it(home: PoolHome) -> None:
    why = "the workspace holds folders of Torpor itself"
    with kernel(home.path) as (km, kc):
        assert start_of(km) == {"how": "created", "why": why}
        assert run(kc, "import os; os.listdir('state')").result in (None, "[]")


@pytest.mark.usefixtures("ready")
def test_after_all_of_that_the_ordinary_kernel_is_claimed(home: PoolHome, ws: Path) -> None:
    assert_started(home, ws, "claimed", None)
