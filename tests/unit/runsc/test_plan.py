"""The bundle and the launcher's orders, compared with recorded ones.

After a wanted change: ``UPDATE_RECORDED=1 pytest tests/unit/runsc``, and read the difference.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from torpor.runsc.oci import GuestProcess, oci_config
from torpor.runsc.plan import HostFolders, Machine, WorkspaceMount, launch_plan, runsc_argv
from torpor.template import GIB, Template, WorkspaceMode

RECORDED = Path(__file__).parents[2] / "recorded/runsc"
MACHINE = Machine(runsc="/data/runsc", runsc_sidecars=None, cpus=2, memory_is_capped=True)
GUEST = GuestProcess(argv=("/py/bin/python", "guest", "boot.json"), env={"PATH": "/bin", "A": "1"})
FOLDERS = HostFolders(
    system=("/usr",),
    links={"/bin": "usr/bin", "/lib": "usr/lib"},
    prefixes=("/home/ada/.venv", "/work/.venv", "/tmp/env"),
    sources=("/src/pkg", "/work/src"),
    live=("/home/ada/.venv/lib/python3.11/site-packages",),
    guest={"/opt/torpor/torpor_guest": "/site/torpor_guest"},
)


def _plan(mode: WorkspaceMode, **changes: Any) -> dict[str, Any]:
    workspace = WorkspaceMount(path="/work", mode=mode, hidden=("/work/.torpor",))
    arguments: dict[str, Any] = {
        "sandbox_id": "s1",
        "directory": "/state/k/s1",
        "template": Template(),
        "machine": MACHINE,
        "folders": FOLDERS,
        "workspace": None if mode is WorkspaceMode.NONE else workspace,
        "process": GUEST,
        "boot": {"version": 1, "key": "k"},
    }
    return launch_plan(**{**arguments, **changes})


def _compare(name: str, value: object) -> None:
    path = RECORDED / name
    text = json.dumps(value, indent=1, sort_keys=True) + "\n"
    if os.environ.get("UPDATE_RECORDED"):
        path.write_text(text)
    assert text == path.read_text(), f"{name} differs; see this module's docstring"


@pytest.mark.parametrize("mode", list(WorkspaceMode))
def test_plan_is_as_recorded(mode: WorkspaceMode) -> None:
    plan = _plan(mode)
    for entry in plan["tree"]:
        if entry["at"].endswith("config.json"):
            entry["text"] = json.loads(entry["text"])
    _compare(f"plan-{mode.value}.json", plan)


def test_config_of_small_and_large_machines() -> None:
    def address_space(cpus: int, *, capped: bool) -> dict[str, Any]:
        template = Template(memory_bytes=2 * GIB)
        config = oci_config(
            template, GUEST, (), (), cpus=cpus, memory_is_capped=capped, hostname="t1"
        )
        limits = {each["type"]: each for each in config["process"]["rlimits"]}
        found: dict[str, Any] = limits["RLIMIT_AS"]
        return found

    assert address_space(2, capped=True)["soft"] == 3 * GIB
    assert address_space(2, capped=True)["hard"] == (1 << 64) - 1
    assert address_space(2, capped=False)["hard"] == 3 * GIB
    assert address_space(64, capped=True)["soft"] > 8 * GIB


def test_nobody_is_asked_for_rights() -> None:
    for mode in WorkspaceMode:
        plan = _plan(mode)
        (config,) = (
            json.loads(each["text"]) for each in plan["tree"] if each["at"] == "/bundle/config.json"
        )
        assert config["process"]["noNewPrivileges"] is True
        assert not any(config["process"]["capabilities"].values())
        assert config["root"]["readonly"] is True
        writable = [each for each in plan["tree"] if each["do"] == "bind" and not each["read_only"]]
        devices = {each["from"] for each in writable if each.get("device")}
        assert devices == {f"/dev/{each}" for each in ["null", "zero", "full", "random", "urandom"]}
        others = {each["from"] for each in writable if not each.get("device")}
        workspace = {"/work"} if mode is WorkspaceMode.READ_WRITE else set()
        assert others == {"/state/k/s1/log", "/state/k/s1/save", *workspace}


@pytest.mark.parametrize(
    "flag",
    ["--network=none", "--host-uds=none", "--oci-seccomp", "--net-raw=false", "--host-fifo=none"],
)
def test_flags_that_close_doors(flag: str) -> None:
    assert flag in runsc_argv("s1", overlay_bytes=None)


def test_no_flag_that_opens_one() -> None:
    argv = " ".join(runsc_argv("s1", overlay_bytes=1))
    for word in ("TESTONLY", "profile", "override", "rootless", "nvproxy", "network=host"):
        assert word not in argv


def test_plan_reveals_the_key_only_in_the_boot_file() -> None:
    plan = _plan(WorkspaceMode.READ_WRITE, boot={"version": 1, "key": "sesame"})
    holders = [each["at"] for each in plan["tree"] if "sesame" in str(each)]
    assert holders == ["/rootfs/run/torpor/boot.json"]
    (boot,) = (each for each in plan["tree"] if each["at"] == holders[0])
    assert boot["mode"] == 0o400
    assert boot["mine"] is True


def test_sidecars_go_where_runsc_looks() -> None:
    machine = Machine(
        runsc="/r/runsc", runsc_sidecars="/r/gvisor-bin", cpus=1, memory_is_capped=True
    )
    sources = {
        each.get("from"): each["at"] for each in _plan(WorkspaceMode.NONE, machine=machine)["tree"]
    }
    assert sources["/r/gvisor-bin"] == "/runsc/gvisor-bin"
    assert sources["/r/runsc"] == "/runsc/runsc"
