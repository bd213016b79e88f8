"""What is bound for a program, found by reading files only."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from torpor.environment import Environment, find_environment
from torpor.errors import ConfigError


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / "home/ada"
    path.mkdir(parents=True)
    return path


def _program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def _python(prefix: Path, version: str = "python3.11") -> Path:
    (prefix / "lib" / version / "site-packages").mkdir(parents=True)
    return _program(prefix / "bin" / version)


def _venv(prefix: Path, base: Path) -> Path:
    (prefix / "lib/python3.11/site-packages").mkdir(parents=True)
    (prefix / "bin").mkdir()
    (prefix / "bin/python").symlink_to(base)
    (prefix / "pyvenv.cfg").write_text(f"home = {base.parent}\nversion = 3.11\n")
    return prefix / "bin/python"


def _find(home: Path, *argv: object, interpreter: str = "/bin/sh", **more: Any) -> Environment:
    arguments = {"homes": [str(home), "/", ""], "home": str(home), "search_path": "/usr/bin:/bin"}
    return find_environment([str(each) for each in argv], interpreter, **{**arguments, **more})


def test_a_system_program_needs_nothing(home: Path) -> None:
    found = _find(home, "/bin/sh")
    assert found.prefixes == found.sources == ()
    assert found.path[0] == "/bin"
    assert _find(home, "sh").executable in ("/usr/bin/sh", "/bin/sh")


def test_a_venv_brings_its_base(home: Path) -> None:
    base = _python(home / ".pyenv/versions/3.11.7")
    python = _venv(home / "project/.venv", base)
    found = _find(home, python, "-m", "ipykernel_launcher")
    assert found.executable == str(python)
    assert found.prefixes == (str(home / ".pyenv/versions/3.11.7"), str(home / "project/.venv"))
    assert found.live == (str(home / "project/.venv/lib/python3.11/site-packages"),)
    assert found.path[0] == str(python.parent)
    assert found.env == {}


def test_a_venv_whose_base_is_known_only_by_its_config(home: Path) -> None:
    base = _python(home / "opt/python")
    copy = _program(home / "project/env/bin/python")
    (copy.parent.parent / "pyvenv.cfg").write_text(f"home = {base.parent}\nrubbish\nhome =\n")
    assert str(home / "opt/python") in _find(home, copy).prefixes


def test_every_link_on_the_way_is_followed(home: Path) -> None:
    real = _python(home / "store/real")
    middle = home / "middle"
    (middle / "lib").mkdir(parents=True)
    (middle / "bin").mkdir()
    (middle / "bin/python").symlink_to(real)
    first = home / "first/bin/python"
    first.parent.mkdir(parents=True)
    (home / "first/lib").mkdir()
    first.symlink_to("../../middle/bin/python")
    assert _find(home, first).prefixes == tuple(
        str(home / name) for name in ("first", "middle", "store/real")
    )


def test_a_linked_prefix_is_bound_under_both_names(home: Path) -> None:
    _python(home / "real/env")
    (home / "envs").symlink_to("real")
    found = _find(home, home / "envs/env/bin/python3.11")
    assert found.prefixes == (str(home / "envs/env"), str(home / "real/env"))


def test_links_in_a_circle_end(home: Path) -> None:
    (home / "a").symlink_to("b")
    (home / "b").symlink_to("a")
    with pytest.raises(ConfigError, match="cannot be used"):
        _find(home, home / "a")


def test_conda_is_live_as_a_whole(home: Path) -> None:
    python = _python(home / "miniconda3/envs/sci")
    (home / "miniconda3/envs/sci/conda-meta").mkdir()
    found = _find(home, python)
    assert found.live == found.prefixes == (str(home / "miniconda3/envs/sci"),)
    assert found.env == {"CONDA_PREFIX": str(home / "miniconda3/envs/sci")}


def test_a_pyenv_shim_brings_all_of_pyenv(home: Path) -> None:
    _python(home / ".pyenv/versions/3.12.1", "python3.12")
    shim = _program(home / ".pyenv/shims/python")
    assert _find(home, shim).prefixes == (str(home / ".pyenv"),)


def test_the_users_own_packages(home: Path) -> None:
    site = home / ".local/lib/python3.11/site-packages"
    site.mkdir(parents=True)
    base = _python(home / "py")
    found = _find(home, base, "-m", "ipykernel_launcher")
    assert str(site.parent) in found.prefixes
    assert str(site) in found.live
    assert found.env == {"PYTHONUSERBASE": str(home / ".local")}
    for option in ("-I", "-s", "-Bs"):
        assert str(site.parent) not in _find(home, base, option, "-m", "x").prefixes
    # After -m the options are the program's own.
    assert str(site.parent) in _find(home, base, "-m", "x", "-s").prefixes
    assert str(site.parent) not in _find(home, _venv(home / "v", base)).prefixes


def test_editables_are_sources(home: Path) -> None:
    python = _python(home / "py")
    site = home / "py/lib/python3.11/site-packages"
    for name in ("one/src", "two/pkg", "three"):
        (home / name).mkdir(parents=True)
    (home / "three/single.py").write_text("")
    (site / "x.pth").write_text(f"# a comment\nimport sys\n{home}/one/src\n/missing\n{home}\n/\n\n")
    mapping = {"pkg": f"{home}/two/pkg", "single": f"{home}/three/single.py"}
    finder = f"import sys\nMAPPING: dict[str, str] = {mapping!r}\nNAMESPACES = {{}}\n"
    (site / "__editable___pkg_finder.py").write_text(finder)
    (site / "__editable___bad_finder.py").write_text("MAPPING = {oops}\n")
    assert _find(home, python).sources == tuple(
        str(home / name) for name in ("one/src", "three", "two/pkg")
    )


def test_files_of_the_argv_and_python_path_are_sources(home: Path) -> None:
    script = _program(home / "kernels/echo/kernel.py")
    (home / "lib").mkdir()
    found = _find(home, "/bin/sh", script, "{connection_file}", python_path=f"{home}/lib:rel::/no")
    assert found.sources == (str(script.parent), str(home / "lib"))


def test_the_interpreter_of_the_guest_is_bound_too(home: Path) -> None:
    guest = _python(home / "torpor")
    kernel = _python(home / "kernel")
    found = _find(home, kernel, interpreter=str(guest))
    assert found.prefixes == (str(home / "kernel"), str(home / "torpor"))
    assert found.live == (str(home / "kernel/lib/python3.11/site-packages"),)


def test_a_program_in_a_bin_of_home_brings_that_bin_only(home: Path) -> None:
    tool = _program(home / "bin/tool")
    (home / "lib").mkdir()
    assert _find(home, tool).prefixes == (str(home / "bin"),)


def test_of_local_only_the_bin_is_shown(home: Path) -> None:
    (home / ".local/share/keyrings").mkdir(parents=True)
    (home / ".local/lib").mkdir()
    tool = _program(home / ".local/bin/tool")
    assert _find(home, tool).prefixes == (str(home / ".local/bin"),)
    # A single program's folder in there is fine.
    uv = _python(home / ".local/share/uv/python/cpython-3.11")
    assert _find(home, uv).prefixes == (str(home / ".local/share/uv/python/cpython-3.11"),)


@pytest.mark.parametrize("name", ["tool", ".ssh/tool"])
def test_programs_that_cannot_be_shown(home: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="not visible in the sandbox"):
        _find(home, _program(home / name))


def test_programs_that_cannot_be_used(home: Path) -> None:
    text = home / "text"
    text.write_text("")
    for argv, said in (
        ((), "argv is empty"),
        (("",), "argv is empty"),
        ((home / "missing",), "missing'"),
        (("no-such-program-anywhere",), "not found"),
        (("bin/python",), "not found"),
        ((text,), "not an executable file"),
        ((home,), "not an executable file"),
    ):
        with pytest.raises(ConfigError) as caught:
            _find(home, *argv)
        assert said in caught.value.message


def test_this_very_interpreter_is_found(home: Path) -> None:
    found = _find(home, sys.executable, homes=[str(Path.home())])
    assert any(sys.prefix.startswith(each) for each in (*found.prefixes, "/usr", "/bin"))
