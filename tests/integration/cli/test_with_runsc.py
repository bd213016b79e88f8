"""What the commands and the demo do with a real sandbox."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.home import KERNEL, start, stop, torpor_home

pytestmark = [pytest.mark.runsc, pytest.mark.timeout(120)]
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    with torpor_home() as folder:
        yield folder


def torpor(*argv: str, code: int = 0) -> Any:
    ran = subprocess.run(
        [sys.executable, "-m", "torpor", *argv, "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == code, ran.stdout + ran.stderr
    return json.loads(ran.stdout)


def test_doctor_starts_a_sandbox(home: Path) -> None:
    found = torpor("doctor")
    checks = {check["name"]: check for check in found["checks"]}
    assert found["ok"] is True
    assert checks["sandbox starts"]["state"] == "ok"
    assert "gvisor" in checks["sandbox starts"]["found"]


def test_the_daemon_starts_once_and_stops(home: Path) -> None:
    started = torpor("daemon", "start")
    assert started["running"] is True
    assert torpor("daemon", "start")["pid"] == started["pid"]
    assert torpor("daemon", "status")["pid"] == started["pid"]
    assert torpor("daemon", "stop") == {"running": False, "stopped": True}
    assert torpor("daemon", "status", code=3) == {"running": False}


def test_a_kernel_is_listed_logged_and_holds_the_daemon(home: Path, tmp_path: Path) -> None:
    km, kc = start(tmp_path)
    try:
        (listed,) = torpor("kernels")["kernels"]
        assert listed["kernel_id"] == km.kernel_id
        assert listed["kernel_name"] == KERNEL
        refused = torpor("daemon", "stop", code=1)
        assert refused["error"]["code"] == "busy"
        assert torpor("daemon", "stop", "--force")["stopped"] is True
        (listed,) = torpor("kernels")["kernels"]
        assert listed["status"] == "running"
        logged = subprocess.run(
            [sys.executable, "-m", "torpor", "logs", "--kernel", km.kernel_id[:8], "--json"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        lines = [json.loads(line) for line in logged.splitlines()]
        assert {line["kernel_id"] for line in lines} == {km.kernel_id}
        assert "launched" in [line["event"] for line in lines]
    finally:
        stop(km, kc)
    assert torpor("kernels")["kernels"] == []


def test_the_demo_runs_in_gvisor(home: Path, tmp_path: Path) -> None:
    demo = tmp_path / "demo.ipynb"
    demo.write_text((ROOT / "examples" / "demo.ipynb").read_text())
    script = ROOT / "tools" / "run_notebook.py"
    out = tmp_path / "out" / "executed.ipynb"
    argv = [str(demo), "--kernel", KERNEL, "--answer", "Ada", "--out", str(out)]
    ran = subprocess.run(
        [sys.executable, str(script), *argv],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "Hello, Ada, from inside the sandbox." in ran.stdout
    assert "KeyError: 'b'" in ran.stdout
    assert "working: 100%" in ran.stdout
    assert "Starting gVisor..." in ran.stdout
    assert (out.parent / "picture-1.png").read_bytes().startswith(b"\x89PNG")
