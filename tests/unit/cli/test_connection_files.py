"""Connection files that commands write, and who removes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torpor.cli.connection_files import (
    kernels_with_files,
    remove_connection_files,
    write_connection_file,
)
from torpor.errors import ConfigError
from torpor.paths import Paths, resolve_paths

PORTS = {"shell": 1, "iopub": 2, "stdin": 3, "control": 4, "hb": 5}
STATE: dict[str, Any] = {"kernel_id": "5e1f", "kernel_name": "python3", "client": {"ports": PORTS}}


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "jr"))
    return resolve_paths({"TORPOR_HOME": str(tmp_path / "home")}, uid=1000, home=tmp_path)


def test_it_comes_and_goes_with_its_kernel(
    paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = Path(write_connection_file(paths, STATE, "secret"))
    others = written.with_name("kernel-77.json")
    others.write_text("{}")
    assert written.stat().st_mode & 0o077 == 0
    body = json.loads(written.read_text())
    assert (body["shell_port"], body["key"], body["kernel_name"]) == (1, "secret", "python3")
    assert kernels_with_files(paths) == ["5e1f"]
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "elsewhere"))
    remove_connection_files(paths, ["77", "5e1f"])
    assert not written.exists()
    assert others.exists()
    assert kernels_with_files(paths) == []
    remove_connection_files(paths, ["5e1f"])


def test_one_that_cannot_be_written(paths: Paths, tmp_path: Path) -> None:
    (tmp_path / "jr").write_text("a file")
    with pytest.raises(ConfigError, match=r"kernel-5e1f\.json"):
        write_connection_file(paths, STATE, "secret")
    assert kernels_with_files(paths) == []


def test_where_nobody_wrote_any(paths: Paths) -> None:
    assert kernels_with_files(paths) == []
    assert not paths.state.exists()
