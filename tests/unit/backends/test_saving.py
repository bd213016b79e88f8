"""What was saved on another machine is restored only where this one can and may show the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torpor.backends.base import Image, SandboxSpec
from torpor.backends.local_layout import Layout
from torpor.backends.local_saving import SHAPE, _shown, prepare_saved
from torpor.errors import LaunchError
from torpor.runsc.plan import ADDED_FLAGS, bind, runsc_flags
from torpor.template import Template

Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("lib", "ws", "image", "runsc", "homes/eve", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


def shape(folder: Path, covered: tuple[str, ...] = ()) -> dict[str, Any]:
    """Give the shape of a sandbox of another machine, as little as it can be."""
    mounts = [{"destination": each, "type": "tmpfs"} for each in ("/tmp", *covered)]
    return {
        "build_at": "/there/k/s1/root",
        "sandbox_id": "s1",
        "env": {"TORPOR_SANDBOX": "/there/k/s1"},
        "argv": [*runsc_flags(1 << 20), "run", "--bundle=/bundle", "s1"],
        "workspace": {"path": str(folder / "ws"), "mode": "rw", "reason": ""},
        "tree": [
            bind("/there/runsc", "/runsc/runsc"),
            bind("/there/k/s1/log", "/log", read_only=False),
            bind("/there/k/s1/save", "/save", read_only=False),
            bind(str(folder / "lib"), f"/rootfs{folder}/lib"),
            bind("/there/optional", "/rootfs/etc/x", optional=True),
            bind(str(folder / "ws"), "/m/workspace", read_only=False),
            {"do": "file", "at": "/bundle/config.json", "text": json.dumps({"mounts": mounts})},
        ],
    }


def prepare(folder: Path, saved: dict[str, Any], private: tuple[str, ...] = ()) -> dict[str, Any]:
    (folder / "image" / SHAPE).write_text(json.dumps(saved))
    spec = SandboxSpec(
        sandbox_id="s2",
        template=Template(),
        argv=(),
        env={},
        cwd="/",
        workspace=None,
        key="",
        directory=folder / "k/s2",
        kernel_name="python3",
        start_timeout_s=1,
        image=Image(folder / "image", restore=True),
    )
    ours = {"/runsc/runsc": str(folder / "runsc")}
    prepare_saved(spec, ours=ours, homes=[str(folder / "homes/eve")], private=private)
    return Layout(spec.directory).read_plan()


def test_it_fits(folder: Path) -> None:
    plan = prepare(folder, shape(folder))
    assert "/there/k" not in json.dumps(plan)
    assert "/there/runsc" not in json.dumps(plan)


def test_one_from_before_a_flag_was_added_gets_it(folder: Path) -> None:
    saved = shape(folder)
    [flag] = ADDED_FLAGS
    saved["argv"].remove(flag)
    argv = prepare(folder, saved)["argv"]
    assert argv.count(flag) == 1
    assert argv.index(flag) < argv.index("restore")


def without_a_library(saved: dict[str, Any]) -> None:
    saved["tree"].append(bind("/there/lib", "/rootfs/there/lib"))


def writing_elsewhere(saved: dict[str, Any]) -> None:
    path = saved["workspace"]["path"].replace("/ws", "/elsewhere")
    saved["tree"].append(bind(path, "/m/elsewhere", read_only=False))


def writing_where_it_may_read(saved: dict[str, Any]) -> None:
    saved["workspace"]["mode"] = "ro"


def a_home(saved: dict[str, Any]) -> None:
    home = saved["workspace"]["path"].replace("/ws", "/homes/eve")
    saved["workspace"]["path"] = home
    saved["tree"] = [
        {**each, "from": home} if each["at"] == "/m/workspace" else each for each in saved["tree"]
    ]


def with_host_sockets(saved: dict[str, Any]) -> None:
    saved["argv"] = [each.replace("uds=none", "uds=all") for each in saved["argv"]]


def without_seccomp(saved: dict[str, Any]) -> None:
    saved["argv"].remove("--oci-seccomp")


def with_a_lower_filestore(saved: dict[str, Any]) -> None:
    saved["argv"] = [
        "--overlay2=all:dir=/etc" if each.startswith("--overlay2") else each
        for each in saved["argv"]
    ]


def with_the_hosts_network(saved: dict[str, Any]) -> None:
    saved["argv"] = [
        each.replace("namespace=host", "namespace=/proc/1/ns/net") for each in saved["argv"]
    ]


def another_program(saved: dict[str, Any]) -> None:
    saved["argv"][0] = "/bin/sh"


def damaged(saved: dict[str, Any]) -> None:
    del saved["tree"][2]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without_a_library, "its sandbox saw /there/lib, which is not on this machine"),
        (writing_elsewhere, "could write to .*/elsewhere"),
        (writing_where_it_may_read, "could write to .*/ws"),
        (a_home, "cannot be shown here: .* is a home folder"),
        (with_host_sockets, "other flags of runsc: --host-uds=all"),
        (without_seccomp, "other flags of runsc: --oci-seccomp"),
        (with_a_lower_filestore, "other flags of runsc: --overlay2=all:dir=/etc"),
        (with_the_hosts_network, "other flags of runsc: --gofer-network-namespace=/proc/1/ns/net"),
        (another_program, "other flags of runsc: /bin/sh"),
        (damaged, "shape is damaged"),
    ],
)
def test_it_does_not_fit(folder: Path, change: Change, said: str) -> None:
    saved = shape(folder)
    change(saved)
    with pytest.raises(LaunchError, match=said):
        prepare(folder, saved)
    assert not (folder / "k/s2").exists()


def test_environments_apart_from_the_root_count_as_shown(folder: Path) -> None:
    """One below ``/tmp``, say, is a mount of its own: its libraries are compared all the same."""
    saved = shape(folder)
    saved["tree"].append(bind("/tmp/venv", "/m/f0"))
    saved["tree"].append(bind("/tmp/venv/site", "/m/live0"))
    assert _shown(saved) == (f"{folder}/lib", "/tmp/venv", "/tmp/venv/site")


def test_torpors_own_folder_in_the_workspace(folder: Path) -> None:
    own = str(folder / "ws/state")
    with pytest.raises(LaunchError, match=r"has Torpor's own folder .*/ws/state in it"):
        prepare(folder, shape(folder), (own,))
    prepare(folder, shape(folder, (own,)), (own,))
