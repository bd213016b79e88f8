"""The host: its kernel, namespaces, cgroups, id-mapped mounts, disk, memory, our own folders."""

from __future__ import annotations

import os
import platform
import re
import shutil
import stat
import subprocess
from pathlib import Path

from torpor.cli.checks import Check, State
from torpor.cli.text import size
from torpor.paths import Paths

GIB = 1 << 30
_KERNEL_FLOOR = (4, 14, 77)  # gVisor's own
_PIDFD_FLOOR = (5, 3)  # how Torpor watches processes
_ADDRESS_BYTES = 107  # sun_path without its closing zero
_MACHINES = ("x86_64", "aarch64")


def check_kernel(release: str | None = None, machine: str | None = None) -> Check:
    """Is this a Linux that gVisor runs on."""
    release, machine = release or platform.release(), machine or platform.machine()
    found = f"Linux {release}, {machine}"
    if machine not in _MACHINES:
        return Check("kernel", State.FAIL, found, "gVisor needs an x86_64 or aarch64 machine")
    numbers = tuple(int(part) for part in re.findall(r"\d+", release)[:3])
    if numbers < max(_KERNEL_FLOOR, _PIDFD_FLOOR):
        return Check("kernel", State.FAIL, found, "Linux 5.3 or newer is needed: upgrade it")
    return Check("kernel", State.OK, found)


def check_tracing(scope: str | None = None) -> Check:
    """May gVisor's default platform (systrap) attach to its own processes."""
    scope = _read("/proc/sys/kernel/yama/ptrace_scope") if scope is None else scope
    if scope == "3":
        fix = "`sysctl kernel.yama.ptrace_scope=1`, then reboot: 3 cannot be taken back without"
        return Check("tracing", State.FAIL, "ptrace is switched off (ptrace_scope 3)", fix)
    return Check("tracing", State.OK, f"ptrace_scope {scope}" if scope else "not restricted")


def check_namespaces() -> Check:
    """Can this user make user namespaces: every sandbox gets one."""
    name = "user namespaces"
    unshare = shutil.which("unshare")
    if unshare is None:
        fix = "install the package util-linux"
        return Check(name, State.WARN, "not tried: the command unshare is missing", fix)
    ran = subprocess.run(
        [unshare, "--user", "--map-root-user", "--mount", "true"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    if ran.returncode == 0:
        return Check(name, State.OK, "can be made")
    return Check(name, State.FAIL, ran.stderr.strip() or "refused", namespace_fix(_sysctls()))


def namespace_fix(sysctls: dict[str, str]) -> str:
    """Say which of the known switches keeps user namespaces from us. Pure."""
    if sysctls.get("user.max_user_namespaces") == "0":
        return "as root: `sysctl -w user.max_user_namespaces=15000`"
    if sysctls.get("kernel.unprivileged_userns_clone") == "0":
        return "as root: `sysctl -w kernel.unprivileged_userns_clone=1`"
    if sysctls.get("kernel.apparmor_restrict_unprivileged_userns") == "1":
        return (
            "as root: `sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`, or an AppArmor"
            " profile that grants userns to your Python"
        )
    return (
        "a container or security policy forbids them: run Torpor outside of it, or let it allow"
        " unshare and mount"
    )


def check_cgroups() -> Check:
    """Which limits does the host's kernel enforce on a whole sandbox."""
    from torpor.backends.local_cgroups import find_cgroups

    have = find_cgroups(uid=os.geteuid()).controllers
    missing = [name for name in ("memory", "pids", "cpu") if name not in have]
    if not missing:
        return Check("cgroups", State.OK, "limits on memory, processes and CPU")
    found = f"no limit on {', '.join(missing)} of a sandbox as a whole; rlimits still hold"
    if os.geteuid() == 0:
        fix = "mount the missing controllers below /sys/fs/cgroup, writable"
    else:
        fix = (
            "have them delegated to you: start your server or torpord by"
            " `systemd-run --user --scope -p Delegate=yes ...`, or run Torpor as root"
        )
    return Check("cgroups", State.WARN, found, fix)


def check_disk(paths: Paths, free_bytes: int | None = None) -> Check:
    """Is there room for sandboxes, logs and snapshots."""
    where = _nearest(paths.state)
    free = shutil.disk_usage(where).free if free_bytes is None else free_bytes
    found = f"{size(free)} free at {where}"
    fix = "free some space, or put TORPOR_HOME on a larger disk"
    if free < GIB // 4:
        return Check("disk", State.FAIL, found, fix)
    return Check("disk", State.WARN if free < 2 * GIB else State.OK, found, fix)


def check_memory(meminfo: str | None = None) -> Check:
    """Is there memory for a few kernels; each takes 100 MiB and what its user computes."""
    text = _read("/proc/meminfo") if meminfo is None else meminfo
    found = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    if not found:
        fix = "mount /proc with meminfo, then look again"
        return Check("memory", State.WARN, "unknown: /proc/meminfo does not tell", fix)
    available = int(found.group(1)) << 10
    said, fix = f"{size(available)} available", "stop other programs or kernels"
    if available < GIB // 4:
        return Check("memory", State.FAIL, said, fix)
    return Check("memory", State.WARN if available < GIB else State.OK, said, fix)


def check_folders(paths: Paths) -> Check:
    """Are our folders ours, private and with names short enough for sockets."""
    longest = max(len(os.fsencode(one)) for one in (paths.daemon_socket, paths.bridge_socket))
    if longest > _ADDRESS_BYTES:
        fix = "set TORPOR_HOME or XDG_RUNTIME_DIR to a shorter path"
        return Check("folders", State.FAIL, f"{paths.runtime} is too long for sockets", fix)
    for folder in (paths.state, paths.runtime, paths.data, paths.config):
        there = _nearest(folder)
        seen = there.stat()
        if there == folder and seen.st_uid != os.geteuid():
            fix = f"`chown` it, or set TORPOR_HOME to a folder of your own (it is {seen.st_uid}'s)"
            return Check("folders", State.FAIL, f"{folder} belongs to somebody else", fix)
        if not stat.S_ISDIR(seen.st_mode) or not os.access(there, os.W_OK | os.X_OK):
            fix = "make it a folder that you can write, or set TORPOR_HOME"
            return Check("folders", State.FAIL, f"{there} cannot be written", fix)
    return Check("folders", State.OK, f"state in {paths.state}, sockets in {paths.runtime}")


def _sysctls() -> dict[str, str]:
    names = (
        "user.max_user_namespaces",
        "kernel.unprivileged_userns_clone",
        "kernel.apparmor_restrict_unprivileged_userns",
    )
    return {name: _read(f"/proc/sys/{name.replace('.', '/')}") for name in names}


def _nearest(path: Path) -> Path:
    """Give ``path``, or the closest of its parents that exists."""
    return next(one for one in (path, *path.parents) if one.exists())


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
