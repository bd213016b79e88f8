"""Tells whether anything in some folders was changed, through inotify: no look at the files needed.

inotify(7) sees what this machine does. On file systems that others write to as well (NFS, SMB, FUSE,
9p) it proves nothing, and ``watch`` refuses them.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable

# inotify.h: ATTRIB, MODIFY, CLOSE_WRITE, MOVED_FROM, MOVED_TO, CREATE, DELETE, DELETE_SELF, MOVE_SELF
_CHANGES = 0x2 | 0x4 | 0x8 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800
_ONLYDIR = 0x01000000
_READ_BYTES = 1 << 16
_SHARED = {
    0x6969,  # NFS
    0xFF534D42,  # CIFS
    0xFE534D42,  # SMB2
    0x65735546,  # FUSE
    0x01021997,  # 9p
    0x5346414F,  # AFS
    0x00C36400,  # Ceph
    0x0BD00BD0,  # Lustre
}


class _Statfs(ctypes.Structure):
    _fields_ = (("f_type", ctypes.c_long), ("rest", ctypes.c_byte * 256))


class FolderWatch:
    """Watches folders, not what is below their subfolders, until ``close``."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._changed = False

    @classmethod
    def watch(cls, folders: Iterable[str]) -> FolderWatch | None:
        """Begin to watch; None where that would prove nothing, or the system refuses.

        What changed before is not seen: look at the files after this call.
        """
        libc = ctypes.CDLL(None, use_errno=True)
        fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if fd < 0:
            return None
        found = cls(fd)
        for folder in folders:
            path, seen = os.fsencode(folder), _Statfs()
            if not os.path.isdir(folder):
                continue
            if libc.statfs(path, ctypes.byref(seen)) or seen.f_type & 0xFFFFFFFF in _SHARED:
                found.close()
                return None
            if libc.inotify_add_watch(fd, path, ctypes.c_uint32(_CHANGES | _ONLYDIR)) < 0:
                found.close()
                return None
        return found

    @property
    def changed(self) -> bool:
        """Whether something was written, made, removed or renamed since the watch began."""
        if not self._changed and self._fd >= 0:
            try:
                self._changed = bool(os.read(self._fd, _READ_BYTES))
            except BlockingIOError:
                return False
        return self._changed or self._fd < 0

    def close(self) -> None:
        """Stop watching; from then on everything counts as changed. Twice is fine."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
