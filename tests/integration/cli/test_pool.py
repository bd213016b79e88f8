"""``torpor pool`` and the START column of ``torpor kernels``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torpor.cli.kernels import start_text
from torpor.cli.pool import first_line, pool_text

from tests.home import start, stop, torpor_home
from tests.integration.cli.test_commands import Cli

KEY = "3f2a91bc0d12" + 52 * "0"
SHAPE: dict[str, Any] = {
    "shape": f"{KEY[:16]}:rw:/w",
    "golden": KEY,
    "template": "default",
    "kernel_name": "python3-torpor",
    "workspace": "/w",
    "ready": 2,
    "starting": 1,
    "clone_bytes": 1 << 27,
    "restore_s": 0.2,
    "failures": 0,
    "last_failure": None,
    "reason": "3 wanted: 4 requests in the last 30 minutes; 2 ready, 1 starting",
}
COUNTERS = {"claimed": 5, "cloned": 1, "created": 2, "sick": 1, "built": 1}


def shown(*shapes: dict[str, Any], **changes: Any) -> list[str]:
    document = {
        "running": True,
        "enabled": True,
        "shapes": list(shapes),
        "building": [],
        "counters": {},
    }
    return pool_text({**document, **changes}).splitlines()


def test_a_shape_is_one_line_and_the_totals_another() -> None:
    header, line, totals = shown(SHAPE, counters=COUNTERS)
    names = ["GOLDEN", "KERNEL", "TEMPLATE", "WORKSPACE", "READY", "STARTING", "REASON"]
    assert header.split() == names
    assert line.split()[:6] == ["3f2a91bc0d12", "python3-torpor", "default", "/w", "2", "1"]
    assert line.endswith(f"  {SHAPE['reason']}")
    assert totals == (
        "clones: 2 ready, 1 starting, 1 sick so far; starts: 5 claimed, 1 cloned, 2 created; "
        "goldens: 1 built"
    )


def test_what_failed_and_what_is_being_built_is_told() -> None:
    failed = {"failures": 2, "last_failure": "runsc restore: bad image\nmore", "workspace": None}
    lines = shown({**SHAPE, **failed}, building=[KEY], counters={"build_failed": 1})
    assert lines[1].split()[3] == "-"
    assert lines[2:4] == [
        "a clone of 3f2a91bc0d12 could not be restored 2 times in a row: runsc restore: bad image",
        "being built: 3f2a91bc0d12",
    ]
    assert lines[4].endswith("goldens: 0 built, 1 failed")


def test_without_shapes_pool_or_daemon_it_says_so() -> None:
    assert shown()[0] == "no clones: no kernel was started lately"
    off, how = shown(enabled=False)
    assert off.startswith("the pool is switched off")
    assert "TorporDaemon.pool" in how
    assert "torpord does not run" in shown(running=False)[0]


def test_first_line() -> None:
    assert first_line(" one \n two") == "one"
    assert first_line("") == ""
    assert len(first_line("x" * 1000)) == 200


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ({"how": "claimed", "why": None}, "claimed"),
        ({"how": "created", "why": "there is no golden yet"}, "created: there is no golden yet"),
        ({"how": "cloned", "why": "bad\nTraceback"}, "cloned: bad"),
        ({"how": None, "why": None}, "-"),
        (None, "-"),
    ],
)
def test_how_a_kernel_was_started(how: dict[str, Any] | None, text: str) -> None:
    assert start_text({"start": how}) == text


def test_looking_starts_nothing_and_writes_nothing(tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    nothing: dict[str, Any] = {"shapes": [], "building": [], "counters": {}}
    assert cli.json("pool") == {"running": False, "enabled": None, **nothing}
    assert cli.run("pool").stdout.startswith("no clones: torpord does not run")
    assert not cli.home.exists()


def torpor(*argv: str, code: int = 0) -> str:
    ran = subprocess.run(
        [sys.executable, "-m", "torpor", *argv],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == code, ran.stdout + ran.stderr
    return ran.stdout


@pytest.mark.runsc
def test_a_pool_that_is_switched_off(tmp_path: Path) -> None:
    with torpor_home(config="c.TorporDaemon.pool = False\n"):
        km, kc = start(tmp_path)
        try:
            assert json.loads(torpor("pool", "--json"))["enabled"] is False
            assert torpor("pool").startswith("the pool is switched off")
            assert torpor("golden", "list").startswith("the pool is switched off")
            assert "created: the pool is switched off" in torpor("kernels")
            for argv in (["build", "sandboxed"], ["rm", "--all"], ["rm", "3f2a"]):
                error = json.loads(torpor("golden", *argv, "--json", code=1))["error"]
                assert error["message"] == "the pool is switched off"
                assert "TorporDaemon.pool" in error["hint"]
        finally:
            stop(km, kc)


@pytest.mark.runsc
def test_a_shape_has_its_reason(tmp_path: Path) -> None:
    with torpor_home(config="c.TorporDaemon.pool = True\n"):
        km, kc = start(tmp_path)
        try:
            (kernel,) = json.loads(torpor("kernels", "--json"))["kernels"]
            assert kernel["start"] == {"how": "created", "why": "there is no golden yet"}
            (shape,) = json.loads(torpor("pool", "--json"))["shapes"]
            assert (shape["kernel_name"], shape["workspace"]) == ("sandboxed", str(tmp_path))
            assert shape["reason"]
            text = torpor("pool")
            assert shape["golden"][:12] in text
            assert "starts: 0 claimed, 0 cloned, 1 created" in text
        finally:
            stop(km, kc)
