"""Builds the file tree that runsc will see as ``/``: a small tmpfs with binds, nothing else of the
host.

Entries of the plan, applied in order, ``at`` below the new root::

    {"do": "directory", "at": "/tmp", "mode": 493, "mine": bool}
    {"do": "point", "at": "/rootfs/srv"}        a folder, unless there is one, to mount something on
    {"do": "file", "at": "/etc/hosts", "text": "…", "mode": 420, "mine": bool}
    {"do": "symlink", "at": "/bin", "to": "usr/bin"}
    {"do": "tmpfs", "at": "/run", "options": "mode=0700,size=4m", "mine": bool}
    {"do": "bind", "from": "/usr", "at": "/rootfs/usr", "read_only": true, "as_owner": false,
     "device": false, "optional": false}

``mine`` gives it to the sandbox's uid. ``as_owner`` shows the files of whoever owns ``from`` as the
sandbox's own (an id-mapped mount), so that a private uid can use the user's files.
"""

from __future__ import annotations

import os
import stat

from torpor.runsc.launcher import syscalls as sys_

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

TREE_BYTES = "8m"
TREE_FILES = 4096


class Tree:
    """The new root under construction at ``at``; ``owner`` is the sandbox's (uid, gid) on the host.

    ``owner`` is None when the caller's own uid runs the sandbox: then nothing is handed over or
    mapped. ``notes`` collects what had to be done differently, in words for the user.
    """

    def __init__(self, at: str, owner: tuple[int, int] | None) -> None:
        self.at = at
        self.owner = owner
        self.notes: list[str] = []
        self._maps: dict[tuple[int, int], int] = {}

    def build(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Make every entry, in order. Raises OSError with the path in its message."""
        flags = sys_.MS_NOSUID | sys_.MS_NODEV
        options = f"mode=0755,size={TREE_BYTES},nr_inodes={TREE_FILES}"
        sys_.mount("torpor", self.at, "tmpfs", flags, options)
        # A bind source may contain the place where this tree is built: do not bind it into itself.
        sys_.mount(None, self.at, None, sys_.MS_UNBINDABLE)
        try:
            for entry in entries:
                getattr(self, f"_{entry['do']}")(entry, self.at + entry["at"])
        finally:
            for namespace in self._maps.values():
                os.close(namespace)

    def _directory(self, entry: Mapping[str, Any], path: str) -> None:
        os.makedirs(path, exist_ok=True)
        os.chmod(path, entry["mode"])
        self._hand_over(entry, path)

    def _point(self, _entry: Mapping[str, Any], path: str) -> None:
        _make_mount_point(path, is_folder=True)

    def _file(self, entry: Mapping[str, Any], path: str) -> None:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(entry["text"].encode())
        os.chmod(path, entry["mode"])
        self._hand_over(entry, path)

    def _symlink(self, entry: Mapping[str, Any], path: str) -> None:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.symlink(entry["to"], path)

    def _tmpfs(self, entry: Mapping[str, Any], path: str) -> None:
        os.makedirs(path, exist_ok=True)
        options = entry["options"]
        if entry.get("mine") and self.owner:
            options += f",uid={self.owner[0]},gid={self.owner[1]}"
        sys_.mount("torpor", path, "tmpfs", sys_.MS_NOSUID | sys_.MS_NODEV, options)

    def _hand_over(self, entry: Mapping[str, Any], path: str) -> None:
        if entry.get("mine") and self.owner:
            os.chown(path, *self.owner)

    def _bind(self, entry: Mapping[str, Any], path: str) -> None:
        try:
            status = os.stat(entry["from"])
        except OSError:
            if entry.get("optional"):
                return
            raise
        _make_mount_point(path, is_folder=stat.S_ISDIR(status.st_mode))
        if entry.get("as_owner") and self.owner:
            try:
                self._bind_as_owner(entry, path, status)
                return
            except OSError as exc:
                if not entry["read_only"]:
                    self.notes.append(
                        f"{entry['from']} is read-only, its file system cannot map owners: {exc}"
                    )
        sys_.mount(entry["from"], path, None, sys_.MS_BIND | sys_.MS_REC)
        read_only = entry["read_only"] or bool(entry.get("as_owner") and self.owner)
        _restrict(path, read_only=read_only, device=bool(entry.get("device")))

    def _bind_as_owner(self, entry: Mapping[str, Any], path: str, status: os.stat_result) -> None:
        assert self.owner is not None
        theirs = (status.st_uid, status.st_gid)
        if theirs not in self._maps:
            self._maps[theirs] = _owner_map(theirs, self.owner)
        tree = self._mapped_copy(entry, self._maps[theirs])
        try:
            sys_.move_mount(tree, path)
        finally:
            os.close(tree)

    def _mapped_copy(self, entry: Mapping[str, Any], namespace: int) -> int:
        attributes = sys_.ATTR_IDMAP | sys_.ATTR_NOSUID | sys_.ATTR_NODEV
        if entry["read_only"]:
            attributes |= sys_.ATTR_RDONLY
        last: OSError | None = None
        # One mount below that cannot be mapped spoils the recursive copy: then do without those
        # below.
        for recursive in (True, False):
            tree = sys_.open_tree(entry["from"], recursive=recursive)
            try:
                sys_.mount_setattr(tree, attributes, userns_fd=namespace)
                return tree
            except OSError as exc:
                os.close(tree)
                last = exc
        assert last is not None
        raise last


def _make_mount_point(path: str, *, is_folder: bool) -> None:
    if os.path.lexists(path):
        return
    if is_folder:
        os.makedirs(path)
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def _owner_map(theirs: tuple[int, int], owner: tuple[int, int]) -> int:
    """Give a descriptor of a user namespace that shows what is ``theirs`` as ``owner``'s."""
    ready_read, ready_write = os.pipe()
    done_read, done_write = os.pipe()
    child = os.fork()
    if child == 0:
        # Close the parent's end first, so that the parent's death ends the wait below.
        os.close(done_write)
        try:
            sys_.unshare(sys_.CLONE_NEWUSER, "user namespace for the owner map")
            os.write(ready_write, b"x")
            os.read(done_read, 1)
        finally:
            os._exit(0)
    os.close(ready_write)
    os.close(done_read)
    try:
        if os.read(ready_read, 1) != b"x":
            raise OSError(1, "user namespace for the owner map: Operation not permitted")
        _write(f"/proc/{child}/uid_map", f"{theirs[0]} {owner[0]} 1")
        _write(f"/proc/{child}/gid_map", f"{theirs[1]} {owner[1]} 1")
        return os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(ready_read)
        os.close(done_write)
        os.waitpid(child, 0)


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _restrict(path: str, *, read_only: bool, device: bool) -> None:
    """Make the mounts at and below ``path`` nosuid, without devices, read-only if asked."""
    attributes = sys_.ATTR_NOSUID
    if read_only:
        attributes |= sys_.ATTR_RDONLY
    if not device:
        attributes |= sys_.ATTR_NODEV
    try:
        sys_.mount_setattr(path, attributes)
    except OSError:
        # Before Linux 5.12, or under a seccomp profile that knows only mount(2).
        for mount_point in _mounts_below(path):
            _remount(mount_point, attributes)


def _remount(path: str, attributes: int) -> None:
    # statvfs flags ST_RDONLY…ST_NOEXEC and ST_NOATIME… have the values of MS_*; in a user namespace
    # those that are set are locked and must be repeated.
    locked = os.statvfs(path).f_flag & (0xF | 0x400 | 0x800)
    if os.statvfs(path).f_flag & 0x1000:  # ST_RELATIME
        locked |= 1 << 21
    sys_.mount(None, path, None, sys_.MS_BIND | sys_.MS_REMOUNT | locked | attributes)


def _mounts_below(path: str) -> list[str]:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        points = [_unescaped(line.split(" ")[4]) for line in file]
    return [point for point in points if point == path or point.startswith(path + "/")]


def _unescaped(text: str) -> str:
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, char)
    return text
