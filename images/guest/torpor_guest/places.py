"""Where a clone's folders are: the workspace is moved to the path that its owner knows.

A golden fixes where things are mounted, so every clone gets its workspace at ``WORKSPACE``; the claim
binds it to its own path inside the sandbox. For that the guest of a golden, alone, may mount; the
kernel never could (``forbid_to_children``), and the guest gives the right up with the claim.
"""

from __future__ import annotations

import ctypes
import os
import struct

WORKSPACE = "/run/torpor/workspace"

_MS_BIND, _MS_REC = 0x1000, 0x4000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV = 0x1, 0x2, 0x4
_MNT_DETACH = 2
_PR_SET_DUMPABLE = 4
_CAPABILITY_VERSION_3 = 0x20080522
_KEPT = "/tmp/.torpor-kept"

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def _bind(source: str, at: str) -> None:
    flags = ctypes.c_ulong(_MS_BIND | _MS_REC)
    _checked(_libc.mount(source.encode(), at.encode(), None, flags, None), f"mount at {at}")


def _unmount(at: str) -> None:
    _checked(_libc.umount2(at.encode(), _MNT_DETACH), f"unmount {at}")


def show_workspace(path: str, keep: list[str]) -> None:
    """Show what is at ``WORKSPACE`` at ``path``, except that ``keep`` stay what they are now.

    ``keep`` are folders below ``path``, none in another. Nobody may use them while they move.

    Raises:
        OSError: it could not be done; the sandbox is of no use any more.
    """
    os.makedirs(path, exist_ok=True)
    kept = []
    for number, folder in enumerate(keep):
        os.makedirs(f"{_KEPT}/{number}", mode=0o700)
        _bind(folder, f"{_KEPT}/{number}")
        kept.append((f"{_KEPT}/{number}", folder))
    _bind(WORKSPACE, path)
    for place, folder in kept:
        _bind(place, folder)
        _unmount(place)
        os.rmdir(place)
    if kept:
        os.rmdir(_KEPT)


def rehearse() -> None:
    """Bind and unmount something, for nobody: the memory that takes is quicker the second time.

    Raises:
        OSError: a claim could not do it either.
    """
    os.makedirs(_KEPT, mode=0o700)
    _bind(WORKSPACE, _KEPT)
    _unmount(_KEPT)
    os.rmdir(_KEPT)


def hide_fixed_place() -> None:
    """Remove the workspace from ``WORKSPACE``: what was not bound elsewhere is gone.

    gVisor's file server has it in the root file system below, too: something empty covers that.
    """
    _unmount(WORKSPACE)
    flags = ctypes.c_ulong(_MS_RDONLY | _MS_NOSUID | _MS_NODEV)
    place, options = WORKSPACE.encode(), b"mode=0555,size=4096"
    _checked(_libc.mount(b"tmpfs", place, b"tmpfs", flags, options), f"cover {WORKSPACE}")


def drop_rights() -> None:
    """Give up every capability of this process, for ever, and keep others out of it.

    Other processes of this uid could not look into one with more rights than theirs; of equals only
    one that is not dumpable keeps them out, and a restored process is dumpable again.
    """
    header = ctypes.create_string_buffer(struct.pack("Ii", _CAPABILITY_VERSION_3, 0), 8)
    nothing = ctypes.create_string_buffer(24)
    _checked(_libc.capset(header, nothing), "capset")
    _checked(_libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "prctl PR_SET_DUMPABLE")
