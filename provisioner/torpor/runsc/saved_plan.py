"""How a running sandbox is saved, and the plan of one that is restored from what was saved. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torpor.runsc.launcher.join import CONTROL
from torpor.runsc.oci import ROOTFS
from torpor.runsc.plan import (
    ADDED_FLAGS,
    BOOT_FILE,
    BUNDLE,
    CONFIG,
    ENVIRONMENT,
    IMAGE,
    LOG,
    RUNSC_AT,
    SAVE,
    SIDECARS_AT,
    Machine,
    bind,
    runsc_flags,
)


@dataclass(frozen=True, slots=True)
class SaveArgvs:
    """What is run beside a sandbox, with ";" between commands; each is for ``spawn.Beside``."""

    pause: list[str]
    save: list[str]
    """Pauses it and saves it; it stays paused."""
    resume: list[str]
    """Has it go on. Says "in state running" when it was not paused."""


def save_argvs(argv: Sequence[str], name: str, *, direct: bool) -> SaveArgvs:
    """Give the commands for a sandbox that was started with ``argv``.

    What is saved comes into a new folder ``name`` of its save folder. ``direct``: without starting
    a runsc for it, which its build must be known to understand (`torpor.runsc.launcher.control`).
    """
    flags, sandbox_id = _flags_of(argv), argv[-1]
    pause, resume = [*flags, "pause", sandbox_id], [*flags, "resume", sandbox_id]
    folder = f"{SAVE}/{name}"
    if direct:
        save = [CONTROL, "save", sandbox_id, folder]
        return SaveArgvs(pause, save, [CONTROL, "resume", sandbox_id, *resume])
    checkpoint = ["checkpoint", "--leave-running", f"--image-path={folder}", "--compression=none"]
    return SaveArgvs(pause, [*pause, ";", *flags, *checkpoint, sandbox_id], resume)


def restored_plan(
    plan: Mapping[str, Any],
    *,
    sandbox_id: str,
    directory: str,
    image: str,
    ours: Mapping[str, str] = MappingProxyType({}),
    ahead: bool = False,
    direct: bool = False,
) -> dict[str, Any]:
    """Give the plan of a sandbox restored from ``image`` that was saved under ``plan``.

    Everything that it sees is as it was; only its own folder on the host and its id are new, and
    what is Torpor's own: ``ours`` says by place where that is on this machine. One that is
    made ``ahead`` is created at once and restored when it is told to go, and with ``direct`` as in
    ``save_argvs``.
    """
    old = str(plan["build_at"]).removesuffix("/root")
    own = {f"{old}/log": f"{directory}/log", f"{old}/save": f"{directory}/save"}
    tree = [
        {**entry, "from": ours.get(entry["at"], own.get(entry["from"], entry["from"]))}
        if entry["do"] == "bind"
        else entry
        for entry in plan["tree"]
        if entry["at"] != IMAGE
    ]
    at = next(number for number, entry in enumerate(tree) if entry["at"] == SAVE)
    tree.insert(at, bind(image, IMAGE, as_owner=True))
    flags, bundle = _flags_of(plan["argv"]), [f"--bundle={BUNDLE}", sandbox_id]
    flags += [flag for flag in ADDED_FLAGS if flag not in flags]
    restore = ["restore", *(["--detach"] if ahead else []), f"--image-path={IMAGE}", *bundle]
    return {
        **{name: value for name, value in plan.items() if name not in ("first", "restore")},
        **({"first": [*flags, "create", *bundle]} if ahead else {}),
        **({"restore": [sandbox_id, IMAGE]} if ahead and direct else {}),
        "sandbox_id": sandbox_id,
        "build_at": f"{directory}/root",
        "stdio": [f"{directory}/{name}" for name in ("to_guest", "from_guest", "guest_stderr")],
        "tree": tree,
        "argv": [*flags, *restore],
        "env": {**ENVIRONMENT, "TORPOR_SANDBOX": directory},
    }


def own_places(machine: Machine, guest: Mapping[str, str]) -> dict[str, str]:
    """Give by place in a plan's tree where runsc and the guest's code are on this machine."""
    sidecars = {SIDECARS_AT: machine.runsc_sidecars} if machine.runsc_sidecars else {}
    return {
        RUNSC_AT: machine.runsc,
        **sidecars,
        **{ROOTFS + at: folder for at, folder in guest.items()},
    }


def needed_paths(plan: Mapping[str, Any]) -> list[str]:
    """Give the paths of this machine without which ``plan`` cannot be carried out."""
    return [
        entry["from"]
        for entry in plan["tree"]
        if entry["do"] == "bind" and not entry.get("optional") and not entry.get("device")
    ]


def written_paths(plan: Mapping[str, Any]) -> set[str]:
    """Give the paths of this machine that the sandbox can write to, but its own folder's."""
    return {
        entry["from"]
        for entry in plan["tree"]
        if entry["do"] == "bind"
        and not entry["read_only"]
        and not entry.get("device")
        and entry["at"] not in (LOG, SAVE)
    }


def foreign_flags(plan: Mapping[str, Any]) -> list[str]:
    """Give what of runsc's command line is not what Torpor starts sandboxes with, or started them with."""
    program, *flags = _flags_of(plan["argv"])
    usual = runsc_flags(None)
    odd = [] if program == usual[0] else [program]
    for flag in flags:
        overlay = re.fullmatch(r"--overlay2=all:memory,size=[0-9]+", flag)
        if flag not in usual and not overlay:
            odd.append(flag)
    given = {flag.partition("=")[0] for flag in (*flags, *ADDED_FLAGS)}
    return odd + [each for each in usual[1:] if each.partition("=")[0] not in given]


def covered_places(plan: Mapping[str, Any]) -> set[str]:
    """Give the places of the sandbox that show nothing of the host: folders that are kept from it."""
    config = next(entry["text"] for entry in plan["tree"] if entry["at"] == CONFIG)
    mounts = json.loads(config)["mounts"]
    return {mount["destination"] for mount in mounts if mount["type"] == "tmpfs"}


def without_secrets(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Give ``plan`` without the guest's orders, which a restored guest has read long ago."""
    tree = [
        {**entry, "text": "{}"} if entry["at"] == ROOTFS + BOOT_FILE else entry
        for entry in plan["tree"]
    ]
    return {**plan, "tree": tree}


def _flags_of(argv: Sequence[str]) -> list[str]:
    """Give runsc's path and the flags before its command."""
    end = next(n for n, word in enumerate(argv) if n and not word.startswith("-"))
    return list(argv[:end])
