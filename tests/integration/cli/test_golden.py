"""``torpor golden``: what is shown and asked for, and the commands with a real sandbox."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from torpor.cli.golden import chosen_keys
from torpor.cli.golden_build import ticking
from torpor.cli.golden_request import chosen_kernel, golden_request, template_of_spec
from torpor.cli.golden_text import (
    failure_text,
    golden_text,
    goldens_text,
    warm_up_text,
    with_clones,
)
from torpor.cli.twins import twin_of
from torpor.errors import ConfigError

from tests.home import start, stop, torpor_home, write_kernelspec
from tests.integration.cli.test_commands import Cli

NOW = datetime(2026, 11, 22, 10, tzinfo=UTC)
KEY = "3f2a91bc0d12" + 52 * "0"
OTHER = "3f2a0000" + 56 * "1"
GOLDEN: dict[str, Any] = {
    "key": KEY,
    "build": "b1",
    "template": "default",
    "kernel_name": "python3-torpor",
    "argv": ["/usr/bin/python3"],
    "created_at": (NOW - timedelta(hours=3)).isoformat(),
    "build_seconds": 3.14159,
    "runsc_build": "20260905",
    "size_bytes": 90 << 20,
    "last_used": NOW.timestamp() - 40,
    "warm_up": ["numpy?", "pandas"],
    "warm_up_failed": {},
}
FAILURE = {
    "key": OTHER,
    "reason": "warm_up: import pandas failed: no (mend it)",
    "at": NOW.timestamp() - 0.5,
    "in_a_row": 3,
}


def shown(*goldens: dict[str, Any], **changes: Any) -> list[str]:
    document = {
        "running": True,
        "enabled": True,
        "goldens": with_clones(list(goldens), [{"golden": KEY, "ready": 2}]),
        "failures": [],
        "building": [],
    }
    return goldens_text({**document, **changes}, NOW).splitlines()


def test_a_golden_is_one_line() -> None:
    header, line = [re.split(" {2,}", each) for each in shown(GOLDEN)]
    shows = dict(zip(header, line, strict=True))
    assert shows == {
        "KEY": "3f2a91bc0d12",
        "KERNEL": "python3-torpor",
        "TEMPLATE": "default",
        "SIZE": "90.0 MiB",
        "AGE": "3 h",
        "LAST-USED": "40 s",
        "CLONES": "2",
        "WARM-UP": "numpy, pandas",
    }


def test_without_goldens_one_sentence_says_how_there_will_be_one() -> None:
    text = "\n".join(shown())
    assert "after the first start" in text
    assert "torpor golden build" in text
    assert shown(building=[KEY])[-1] == "being built: 3f2a91bc0d12"


def test_without_daemon_or_pool_it_says_so() -> None:
    assert "torpord does not run" in shown(running=False)[0]
    assert shown(enabled=False)[0].startswith("the pool is switched off")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {},
            "the build for key 3f2a00001111 failed 3 times in a row: warm_up: import pandas failed:",
        ),
        ({}, "; next try in 40 s"),
        ({"in_a_row": 1}, "3f2a00001111 failed: warm_up"),
        ({"in_a_row": 8}, "next try in 22 min"),
        ({"at": 0.0}, "the next start of such a kernel tries again"),
        ({"reason": "did not start\nTraceback\nKeyError"}, "row: did not start; next"),
        ({"reason": "did not start\nTraceback\nKeyError"}, "\n    Traceback\n    KeyError"),
        ({"reason": ""}, "in a row: ; next"),
    ],
)
def test_failures_in_words(changes: dict[str, Any], says: str) -> None:
    text = failure_text({**FAILURE, **changes}, NOW)
    assert says in text
    assert shown(GOLDEN, failures=[{**FAILURE, **changes}])[2:] == text.splitlines()


def test_what_was_built_and_what_it_took() -> None:
    text = golden_text(GOLDEN, built=True, now=NOW)
    assert text == (
        "golden 3f2a91bc0d12 of python3-torpor, template default: built in 3.1 s, 90.0 MiB, "
        "warm-up: numpy, pandas"
    )
    text = golden_text(GOLDEN, built=False, now=NOW)
    assert "there already (built in 3.1 s, 3 h ago)" in text


def test_modules_that_were_not_there_are_named() -> None:
    missing = {"warm_up_failed": {"numpy": "ModuleNotFoundError: ..."}}
    assert warm_up_text({**GOLDEN, **missing}) == "pandas (not installed: numpy)"
    assert warm_up_text({**GOLDEN, "warm_up": []}) == "-"


@pytest.mark.parametrize(
    ("wanted", "keys"),
    [
        (["3f2a9"], [KEY]),
        (["3F2A0", OTHER], [OTHER]),
        ([OTHER[:8], KEY[:8]], [OTHER, KEY]),
    ],
)
def test_keys_are_named_by_their_beginning(wanted: list[str], keys: list[str]) -> None:
    assert chosen_keys({KEY, OTHER}, wanted) == keys


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ("3f2", "'3f2' is not the beginning of a key"),
        ("../x", "'../x' is not the beginning of a key"),
        ("3f2a", "'3f2a' is the beginning of several keys"),
        ("dead", "there is no golden 'dead'"),
    ],
)
def test_keys_that_name_nothing(wanted: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        chosen_keys({KEY, OTHER}, [KEY, wanted])
    assert caught.value.hint


PLAIN = {"argv": ["python", "-m", "k", "{connection_file}"], "display_name": "P", "metadata": {}}


def specs(*names: str, plain: tuple[str, ...] = ("python3",)) -> dict[str, Any]:
    twin = twin_of(PLAIN, template=None)
    return {
        name: {"resource_dir": "/r", "spec": PLAIN if name in plain else twin} for name in names
    }


@pytest.mark.parametrize(
    ("names", "name", "environ", "chosen"),
    [
        (("python3", "b", "a"), None, {}, "a"),
        (("python3", "a", "python3-torpor"), None, {}, "python3-torpor"),
        (("python3", "b", "a"), "b", {}, "b"),
        (("python3",), None, {"JUPYTER_DEFAULT_PROVISIONER_NAME": "torpor-provisioner"}, "python3"),
    ],
)
def test_the_kernel_to_build_for(
    names: tuple[str, ...], name: str | None, environ: dict[str, str], chosen: str
) -> None:
    assert chosen_kernel(specs(*names), name, environ) == chosen


@pytest.mark.parametrize(
    ("names", "name", "says", "hint"),
    [
        ((), None, "no sandboxed kernel is installed", "installed kernels: none"),
        (("python3",), None, "no sandboxed kernel is installed", "installed kernels: python3"),
        (("python3", "a"), "c", "there is no kernel 'c'", "sandboxed kernels: a"),
        (("python3",), "c", "there is no kernel 'c'", "none; others: python3"),
        (("python3", "a"), "python3", "does not run sandboxed", "sandboxed kernels: a"),
        (("python3",), "python3", "does not run sandboxed", "torpor kernelspec install"),
    ],
)
def test_kernels_that_no_golden_can_be_of(
    names: tuple[str, ...], name: str | None, says: str, hint: str
) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        chosen_kernel(specs(*names), name, {})
    assert hint in caught.value.hint


def test_the_request_is_what_the_provisioner_would_send() -> None:
    spec = twin_of(PLAIN, template="big") | {"env": {"WHO": "${USER}!", "TERM": "dumb"}}
    assert template_of_spec(spec) == "big"
    assert template_of_spec(PLAIN) is None
    environ = {"USER": "ada", "TERM": "xterm", "LANG": "C", "LC_ALL": "C", "TOKEN": "t0k"}
    request = golden_request(
        "mine",
        {"resource_dir": "/r", "spec": spec | {"argv": [*spec["argv"], "{resource_dir}/{prefix}"]}},
        template="big",
        folder="/w",
        environ=environ,
        allowed=("LANG", "LC_*", "TERM"),
        prefix="p",
        python="/usr/bin/python3",
    )
    assert request == {
        "template": "big",
        "kernel_name": "mine",
        "argv": ["/usr/bin/python3", "-m", "k", "{connection_file}", "/r/p"],
        "env": {"LANG": "C", "LC_ALL": "C", "TERM": "dumb", "WHO": "ada!"},
        "cwd": "/w",
        "workspace": "/w",
    }


def test_looking_starts_nothing_and_writes_nothing(tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    nothing: dict[str, Any] = {"goldens": [], "failures": [], "building": []}
    assert cli.json("golden", "list") == {"running": False, "enabled": None, **nothing}
    assert "torpord does not run" in cli.run("golden", "list").stdout
    assert not cli.home.exists()


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["golden"], 2, ""),
        (["golden", "rm"], 2, "name at least one golden, or give --all"),
        (["golden", "rm", "3f2a", "--all"], 2, "name at least one golden, or give --all"),
        (["golden", "build", "a", "b"], 2, "unexpected argument 'b'"),
        (["golden", "build", "nosuch"], 1, "there is no kernel 'nosuch'"),
        (["golden", "build", "python3"], 1, "kernel 'python3' does not run sandboxed"),
    ],
)
def test_wrong_usage_starts_nothing(tmp_path: Path, argv: list[str], code: int, says: str) -> None:
    cli = Cli(tmp_path)
    ran = cli.run(*argv)
    assert (ran.returncode, says in ran.stderr) == (code, True), ran.stderr
    assert not cli.home.exists()


async def test_what_takes_longer_than_a_second_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    async with ticking("waiting", quiet=False), ticking("silence", quiet=True):
        await asyncio.sleep(1.2)
    async with ticking("nothing", quiet=False):
        pass
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "  waiting: 1 s\n")


def torpor_process(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "torpor", *argv, "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def torpor(*argv: str, code: int = 0) -> Any:
    ran = torpor_process(*argv)
    assert ran.returncode == code, ran.stdout + ran.stderr
    assert code or not ran.stderr
    return json.loads(ran.stdout)


def remove(prefix: str) -> Any:
    """Remove a golden; as the hint says, again while a clone is being made of it."""
    ends_at = time.monotonic() + 20
    while True:
        ran = torpor_process("golden", "rm", prefix)
        answer = json.loads(ran.stdout)
        if answer.get("error", {}).get("code") != "busy" or time.monotonic() > ends_at:
            return answer
        time.sleep(1.5)


CONFIG = """
c.TorporDaemon.pool = True
c.Torpor.templates = {"broken": {"warm_up": ["no_such_module"]}, "still": {"pool_most": 0}}
"""


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    with torpor_home(config=CONFIG, WHO_ASKS="ada") as folder:
        argv = ["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        env = {"OMP_NUM_THREADS": "1", "WHO": "${WHO_ASKS}"}
        write_kernelspec(folder / "jupyter", "bare", argv=argv, env=env)
        write_kernelspec(folder / "jupyter", "odd", argv=[sys.executable, "-c", "pass"])
        yield folder


@pytest.mark.runsc
def test_a_start_finds_what_was_built(home: Path, tmp_path: Path) -> None:
    built = torpor("golden", "build", "bare", "--workspace", str(tmp_path))
    golden = built["golden"]
    assert (built["built"], golden["kernel_name"], golden["template"]) == (True, "bare", "default")
    assert built["seconds"] >= golden["build_seconds"] > 0
    again = torpor("golden", "build", "bare", "--workspace", str(tmp_path))
    assert (again["built"], again["golden"]["build"]) == (False, golden["build"])
    km, kc = start(tmp_path, kernel_name="bare")
    try:
        (kernel,) = torpor("kernels")["kernels"]
        assert kernel["start"]["how"] in ("claimed", "cloned")
    finally:
        stop(km, kc)
    listed = torpor("golden", "list")
    assert [(each["key"], each["clones"] >= 0) for each in listed["goldens"]] == [
        (golden["key"], True)
    ]
    assert remove(golden["key"][:8]) == {"removed": [golden["key"]]}
    left = [each["build"] for each in torpor("golden", "list")["goldens"]]
    assert golden["build"] not in left


@pytest.mark.runsc
def test_why_a_build_failed_is_told_and_listed(home: Path) -> None:
    failed = torpor("golden", "build", "sandboxed", "--template", "broken", code=1)["error"]
    assert failed["code"] == "launch"
    assert "import no_such_module failed: ModuleNotFoundError" in failed["message"]
    (listed,) = torpor("golden", "list")["failures"]
    assert "no_such_module" in listed["reason"]
    assert listed["in_a_row"] == 1
    text = failure_text(listed, datetime.now(UTC))
    assert text.startswith(f"the build for key {listed['key'][:12]} failed: warm_up: import")


@pytest.mark.runsc
@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["odd"], "no golden can be built for this kernel: this kernel has no claim hook"),
        (["sandboxed", "--template", "still"], "template 'still' has no pool"),
        (["sandboxed", "--template", "nosuch"], "there is no template 'nosuch'"),
        (["sandboxed", "--workspace", "/nowhere"], "there is no folder /nowhere"),
    ],
)
def test_what_cannot_be_built(home: Path, argv: list[str], says: str) -> None:
    error = torpor("golden", "build", *argv, code=1)["error"]
    assert error["code"] == "config"
    assert says in error["message"]


@pytest.mark.runsc
def test_a_golden_that_is_not_there_cannot_be_removed(home: Path) -> None:
    error = torpor("golden", "rm", 64 * "0", code=1)["error"]
    assert error["hint"] == "see `torpor golden list`"
