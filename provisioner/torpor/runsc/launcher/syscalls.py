"""The handful of Linux calls that Python's ``os`` lacks, each raising ``OSError`` like its own."""

from __future__ import annotations

import ctypes
import os
import struct

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18

CLONE_NEWNS = 0x00020000
CLONE_PARENT = 0x00008000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

ATTR_RDONLY = 0x1
ATTR_NOSUID = 0x2
ATTR_NODEV = 0x4
ATTR_IDMAP = 0x00100000

_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE = 1
_OPEN_TREE_CLOEXEC = os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH = 4
_MNT_DETACH = 2
_PR_SET_PDEATHSIG = 1
_PR_GET_PDEATHSIG = 2
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38

# The kernel gives calls added since 5.0 one number on every architecture.
_NR_OPEN_TREE = 428
_NR_MOVE_MOUNT = 429
_NR_CLONE3 = 435
_NR_MOUNT_SETATTR = 442
_NR_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_NR_SECCOMP = {"x86_64": 317, "aarch64": 277}

_SECCOMP_SET_MODE_FILTER = 1
_SECCOMP_FILTER_FLAG_SPEC_ALLOW = 4

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """mount(2)."""
    result = _libc.mount(
        None if source is None else os.fsencode(source),
        os.fsencode(target),
        None if kind is None else kind.encode(),
        ctypes.c_ulong(flags),
        options.encode() or None,
    )
    _checked(result, f"mount {target}")


def unmount(target: str) -> None:
    """umount2(2) with MNT_DETACH: gone from the tree at once, freed when nobody uses it."""
    _checked(_libc.umount2(os.fsencode(target), _MNT_DETACH), f"umount {target}")


def unshare(flags: int, what: str) -> None:
    """unshare(2)."""
    _checked(_libc.unshare(flags), what)


def pivot_root(new_root: str) -> None:
    """Make ``new_root`` the root of this mount namespace and drop the old one."""
    number = _NR_PIVOT_ROOT[os.uname().machine]
    os.chdir(new_root)
    _checked(_libc.syscall(number, b".", b"."), "pivot_root")
    unmount(".")
    os.chdir("/")


def clone_into_pid_namespace(*, sibling: bool) -> int:
    """Fork a child that is process 1 of a new pid namespace; 0 in the child.

    With ``sibling`` the child's parent is the caller's parent, who can then wait for it.
    """
    flags = CLONE_NEWPID | (CLONE_PARENT if sibling else 0)
    signal = 0 if sibling else 17  # a sibling inherits the exit signal
    arguments = ctypes.create_string_buffer(struct.pack("8Q", flags, 0, 0, 0, signal, 0, 0, 0))
    return _checked(_libc.syscall(_NR_CLONE3, arguments, 64), "clone3")


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def open_tree(path: str, *, recursive: bool) -> int:
    """Give a descriptor of a private copy of the mount at ``path``, attached nowhere."""
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    return _checked(
        _libc.syscall(_NR_OPEN_TREE, _AT_FDCWD, os.fsencode(path), flags), f"open_tree {path}"
    )


def mount_setattr(where: int | str, attributes: int, *, userns_fd: int = 0) -> None:
    """Set mount attributes on a tree and everything below it; all or nothing."""
    request = _MountAttr(attributes, 0, 0, userns_fd)
    fd, path = (where, b"") if isinstance(where, int) else (_AT_FDCWD, os.fsencode(where))
    flags = _AT_RECURSIVE | (_AT_EMPTY_PATH if isinstance(where, int) else 0)
    result = _libc.syscall(
        _NR_MOUNT_SETATTR, fd, path, flags, ctypes.byref(request), ctypes.sizeof(request)
    )
    _checked(result, f"mount_setattr {where}")


def move_mount(tree_fd: int, target: str) -> None:
    """Attach what ``open_tree`` gave at ``target``."""
    result = _libc.syscall(
        _NR_MOVE_MOUNT, tree_fd, b"", _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH
    )
    _checked(result, f"move_mount {target}")


def setns(fd: int, flags: int) -> None:
    """Enter the namespaces of the process that a pidfd names (Linux 5.8)."""
    _checked(_libc.setns(fd, flags), "setns")


def die_with_parent() -> None:
    """Be killed as soon as the thread that started this process ends."""
    _checked(_libc.prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0), "prctl PR_SET_PDEATHSIG")


def outlive_parent() -> bool:
    """Undo ``die_with_parent``; whether there was anything to undo."""
    was = ctypes.c_int()
    _checked(_libc.prctl(_PR_GET_PDEATHSIG, ctypes.byref(was), 0, 0, 0), "prctl PR_GET_PDEATHSIG")
    _checked(_libc.prctl(_PR_SET_PDEATHSIG, 0, 0, 0, 0), "prctl PR_SET_PDEATHSIG")
    return was.value != 0


def set_dumpable() -> None:
    """Let this process write its own ``/proc/self/uid_map`` after it changed its uid."""
    _checked(_libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0), "prctl PR_SET_DUMPABLE")


def set_no_new_privileges() -> None:
    """No program started from here on gains rights from set-uid bits or file capabilities."""
    _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl PR_SET_NO_NEW_PRIVS")


def set_seccomp_filter(program: bytes) -> None:
    """Put a classic BPF program on this process and all that it starts."""
    instructions = ctypes.create_string_buffer(program, len(program))
    request = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(instructions))
    number = _NR_SECCOMP[os.uname().machine]
    # Without the flag old kernels switch on costly mitigations that gVisor has no need of.
    flags = _SECCOMP_FILTER_FLAG_SPEC_ALLOW
    _checked(_libc.syscall(number, _SECCOMP_SET_MODE_FILTER, flags, request), "seccomp")
