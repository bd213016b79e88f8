"""Id-mapped mounts: how a sandbox with a uid of its own can write the user's folder (root only)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from torpor.cli.checks import Check, State


def check_idmap(folder: Path) -> Check:
    """Try, on the file system of ``folder``, what the launcher does to a read-write workspace."""
    name = "id-mapped mounts"
    if os.geteuid() != 0:
        return Check(name, State.OK, "not needed: sandboxes run under your own uid")
    try:
        _map_once(folder)
    except (OSError, subprocess.SubprocessError) as exc:
        found = f"refused for {folder}: {exc}"
        fix = (
            "workspaces there are read-only; keep notebooks on ext4, xfs, btrfs or tmpfs with"
            " Linux 5.12 or newer, or run Torpor as an ordinary user"
        )
        return Check(name, State.WARN, found, fix)
    return Check(name, State.OK, f"work on the file system of {folder}")


def _map_once(folder: Path) -> None:
    """Map a private copy of the mount at ``folder``, attached nowhere, and drop it."""
    from torpor.runsc.launcher import syscalls

    # The namespace lives as long as a process in it: this one, until its input ends.
    holder = subprocess.Popen(
        ["unshare", "--user", "--map-root-user", "sh", "-c", "echo; read _"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        namespace = os.open(f"/proc/{holder.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        try:
            tree = syscalls.open_tree(str(folder), recursive=False)
            try:
                syscalls.mount_setattr(tree, syscalls.ATTR_IDMAP, userns_fd=namespace)
            finally:
                os.close(tree)
        finally:
            os.close(namespace)
