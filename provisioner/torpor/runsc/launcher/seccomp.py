"""A system call filter without which a sandbox could leave set-uid programs in the workspace.

The sandbox writes the user's files as their owner. A file of root's with the set-uid bit would be a
way to root for every other account of the host, so no process of the sandbox may give a file that
bit, or set-gid: chmod, mkdir, mknod and open say "Operation not permitted". (openat2 hides its mode
from filters; runsc uses it for its own files only, with a mode of its own.)

The filter is a classic BPF program, made here so that nothing need be installed for it.
"""

from __future__ import annotations

import os
import struct

from torpor.runsc.launcher.syscalls import set_seccomp_filter

_SET_ID_BITS = 0o6000
_EPERM, _ENOSYS = 1, 38

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT = 0x40000000

# Numbers of the calls whose mode is argument 1, 2, 3 (counted from 0).
_CALLS = {
    "x86_64": ((90, 91, 83, 133, 85), (268, 452, 258, 259, 2), (257,)),
    "aarch64": ((52,), (53, 452, 34, 33), (56,)),
}

_LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_JUMP_IF_EQUAL = 0x15
_JUMP_IF_NOT_LESS = 0x35
_JUMP_IF_ANY_BIT = 0x45
_RETURN = 0x06
_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16


def no_set_id_filter(machine: str) -> bytes:
    """Give the program for ``os.uname().machine``. Pure.

    Raises:
        OSError: gVisor does not run on that machine.
    """
    if machine not in _CALLS:
        raise OSError(_ENOSYS, f"no system call filter for {machine}")
    program = [
        _instruction(_LOAD, _ARCHITECTURE_AT),
        _instruction(_JUMP_IF_EQUAL, _ARCHITECTURES[machine], 1, 0),
        _instruction(_RETURN, _ERRNO | _ENOSYS),
        _instruction(_LOAD, _NUMBER_AT),
    ]
    if machine == "x86_64":
        program += [
            _instruction(_JUMP_IF_NOT_LESS, _X32_BIT, 0, 1),
            _instruction(_RETURN, _ERRNO | _ENOSYS),
        ]
    for argument, numbers in enumerate(_CALLS[machine], start=1):
        check = [
            _instruction(_LOAD, _ARGUMENTS_AT + 8 * argument),
            _instruction(_JUMP_IF_ANY_BIT, _SET_ID_BITS, 0, 1),
            _instruction(_RETURN, _ERRNO | _EPERM),
            _instruction(_RETURN, _ALLOW),
        ]
        for index, number in enumerate(numbers):
            left = len(numbers) - index - 1
            # A match jumps over the numbers left to the check; the last one, missed, over the check.
            missed = len(check) if left == 0 else 0
            program.append(_instruction(_JUMP_IF_EQUAL, number, left, missed))
        program += check
    program.append(_instruction(_RETURN, _ALLOW))
    return b"".join(program)


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)


def forbid_set_id_files() -> None:
    """Put the filter on this process and all it starts; needs no-new-privileges. For ever."""
    set_seccomp_filter(no_set_id_filter(os.uname().machine))
