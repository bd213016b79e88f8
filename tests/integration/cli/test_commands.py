"""The commands as people run them: as processes, with a home of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

COMMANDS = (
    "doctor",
    "install-runsc",
    "kernelspec",
    "kernelspec install",
    "kernelspec list",
    "kernelspec remove",
    "kernels",
    "hibernate",
    "freeze",
    "wake",
    "pin",
    "unpin",
    "checkpoint",
    "rollback",
    "fork",
    "restore",
    "shutdown",
    "snapshots",
    "golden",
    "golden list",
    "golden build",
    "golden rm",
    "pool",
    "templates",
    "logs",
    "daemon",
    "daemon start",
    "daemon stop",
    "daemon status",
)


class Cli:
    """Runs ``torpor`` with everything it could write below one folder."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        keep = {name: os.environ[name] for name in ("PATH", "TORPOR_RUNSC") if name in os.environ}
        self.env = {
            **keep,
            "HOME": str(folder),
            "TORPOR_HOME": str(self.home),
            "JUPYTER_DATA_DIR": str(folder / "jupyter"),
            "JUPYTER_CONFIG_DIR": str(folder / "jupyter-config"),
        }

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "torpor.cli.main", *argv],
            env=self.env,
            cwd="/",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def json(self, *argv: str, code: int = 0) -> Any:
        ran = self.run(*argv, "--json")
        assert ran.returncode == code, ran.stderr
        return json.loads(ran.stdout)


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_json(cli: Cli, command: str) -> None:
    ran = cli.run(*command.split(), "--help")
    assert ran.returncode == 0, ran.stderr
    assert "--json" in ran.stdout
    assert [
        line for line in ran.stdout.split("\nOptions\n")[0].splitlines() if len(line) > 80
    ] == []
    assert not cli.home.exists()


def test_version(cli: Cli) -> None:
    from torpor._version import __version__

    assert cli.run("--version").stdout.strip() == __version__


@pytest.mark.parametrize(
    "argv", [[], ["daemon"], ["nonsense"], ["templates", "x"], ["kernelspec", "remove"]]
)
def test_wrong_usage_is_2(cli: Cli, argv: list[str]) -> None:
    assert cli.run(*argv).returncode == 2


def test_looking_starts_nothing_and_writes_nothing(cli: Cli) -> None:
    assert cli.json("kernels") == {"kernels": []}
    assert cli.run("kernels").stdout == "no kernels\n"
    assert cli.json("daemon", "status", code=3) == {"running": False}
    assert cli.json("daemon", "stop") == {"running": False, "stopped": False}
    assert cli.run("logs").stdout == ""
    assert not cli.home.exists()


def test_templates_are_those_of_the_configuration(cli: Cli) -> None:
    config = cli.home / "config"
    config.mkdir(parents=True)
    (config / "torpor_config.py").write_text(
        "c.Torpor.templates = {'big': {'memory_bytes': '16G', 'workspace': 'ro'}}\n"
        "c.Torpor.default_template = 'big'\n"
    )
    found = cli.json("templates")
    assert found["default"] == "big"
    assert [one["name"] for one in found["templates"]] == ["big", "default"]
    lines = cli.run("templates").stdout.splitlines()
    assert lines[1].startswith("big *")
    assert "16.0 GiB" in lines[1]


def test_errors_are_one_readable_line_with_a_hint(cli: Cli) -> None:
    config = cli.home / "config"
    config.mkdir(parents=True)
    (config / "torpor_config.json").write_text('{"Torpor": {"templates": {"x": {"nope": 1}}}}')
    ran = cli.run("templates")
    assert ran.returncode == 1
    assert ran.stdout == ""
    where = config / "torpor_config.json"
    assert ran.stderr.startswith(f"torpor templates: {where}: template 'x' has no field 'nope'\n")
    assert "what to do:" in ran.stderr
    assert cli.json("templates", code=1)["error"]["code"] == "config"


@pytest.mark.parametrize(
    ("name", "text", "line", "said"),
    [
        ("torpor_config.py", "x = 1\nc.Torpor.store = {\n", 2, "this is not Python"),
        ("torpor_config.py", "c.Torpor.store = nosuch\n", 1, "name 'nosuch' is not defined"),
        ("torpor_config.json", '{\n"Torpor": {}, x\n}', 2, "this is not JSON"),
    ],
)
def test_a_damaged_configuration_is_told_in_one_line(
    cli: Cli, name: str, text: str, line: int, said: str
) -> None:
    path = cli.home / "config" / name
    path.parent.mkdir(parents=True)
    path.write_text(text)
    where = f"{path}, line {line}: "
    for argv in (["templates"], ["daemon", "start"]):
        ran = cli.run(*argv)
        told = ran.stderr.replace("  starting torpord\n", "").splitlines()
        assert (ran.returncode, ran.stdout, len(told)) == (1, "", 2), ran.stderr
        assert told[0].startswith(f"torpor {' '.join(argv)}: {where}")
        assert said in told[0]
    ran = cli.run("kernels")
    assert (ran.returncode, ran.stdout) == (0, "no kernels\n"), "this needs no configuration"
    assert ran.stderr.startswith(f"torpor kernels: {where}")
    assert "Traceback" not in ran.stderr
    assert "Traceback" in cli.run("kernels", "--debug").stderr
    assert cli.json("templates", code=1)["error"]["message"].startswith(where)


@pytest.mark.parametrize("verb", ["hibernate", "freeze", "wake", "pin", "unpin", "shutdown"])
def test_one_document_although_it_fails_for_all(cli: Cli, verb: str) -> None:
    found = cli.json(verb, "5e1f", "77", code=1)
    assert found["kernels"] == []
    assert [(each["kernel"], each["error"]["code"]) for each in found["errors"]] == [
        ("5e1f", "gone"),
        ("77", "gone"),
    ]
    assert cli.json(verb, "--all") == {"kernels": [], "errors": []}
    assert cli.run(verb).returncode == 2
    assert cli.run(verb, "77", "--all").returncode == 2
    assert not cli.home.exists()


@pytest.mark.parametrize(
    ("command", "written"),
    [
        ("checkpoint", "\ntorpor checkpoint KERNEL NAME\n"),
        ("snapshots", "\ntorpor snapshots push KERNEL [WHICH]   send one"),
        (
            "rollback",
            "\ntorpor rollback KERNEL NAME    a name, or a generation of `torpor snapshots`\n",
        ),
    ],
)
def test_how_a_command_is_written_keeps_its_lines(cli: Cli, command: str, written: str) -> None:
    shown = cli.run(command, "--help").stdout
    assert written in shown
    broken = [line for line in shown.splitlines() if line.count("`") % 2]
    assert broken == [], "a command that is named stands on one line"


def test_install_finds_the_existing_one_or_says_why_not(cli: Cli, tmp_path: Path) -> None:
    cli.env["PATH"] = "/nowhere"
    cli.env.pop("TORPOR_RUNSC", None)
    ran = cli.run("install-runsc", "--from", "existing")
    assert ran.returncode == 1
    assert "no runsc found" in ran.stderr
    runsc = tmp_path / "runsc"
    runsc.write_text("#!/bin/sh\necho 'runsc version release-20260907.0'\n")
    runsc.chmod(0o755)
    cli.env["TORPOR_RUNSC"] = str(runsc)
    installed = cli.json("install-runsc")
    assert installed["source"] == "existing"
    assert installed["runsc"]["path"] == str(runsc)
    runsc.write_text("#!/bin/sh\necho 'runsc version 0.0~20221219.0'\n")
    assert "older than 20260406" in cli.run("install-runsc", "--from", "existing").stderr


def test_kernelspecs_come_and_go(cli: Cli, tmp_path: Path) -> None:
    place = ("--prefix", str(tmp_path / "prefix"))
    cli.env["JUPYTER_PATH"] = str(tmp_path / "prefix" / "share" / "jupyter")
    first = cli.json("kernelspec", "install", "python3", "--default", *place)["installed"]
    assert [(one["name"], one["changed"]) for one in first] == [("python3-torpor", True)]
    folder = Path(first[0]["path"])
    spec = json.loads((folder / "kernel.json").read_text())
    assert spec["display_name"] == "Python 3 (gVisor)"
    assert spec["argv"][0] == sys.executable
    assert (folder / "logo-64x64.png").exists()
    config = tmp_path / "prefix" / "etc" / "jupyter" / "jupyter_server_config.json"
    assert json.loads(config.read_text()) == {
        "MappingKernelManager": {"default_kernel_name": "python3-torpor"}
    }
    again = cli.json("kernelspec", "install", "python3", *place)["installed"]
    assert again[0]["changed"] is False
    named = ("kernelspec", "install", "python3", *place, "--display-name", "Mine")
    assert "exists and is different" in cli.run(*named).stderr
    assert cli.json(*named, "--replace")["installed"][0]["display_name"] == "Mine"
    listed = cli.json("kernelspec", "list")["kernelspecs"]
    assert ("python3-torpor", str(folder)) in [(one["name"], one["path"]) for one in listed]
    assert cli.run("kernelspec", "remove", "python3-torpor").returncode == 0
    assert not folder.exists()
    assert json.loads(config.read_text()) == {}


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["nosuch"], "there is no kernel 'nosuch'"),
        (["python3", "--template", "nosuch"], "there is no template 'nosuch'"),
        (["python3", "--name", "a b"], "no usable kernelspec name"),
        (["python3", "--user", "--sys-prefix"], "exclude each other"),
    ],
)
def test_kernelspecs_that_cannot_be(cli: Cli, argv: list[str], says: str) -> None:
    ran = cli.run("kernelspec", "install", *argv)
    assert ran.returncode == 1
    assert says in ran.stderr


def test_kernels_that_are_not_ours_are_never_removed(cli: Cli) -> None:
    ran = cli.run("kernelspec", "remove", "python3")
    assert ran.returncode == 1
    assert "no sandboxed kernel 'python3'" in ran.stderr


def test_doctor_without_runsc_fails_and_names_the_fix(cli: Cli) -> None:
    cli.env["TORPOR_RUNSC"] = "/nowhere/runsc"
    found = cli.json("doctor", code=1)
    checks = {check["name"]: check for check in found["checks"]}
    assert found["ok"] is False
    assert checks["runsc"]["state"] == "fail"
    assert "torpor install-runsc" in checks["runsc"]["fix"]
    assert all(check["fix"] for check in found["checks"] if check["state"] != "ok")
    text = cli.run("doctor").stdout
    assert "fail runsc" in text
    assert "to fix before a kernel can run" in text
    assert not cli.home.exists()


def test_a_reader_that_leaves_is_no_error(cli: Cli) -> None:
    state = cli.home / "state"
    state.mkdir(parents=True)
    line = json.dumps({"at": "2026", "level": "info", "event": "x" * 200}) + "\n"
    (state / "torpord.log").write_text(line * 5000)
    command = f"{sys.executable} -m torpor.cli.main logs --lines 0 | head -n 1"
    ran = subprocess.run(
        ["bash", "-c", command], env=cli.env, capture_output=True, text=True, check=False
    )
    assert ran.stdout.count("\n") == 1
    assert ran.stderr == ""
