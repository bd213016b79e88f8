"""Sandboxed twins of kernelspecs, and where they are kept."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from torpor.cli.kernelspec_store import (
    default_kernel,
    place_of,
    read_kernelspec,
    remove_kernelspec,
    set_default_kernel,
    write_kernelspec,
)
from torpor.cli.twins import (
    checked_name,
    provisioner_of,
    twin_display_name,
    twin_name,
    twin_of,
)
from torpor.errors import ConfigError

PYTHON: dict[str, Any] = {
    "argv": ["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"],
    "display_name": "Python 3 (ipykernel)",
    "language": "python",
    "interrupt_mode": "signal",
    "env": {"A": "1"},
    "metadata": {"debugger": True},
}


def test_the_twin_differs_only_in_who_starts_it() -> None:
    twin = twin_of(PYTHON, template="big")
    assert twin["argv"] == PYTHON["argv"]
    assert twin["env"] == {"A": "1"}
    assert twin["interrupt_mode"] == "signal"
    assert twin["display_name"] == "Python 3 (gVisor, big)"
    assert twin["metadata"] == {
        "debugger": True,
        "kernel_provisioner": {
            "provisioner_name": "torpor-provisioner",
            "config": {"template": "big"},
        },
        "supported_encryption": ["curve"],
    }
    assert PYTHON["metadata"] == {"debugger": True}


def test_without_a_template_the_configured_default_decides() -> None:
    stanza = twin_of(PYTHON, template=None)["metadata"]["kernel_provisioner"]
    assert stanza["config"] == {}


@pytest.mark.parametrize("program", ["python", "python3", "python3.12"])
def test_outside_its_environment_python_is_named_in_full(program: str) -> None:
    spec = {**PYTHON, "argv": [program, "-m", "x"]}
    assert twin_of(spec, template=None, python="/venv/bin/python")["argv"][0] == "/venv/bin/python"
    assert twin_of(spec, template=None)["argv"][0] == program


def test_other_programs_keep_their_name() -> None:
    spec = {"argv": ["R", "--slave"], "display_name": "R"}
    twin = twin_of(spec, template=None, python="/venv/bin/python")
    assert twin["argv"][0] == "R"
    assert twin["display_name"] == "R (gVisor)"
    assert twin["metadata"]["supported_encryption"] == ["curve"]


def test_a_spec_without_argv_has_no_twin() -> None:
    with pytest.raises(ConfigError, match="no argv"):
        twin_of({"argv": []}, template=None)


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("Python 3 (ipykernel)", "Python 3 (gVisor)"),
        ("Python 3", "Python 3 (gVisor)"),
        ("Python (my env)", "Python (my env) (gVisor)"),
    ],
)
def test_display_names_are_honest(source: str, shown: str) -> None:
    assert twin_display_name(source, template=None) == shown


def test_names() -> None:
    assert twin_name("python3") == "python3-torpor"
    assert checked_name("Big.One-2_x") == "big.one-2_x"
    for bad in ("", "a b", "a/b", "../x"):
        with pytest.raises(ConfigError):
            checked_name(bad)


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ({}, None),
        ({"metadata": None}, None),
        ({"metadata": {"kernel_provisioner": "x"}}, None),
        ({"metadata": {"kernel_provisioner": {}}}, None),
        ({"metadata": {"kernel_provisioner": {"provisioner_name": "slurm"}}}, "slurm"),
        (twin_of(PYTHON, template=None), "torpor-provisioner"),
    ],
)
def test_provisioner_of(spec: dict[str, Any], name: str | None) -> None:
    assert provisioner_of(spec) == name


def test_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path / "config"))
    user = place_of(user=True, sys_prefix=False, prefix="")
    assert (user.kernels, user.config) == (tmp_path / "data" / "kernels", tmp_path / "config")
    assert user.shared
    here = place_of(user=False, sys_prefix=True, prefix="")
    assert here.kernels == Path(sys.prefix) / "share" / "jupyter" / "kernels"
    assert not here.shared
    other = place_of(user=False, sys_prefix=False, prefix=str(tmp_path))
    assert other.config == tmp_path / "etc" / "jupyter"
    assert other.shared
    with pytest.raises(ConfigError, match="exclude each other"):
        place_of(user=True, sys_prefix=True, prefix="")


def test_writing_takes_the_logos_along_and_replaces_whole(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "kernels" / "twin"
    source.mkdir()
    (source / "kernel.json").write_text("{}")
    (source / "logo-64x64.png").write_bytes(b"png")
    target.mkdir(parents=True)
    (target / "stale").write_text("")
    write_kernelspec(target, PYTHON, source)
    assert {file.name for file in target.iterdir()} == {"kernel.json", "logo-64x64.png"}
    assert read_kernelspec(target) == PYTHON
    assert {one.name for one in target.parent.iterdir()} == {"twin"}
    remove_kernelspec(target)
    remove_kernelspec(target)
    assert read_kernelspec(target) is None


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write"):
        write_kernelspec(tmp_path / "file" / "twin", PYTHON, None)


def test_the_default_is_set_beside_what_was_configured(tmp_path: Path) -> None:
    path = tmp_path / "etc" / "jupyter_server_config.json"
    set_default_kernel(path.parent, "one")
    path.write_text(json.dumps({"X": {"y": 1}, **json.loads(path.read_text())}))
    set_default_kernel(path.parent, "two")
    assert default_kernel(path.parent) == "two"
    assert json.loads(path.read_text())["X"] == {"y": 1}
    set_default_kernel(path.parent, None)
    assert json.loads(path.read_text()) == {"X": {"y": 1}}
    assert default_kernel(path.parent) is None


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_broken_server_configuration_is_kept_and_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "jupyter_server_config.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"jupyter_server_config.json"):
        set_default_kernel(tmp_path, "one")
    assert path.read_text() == content
