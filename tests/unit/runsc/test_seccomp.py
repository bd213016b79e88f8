"""The launcher's system call filter, run by an interpreter of the kernel's little language."""

from __future__ import annotations

import struct

import pytest
from torpor.runsc.launcher.seccomp import no_set_id_filter

X86, ARM = 0xC000003E, 0xC00000B7
ALLOW, EPERM, ENOSYS = 0x7FFF0000, 0x00050001, 0x00050026
SET_ID = (0o4755, 0o2755, 0o6000)


def _run(program: bytes, architecture: int, number: int, *arguments: int) -> int:
    filled = (*arguments, *(0,) * (6 - len(arguments)))
    memory = struct.pack("IIQ6Q", number, architecture, 0, *filled)
    instructions = list(struct.iter_unpack("HBBI", program))
    accumulator, at = 0, 0
    while True:
        code, if_true, if_false, value = instructions[at]
        at += 1
        if code == 0x06:
            return int(value)
        if code == 0x20:
            (accumulator,) = struct.unpack_from("I", memory, value)
        else:
            tests = {
                0x15: accumulator == value,
                0x35: accumulator >= value,
                0x45: bool(accumulator & value),
            }
            at += if_true if tests[code] else if_false


@pytest.mark.parametrize(
    ("machine", "architecture", "calls"),
    [
        (
            "x86_64",
            X86,
            {90: 1, 91: 1, 83: 1, 133: 1, 85: 1, 268: 2, 452: 2, 258: 2, 259: 2, 2: 2, 257: 3},
        ),
        ("aarch64", ARM, {52: 1, 53: 2, 452: 2, 34: 2, 33: 2, 56: 3}),
    ],
)
def test_set_id_modes_are_refused_and_all_else_is_not(
    machine: str, architecture: int, calls: dict[int, int]
) -> None:
    program = no_set_id_filter(machine)
    for number, position in calls.items():
        for mode in (*SET_ID, 0o644, 0o1777, 0):
            arguments = [0o7777 if index != position else mode for index in range(4)]
            expected = EPERM if mode & 0o6000 else ALLOW
            assert _run(program, architecture, number, *arguments) == expected, (number, mode)
    for number in set(range(470)) - set(calls):
        assert _run(program, architecture, number, *[0o7777] * 4) == ALLOW


def test_other_instruction_sets_are_refused() -> None:
    program = no_set_id_filter("x86_64")
    assert _run(program, 0x40000003, 15, 0, 0o4755) == ENOSYS  # i386 chmod
    assert _run(program, X86, 0x40000000 | 90, 0, 0o4755) == ENOSYS  # x32 chmod


def test_unknown_machines_are_said() -> None:
    with pytest.raises(OSError, match="riscv64"):
        no_set_id_filter("riscv64")
