"""The OCI ``config.json`` of a sandbox. Pure: the same values give the same bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torpor.runsc.etc import HOME
from torpor.template import GIB, MIB, Template

OCI_VERSION = "1.1.0"
_MOUNTING = ("CAP_SETPCAP", "CAP_SYS_ADMIN")
ROOTFS = "/rootfs"
RLIM_INFINITY = (1 << 64) - 1

_RESERVED_BYTES = GIB
"""Address space that an idle ipykernel has but does not use: 0.75 GiB, most of it heap regions."""

_RESERVED_PER_CPU_BYTES = 136 * MIB
"""A thread's stack (8 MiB) and the heap region that glibc reserves for it (128 MiB at first)."""


@dataclass(frozen=True, slots=True)
class FolderMount:
    """A host folder that is a mount of its own in the sandbox, because something writable covers
    its place.

    ``source`` is its place in runsc's own tree. ``live`` folders may change under the sandbox and
    are checked at every use; the others may be cached.
    """

    name: str
    source: str
    at: str
    read_only: bool
    live: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestProcess:
    """The sandbox's first program."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)


def oci_config(
    template: Template,
    process: GuestProcess,
    folders: Sequence[FolderMount],
    hidden: Sequence[str],
    *,
    cpus: int,
    memory_is_capped: bool,
    hostname: str,
    guest_may_mount: bool = False,
) -> dict[str, Any]:
    """Give the ``config.json`` object.

    ``hidden`` are folders inside one of ``folders`` that an empty read-only folder covers.
    ``memory_is_capped`` says whether a cgroup bounds the whole sandbox; if not, the limit per
    process is the only one and cannot be raised from inside. ``guest_may_mount`` gives process 1
    what it needs to move a workspace inside the sandbox; it keeps that from its children and gives
    it up before anybody's code runs (``torpor_guest.places``).
    """
    rights = list(_MOUNTING) if guest_may_mount else []
    return {
        "ociVersion": OCI_VERSION,
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0, "umask": 0o022},
            "args": list(process.argv),
            "env": [f"{name}={value}" for name, value in sorted(process.env.items())],
            "cwd": HOME,
            "capabilities": {
                kind: rights if kind in ("bounding", "effective", "permitted") else []
                for kind in ("bounding", "effective", "inheritable", "permitted", "ambient")
            },
            "rlimits": _rlimits(template, cpus=cpus, memory_is_capped=memory_is_capped),
            "noNewPrivileges": True,
        },
        "root": {"path": ROOTFS, "readonly": True},
        "hostname": hostname,
        "mounts": _mounts(template, folders, hidden),
        "annotations": _annotations(folders),
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")],
            "maskedPaths": list(MASKED),
            "readonlyPaths": list(READ_ONLY),
        },
    }


# What runsc's own /proc may one day show; the same list as containerd's.
MASKED = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
)
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


def _rlimits(template: Template, *, cpus: int, memory_is_capped: bool) -> list[dict[str, Any]]:
    # Numeric libraries reserve address space for each thread and start one per processor: on large
    # machines that alone would reach the limit, without using any memory.
    reserved = _RESERVED_BYTES + max(0, cpus - 4) * _RESERVED_PER_CPU_BYTES
    address_space = template.memory_bytes + reserved
    limits = {
        # A refused allocation is an exception in one cell; reaching the cgroup's limit ends the
        # sandbox. So this is the softer of the two, and a program that reserves much (V8, Java)
        # may raise it.
        "RLIMIT_AS": (address_space, RLIM_INFINITY if memory_is_capped else address_space),
        "RLIMIT_CORE": (0, 0),
        "RLIMIT_NOFILE": (template.open_files, template.open_files),
        "RLIMIT_NPROC": (template.pids, template.pids),
    }
    return [{"type": kind, "soft": soft, "hard": hard} for kind, (soft, hard) in limits.items()]


def _mounts(
    template: Template, folders: Sequence[FolderMount], hidden: Sequence[str]
) -> list[dict[str, Any]]:
    private = ("nosuid", "nodev")
    mounts = [
        _mount("proc", "/proc", "proc", "nosuid", "nodev", "noexec"),
        _mount("sysfs", "/sys", "sysfs", "nosuid", "nodev", "noexec", "ro"),
        _mount("tmpfs", "/dev", "tmpfs", "nosuid", "mode=0755", "size=65536k"),
        _mount("tmpfs", "/dev/shm", "tmpfs", *private, "mode=1777", f"size={template.shm_bytes}"),
        _mount("tmpfs", "/tmp", "tmpfs", *private, "mode=1777", f"size={template.tmp_bytes}"),
        _mount("tmpfs", "/var/tmp", "tmpfs", *private, "mode=1777", f"size={template.tmp_bytes}"),
        _mount("tmpfs", HOME, "tmpfs", *private, "mode=0700", f"size={template.home_bytes}"),
    ]
    for folder in folders:
        access = "ro" if folder.read_only else "rw"
        mounts.append(_mount(folder.source, folder.at, "bind", "rbind", access, *private))
    mounts += [_mount("tmpfs", each, "tmpfs", *private, "ro", "mode=0555") for each in hidden]
    return mounts


def _mount(source: str, at: str, kind: str, *options: str) -> dict[str, Any]:
    return {"destination": at, "type": kind, "source": source, "options": list(options)}


def _annotations(folders: Sequence[FolderMount]) -> dict[str, str]:
    """Tell gVisor which bound folders others change too; it may cache the rest."""
    found: dict[str, str] = {}
    for folder in folders:
        if folder.live:
            prefix = f"dev.gvisor.spec.mount.{folder.name}"
            found |= {
                f"{prefix}.source": folder.source,
                f"{prefix}.type": "bind",
                f"{prefix}.share": "shared",
            }
    return found
