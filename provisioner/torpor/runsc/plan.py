"""Everything the launcher is told about one sandbox: files, bundle, runsc's argv. Pure.

`launch_plan` gives what `torpor.runsc.launcher` reads. What the sandbox sees is the tree's
``/rootfs``: the host's system folders and the environments bound read-only beside generated files,
so that gVisor reaches all of it through one mount and may cache it. A mount of its own becomes only
what lies in a place that something writable covers (the private home, ``/tmp``, the workspace), and
what others change while the sandbox runs: the workspace, and folders that packages are installed
into, so that a package installed on the host is there when the kernel is restarted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torpor.python_prefix import within
from torpor.runsc.etc import HOME, HOST_PIECES, etc_files, hostname_of
from torpor.runsc.oci import ROOTFS, FolderMount, GuestProcess, oci_config
from torpor.template import Template, WorkspaceMode

PLAN_VERSION = 1
BOOT_FILE = "/run/torpor/boot.json"
GUEST_FOLDER = "/opt/torpor/torpor_guest"
LINK_FOLDER = "/opt/torpor/torpor/link"

WORKSPACE_AT = "/run/torpor/workspace"
"""Where every clone of a golden gets its workspace; the guest moves it (``torpor_guest.places``)."""

BUNDLE = "/bundle"
IMAGE = "/image"
SAVE = "/save"
LOG = "/log"
_STATE = "/run/runsc"
_RUNSC = "/runsc"
RUNSC_AT = f"{_RUNSC}/runsc"
SIDECARS_AT = f"{_RUNSC}/gvisor-bin"
CONFIG = f"{BUNDLE}/config.json"
_DEVICES = ("null", "zero", "full", "random", "urandom")
_COVERED = (HOME, "/tmp", "/var/tmp", "/dev", "/proc", "/sys")
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": "/"}
"""Of runsc itself."""
OOM_SCORE_ADJ = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkspaceMount:
    """The user's folder as the sandbox will really see it; not made at all for mode none."""

    path: str
    mode: WorkspaceMode
    hidden: tuple[str, ...] = ()
    """Folders below ``path`` that the sandbox must not see: Torpor's own state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFolder:
    """The host folder of a checkpoint: to write one into, or to restore the sandbox from.

    Such sandboxes have the same mounts whatever their workspace is, since gVisor restores nothing
    else: ``read_only`` says how the workspace is mounted, there or not.
    """

    path: str
    restore: bool
    read_only: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFolders:
    """Folders of the host that go into the sandbox read-only, all absolute, none inside another.

    ``system`` as they are, with the links among them in ``links``; ``prefixes`` even inside the
    workspace;
    ``sources`` only where the workspace does not show them.
    """

    system: tuple[str, ...]
    links: Mapping[str, str] = field(default_factory=dict)
    prefixes: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    live: tuple[str, ...] = ()
    """Folders in one of the above that change while sandboxes run."""
    guest: Mapping[str, str] = field(default_factory=dict)
    """Place in the sandbox to host folder: the guest's own code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What the host offers."""

    runsc: str
    runsc_sidecars: str | None
    cpus: int
    memory_is_capped: bool


def launch_plan(
    *,
    sandbox_id: str,
    directory: str,
    template: Template,
    machine: Machine,
    folders: HostFolders,
    workspace: WorkspaceMount | None,
    process: GuestProcess,
    boot: Mapping[str, Any],
    image: ImageFolder | None = None,
) -> dict[str, Any]:
    """Give the plan, in types that JSON has too; ``boot`` is the guest's ``boot.json``."""
    covering = workspace if image is None else None
    in_root, apart = _split(folders, covering)
    mounts = _folder_mounts(folders, apart, _workspace_mount(workspace, image))
    config = oci_config(
        template,
        process,
        mounts,
        workspace.hidden if workspace else (),
        cpus=machine.cpus,
        memory_is_capped=machine.memory_is_capped,
        hostname=hostname_of(sandbox_id),
        guest_may_mount=image is not None,
    )
    tree = [
        *_base_tree(machine, f"{directory}/log"),
        *([bind(image.path, IMAGE, read_only=image.restore, as_owner=True)] if image else []),
        bind(f"{directory}/save", SAVE, read_only=False),
        *_rootfs_tree(
            folders, in_root, boot, [each.at for each in mounts], hostname_of(sandbox_id)
        ),
        *({"do": "point", "at": ROOTFS + each.at} for each in mounts),
        *_own_place(workspace, image),
        *_mount_sources(mounts, workspace),
        _file(CONFIG, json.dumps(config), 0o400),
    ]
    shown = workspace is not None or image is not None
    overlay = shown and template.workspace is WorkspaceMode.OVERLAY
    if image is None and workspace is not None:
        overlay = workspace.mode is WorkspaceMode.OVERLAY
    overlay_bytes = template.tmp_bytes if overlay else None
    restored_from = IMAGE if image is not None and image.restore else None
    return {
        "version": PLAN_VERSION,
        "sandbox_id": sandbox_id,
        "build_at": f"{directory}/root",
        "stdio": [f"{directory}/{name}" for name in ("to_guest", "from_guest", "guest_stderr")],
        "tree": tree,
        "argv": runsc_argv(sandbox_id, overlay_bytes=overlay_bytes, image=restored_from),
        # The folder is there for people who look at processes; runsc cannot see it.
        "env": {**ENVIRONMENT, "TORPOR_SANDBOX": directory},
        "oom_score_adj": OOM_SCORE_ADJ,
    }


def runsc_argv(
    sandbox_id: str, *, overlay_bytes: int | None, image: str | None = None
) -> list[str]:
    """Give the command line that the launcher becomes, with paths of its own tree."""
    start = ["run"] if image is None else ["restore", f"--image-path={image}"]
    return [*runsc_flags(overlay_bytes), *start, f"--bundle={BUNDLE}", sandbox_id]


def checkpoint_argv(sandbox_id: str, *, overlay_bytes: int | None) -> list[str]:
    """Give the command that saves a sandbox into its image folder, run in its namespaces.

    The sandbox does not survive it, whether it succeeds or not.
    """
    save = ["checkpoint", f"--image-path={IMAGE}", "--compression=none"]
    return [*runsc_flags(overlay_bytes), *save, sandbox_id]


ADDED_FLAGS = ("--gofer-network-namespace=host",)
"""Of ``runsc_flags``: what sandboxes of earlier versions were started without, whose snapshots are there."""


def runsc_flags(overlay_bytes: int | None) -> list[str]:
    """Give runsc's path in the launcher's tree and the flags before its command."""
    overlay = "none" if overlay_bytes is None else f"all:memory,size={overlay_bytes}"
    return [
        RUNSC_AT,
        f"--root={_STATE}",
        f"--log={LOG}/runsc.log",
        f"--panic-log={LOG}/panic.log",
        "--platform=systrap",
        "--network=none",
        # The launcher has already put it into cgroups and an empty network namespace of its own: one
        # more for the gofer would be as empty, and takes 4 ms to make.
        "--ignore-cgroups",
        *ADDED_FLAGS,
        "--host-uds=none",
        "--host-fifo=none",
        "--oci-seccomp",
        "--net-raw=false",
        f"--overlay2={overlay}",
        # What the sandbox alone uses is cached; the workspace is marked as shared in the bundle.
        "--file-access=exclusive",
        "--file-access-mounts=exclusive",
        "--gvisor-marker-file",
    ]


def _split(folders: HostFolders, workspace: WorkspaceMount | None) -> tuple[list[str], list[str]]:
    """Divide the read-only folders: inside the root file system, and mounts of their own."""
    covers = (*_COVERED, *((workspace.path,) if workspace else ()))
    wanted = [
        *folders.prefixes,
        *(each for each in folders.sources if not workspace or not within(each, workspace.path)),
    ]
    in_root = [each for each in wanted if not any(within(each, cover) for cover in covers)]
    return in_root, [each for each in wanted if each not in in_root]


def _workspace_mount(
    workspace: WorkspaceMount | None, image: ImageFolder | None
) -> FolderMount | None:
    if image is not None:
        at, read_only = WORKSPACE_AT, image.read_only
    elif workspace is not None:
        at, read_only = workspace.path, workspace.mode is WorkspaceMode.READ_ONLY
    else:
        return None
    return FolderMount("workspace", "/m/workspace", at, read_only=read_only, live=True)


def _folder_mounts(
    folders: HostFolders, apart: Sequence[str], workspace: FolderMount | None
) -> list[FolderMount]:
    mounts = [
        FolderMount(f"f{number}", f"/m/f{number}", each, read_only=True, live=False)
        for number, each in enumerate(apart)
    ]
    mounts += [
        FolderMount(f"live{number}", f"/m/live{number}", each, read_only=True, live=True)
        for number, each in enumerate(each for each in folders.live if each not in apart)
    ]
    if workspace:
        mounts.append(workspace)
    # A folder is mounted after those it lies in.
    return sorted(mounts, key=lambda each: each.at.count("/"))


def _base_tree(machine: Machine, log: str) -> list[dict[str, Any]]:
    """Give what runsc itself needs around it."""
    sidecars = machine.runsc_sidecars
    return [
        *(_directory(each) for each in ("/proc", "/dev", "/etc", "/m", BUNDLE, ROOTFS)),
        *(bind(f"/dev/{each}", f"/dev/{each}", device=True, read_only=False) for each in _DEVICES),
        bind("/etc/localtime", "/etc/localtime", optional=True),
        {"do": "tmpfs", "at": _STATE, "options": "mode=0700,size=4m", "mine": True},
        # Where gVisor builds the empty root of its own process.
        {"do": "tmpfs", "at": "/tmp", "options": "mode=0700,size=4m", "mine": True},
        bind(machine.runsc, RUNSC_AT, as_owner=True),
        *([bind(sidecars, SIDECARS_AT, as_owner=True)] if sidecars else []),
        bind(log, LOG, read_only=False),
    ]


def _rootfs_tree(
    folders: HostFolders,
    in_root: Sequence[str],
    boot: Mapping[str, Any],
    points_of: Sequence[str],
    hostname: str,
) -> list[dict[str, Any]]:
    # A mount point cannot lie behind a link: gVisor would follow it into the other folder.
    shortcuts = {"/var/run": "/run"}
    for at in [at for at in shortcuts if any(within(each, at) for each in [*in_root, *points_of])]:
        del shortcuts[at]
    points = (
        "/proc",
        "/sys",
        "/dev",
        "/dev/shm",
        "/tmp",
        HOME,
        "/etc",
        "/run",
        "/var/tmp",
        "/opt",
        "/mnt",
    )
    return [
        *(_directory(ROOTFS + each) for each in points),
        *({"do": "symlink", "at": ROOTFS + at, "to": to} for at, to in shortcuts.items()),
        {"do": "symlink", "at": f"{ROOTFS}/etc/mtab", "to": "/proc/self/mounts"},
        *({"do": "symlink", "at": ROOTFS + at, "to": to} for at, to in folders.links.items()),
        *(bind(each, ROOTFS + each) for each in folders.system),
        *(bind(each, ROOTFS + each, optional=True) for each in HOST_PIECES),
        *(_file(ROOTFS + at, text, 0o644) for at, text in etc_files(hostname).items()),
        *(bind(each, ROOTFS + each, as_owner=True) for each in in_root),
        *(bind(source, ROOTFS + at, as_owner=True) for at, source in folders.guest.items()),
        _file(ROOTFS + BOOT_FILE, json.dumps(boot), 0o400),
    ]


def _own_place(workspace: WorkspaceMount | None, image: ImageFolder | None) -> list[dict[str, Any]]:
    """Give the place that a clone's guest will bind the workspace to, unless that is writable."""
    if image is None or workspace is None or any(within(workspace.path, each) for each in _COVERED):
        return []
    return [{"do": "point", "at": ROOTFS + workspace.path}]


def is_folder_mount(at: str) -> bool:
    """Whether that place in the tree is mounted for the sandbox under its path on the host.

    The environment is where something writable would cover it: in the private home, in ``/tmp``. The
    workspace is not meant.
    """
    return at.startswith("/m/") and at != "/m/workspace"


def _mount_sources(
    mounts: Iterable[FolderMount], workspace: WorkspaceMount | None
) -> list[dict[str, Any]]:
    entries = []
    for each in mounts:
        # The host enforces what the mode says, whatever gVisor believes: an overlay never writes
        # below.
        overlaid = (
            each.name == "workspace"
            and workspace is not None
            and workspace.mode is WorkspaceMode.OVERLAY
        )
        if each.name == "workspace" and workspace is None:
            # The sandbox's own: an overlay of a golden remembers whose its lowest folder was.
            entries.append({**_directory(each.source), "mine": True})
            continue
        source = workspace.path if each.name == "workspace" and workspace else each.at
        read_only = each.read_only or overlaid
        entries.append(bind(source, each.source, as_owner=True, read_only=read_only))
    return entries


def _directory(at: str, mode: int = 0o755) -> dict[str, Any]:
    return {"do": "directory", "at": at, "mode": mode}


def _file(at: str, text: str, mode: int) -> dict[str, Any]:
    return {"do": "file", "at": at, "text": text, "mode": mode, "mine": mode == 0o400}


def bind(
    source: str,
    at: str,
    *,
    read_only: bool = True,
    as_owner: bool = False,
    device: bool = False,
    optional: bool = False,
) -> dict[str, Any]:
    entry: dict[str, Any] = {"do": "bind", "from": source, "at": at, "read_only": read_only}
    chosen = {"as_owner": as_owner, "device": device, "optional": optional}
    return entry | {name: True for name, value in chosen.items() if value}
