"""Groups are found, limited and removed, in both versions; the tree is a copy in a folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from torpor.backends.local_cgroups import (
    Cgroups,
    Hierarchy,
    find_cgroups,
    limits,
    oom_kills,
    remove,
)
from torpor.template import MIB, Template

V1_MOUNTS = """\
30 24 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro
31 30 0:27 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
32 30 0:28 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
33 30 0:29 /docker/abc /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
34 30 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
"""
V1_OWN = """\
9:name=systemd:/
8:pids:/
4:memory:/outer/me
1:cpu,cpuacct:/docker/abc/me
0::/
"""
V2_MOUNTS = "31 30 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n"


def _machine(root: Path, mounts: str, own: str, *folders: str) -> Path:
    proc = root / "proc/self"
    proc.mkdir(parents=True)
    (proc / "mountinfo").write_text(mounts)
    (proc / "cgroup").write_text(own)
    for folder in folders:
        (root / folder).mkdir(parents=True)
    return root


def test_version_1_uses_each_controllers_own_group(tmp_path: Path) -> None:
    folders = ("memory/outer/me", "pids", "cpu,cpuacct/me", "unified")
    root = _machine(tmp_path, V1_MOUNTS, V1_OWN, *(f"sys/fs/cgroup/{each}" for each in folders))
    found = find_cgroups(root, uid=0)
    base = f"{root}/sys/fs/cgroup"
    assert found.hierarchies == (
        Hierarchy(1, f"{base}/memory/outer/me", ("memory",)),
        Hierarchy(1, f"{base}/pids", ("pids",)),
        Hierarchy(1, f"{base}/cpu,cpuacct/me", ("cpu",)),
    )
    assert found.controllers == {"memory", "pids", "cpu"}


def test_version_2_uses_a_delegated_group(tmp_path: Path) -> None:
    own = "user.slice/user-1.slice/torpor.service"
    root = _machine(tmp_path, V2_MOUNTS, f"0::/{own}\n", f"sys/fs/cgroup/{own}")
    base = root / "sys/fs/cgroup" / own
    (base / "cgroup.subtree_control").write_text("memory pids\n")
    found = find_cgroups(root, uid=4242)
    assert found.hierarchies == (Hierarchy(2, str(base), ("memory", "pids")),)


@pytest.mark.parametrize("procs", ["", "77\n"])
def test_version_2_uses_an_empty_group_above_that_is_the_users(tmp_path: Path, procs: str) -> None:
    own = "user.slice/torpor.service/daemon"
    root = _machine(tmp_path, V2_MOUNTS, f"0::/{own}\n", f"sys/fs/cgroup/{own}")
    above = (root / "sys/fs/cgroup" / own).parent
    uid = os.geteuid() or 4242
    os.chown(above, uid, -1)
    (above / "cgroup.procs").write_text(procs)
    # The kernel would answer "+pids" with all that are on; a file keeps the last one written.
    (above / "cgroup.subtree_control").write_text("")
    find_cgroups(root, uid=uid + 1)
    assert (above / "cgroup.subtree_control").read_text() == ""
    find_cgroups(root, uid=uid)
    assert (above / "cgroup.subtree_control").read_text() == ("" if procs else "+cpu")


def test_version_2_without_delegation_gives_none_to_users(tmp_path: Path) -> None:
    root = _machine(tmp_path, V2_MOUNTS, "0::/a\n", "sys/fs/cgroup/a")
    assert find_cgroups(root, uid=4242).hierarchies == ()


def test_version_2_lets_root_make_a_group_of_its_own(tmp_path: Path) -> None:
    root = _machine(tmp_path, V2_MOUNTS, "0::/a\n", "sys/fs/cgroup/a", "sys/fs/cgroup/torpor")
    # The kernel would answer "+cpu" with all that are on; a file keeps the last one written.
    (root / "sys/fs/cgroup/torpor/cgroup.subtree_control").write_text("")
    found = find_cgroups(root, uid=0)
    assert [each.base for each in found.hierarchies] in ([], [f"{root}/sys/fs/cgroup/torpor"])


def test_no_cgroups_at_all_is_fine(tmp_path: Path) -> None:
    found = find_cgroups(tmp_path, uid=0)
    assert found == Cgroups(())
    assert found.folders("x") == ()
    assert found.make("x", Template()) == ()


def test_limits_of_version_1() -> None:
    template = Template(memory_bytes=512 * MIB, pids=100, cpu_milli=1500)
    assert limits(Hierarchy(1, "/m", ("memory",)), template) == {
        "memory.limit_in_bytes": "536870912",
        "memory.memsw.limit_in_bytes": "536870912",
    }
    assert limits(Hierarchy(1, "/p", ("pids",)), template) == {"pids.max": "712"}
    assert limits(Hierarchy(1, "/c", ("cpu",)), template) == {
        "cpu.cfs_period_us": "100000",
        "cpu.cfs_quota_us": "150000",
    }
    unlimited = limits(Hierarchy(1, "/c", ("cpu",)), Template())
    assert unlimited["cpu.cfs_quota_us"] == "-1"


def test_limits_of_version_2() -> None:
    hierarchy = Hierarchy(2, "/g", ("memory", "pids", "cpu"))
    assert limits(hierarchy, Template(memory_bytes=512 * MIB, pids=100, cpu_milli=500)) == {
        "memory.max": "536870912",
        "memory.swap.max": "0",
        "memory.oom.group": "1",
        "pids.max": "712",
        "cpu.max": "50000 100000",
    }
    assert limits(hierarchy, Template())["cpu.max"] == "max 100000"


def test_make_writes_the_limits(tmp_path: Path) -> None:
    cgroups = Cgroups((Hierarchy(2, str(tmp_path), ("memory", "pids")),))
    made = tmp_path / "torpor-s1"
    made.mkdir()  # the kernel would put these files there
    for name in ("memory.max", "pids.max"):
        (made / name).write_text("max")
    (folder,) = cgroups.make("s1", Template(memory_bytes=512 * MIB))
    assert folder == f"{tmp_path}/torpor-s1"
    assert Path(folder, "memory.max").read_text() == "536870912"


@pytest.mark.parametrize(
    ("name", "text", "count"),
    [
        ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n", 2),
        ("memory.events", "low 0\nhigh 0\nmax 9\noom 1\noom_kill 1\noom_group_kill 1\n", 1),
        ("memory.events", "oom 1\n", 0),
        ("other", "oom_kill 1\n", 0),
    ],
)
def test_oom_kills_are_counted(tmp_path: Path, name: str, text: str, count: int) -> None:
    (tmp_path / name).write_text(text)
    assert oom_kills(["/nonexistent", str(tmp_path)]) == count


async def test_remove_takes_what_is_there_and_tells_what_stays(tmp_path: Path) -> None:
    empty, full = tmp_path / "empty", tmp_path / "full"
    empty.mkdir()
    (full / "inner").mkdir(parents=True)
    assert await remove([str(empty), "/nonexistent"]) == []
    assert not empty.exists()
    assert await remove([str(full)], tries=2) == [str(full)]
