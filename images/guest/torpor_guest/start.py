"""The first steps, ordered so that a kernel starts soonest: read, harden, spawn, load the rest."""

import os
import sys

from torpor_guest.boot import Boot, BootError, parse_boot
from torpor_guest.hardening import harden
from torpor_guest.launch import Launched, launch
from torpor_guest.spawn import SpawnError

_EXIT_BAD_BOOT = 64


def main(argv: list[str]) -> None:
    """Run the guest on the boot.json that ``argv[1]`` names; the link is on descriptors 0 and 1."""
    try:
        boot = _read_boot(argv)
    except (OSError, BootError) as exc:
        print(f"torpor guest: {exc}", file=sys.stderr, flush=True)
        sys.exit(_EXIT_BAD_BOOT)
    harden(reap_orphans=os.getpid() != 1, alone_with_rights=boot.golden)
    folder = _private_folder(argv[1])
    launched: Launched | SpawnError | None = None
    if boot.start is not None:
        try:
            launched = launch(boot.start, folder, boot.key, with_line=boot.golden)
        except SpawnError as exc:
            launched = exc
    # Not before: the kernel's own start-up takes longest, and it has begun.
    from torpor_guest.app import Guest

    try:
        line_fd = launched.line_fd if isinstance(launched, Launched) else -1
        Guest(boot, folder, (0, 1), line_fd).run(boot.start, launched)
    finally:
        _remove(folder)


def _read_boot(argv: list[str]) -> Boot:
    if len(argv) != 2:
        raise BootError("usage: torpor_guest boot.json")
    with open(argv[1], encoding="utf-8") as file:
        return parse_boot(file.read())


def _private_folder(boot_path: str) -> str:
    """Name a new folder for connection files: beside boot.json, whose owner cleans up, if possible."""
    beside = os.path.dirname(os.path.abspath(boot_path))
    place = beside if os.access(beside, os.W_OK | os.X_OK) else "/tmp"
    return f"{place}/.torpor-{os.urandom(8).hex()}"


def _remove(folder: str) -> None:
    try:
        for name in os.listdir(folder):
            os.unlink(f"{folder}/{name}")
        os.rmdir(folder)
    except OSError:
        pass
