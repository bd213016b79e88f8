"""How a running sandbox is saved, and the plan of one that is restored from what was saved. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torpor.runsc.oci import ROOTFS
from torpor.runsc.plan import BOOT_FILE, BUNDLE, IMAGE, SAVE, bind


def save_argvs(argv: Sequence[str], name: str) -> tuple[list[str], list[str], list[str]]:
    """Give the commands that pause a sandbox, save it while it stays paused, and let it go on.

    ``argv`` is what it was started with; the files come into a new folder ``name`` of its save folder.
    """
    flags, sandbox_id = _flags_of(argv), argv[-1]
    save = ["checkpoint", "--leave-running", f"--image-path={SAVE}/{name}", "--compression=none"]
    return (
        [*flags, "pause", sandbox_id],
        [*flags, *save, sandbox_id],
        [*flags, "resume", sandbox_id],
    )


def restored_plan(
    plan: Mapping[str, Any], *, sandbox_id: str, directory: str, image: str, ahead: bool = False
) -> dict[str, Any]:
    """Give the plan of a sandbox restored from ``image`` that was saved under ``plan``.

    Everything that it sees is as it was; only its own folder on the host and its id are new. One
    that is made ``ahead`` is created at once and restored when it is told to go.
    """
    old = str(plan["build_at"]).removesuffix("/root")
    own = {f"{old}/log": f"{directory}/log", f"{old}/save": f"{directory}/save"}
    tree = [
        {**entry, "from": own.get(entry["from"], entry["from"])} if entry["do"] == "bind" else entry
        for entry in plan["tree"]
        if entry["at"] != IMAGE
    ]
    at = next(number for number, entry in enumerate(tree) if entry["at"] == SAVE)
    tree.insert(at, bind(image, IMAGE, as_owner=True))
    flags, bundle = _flags_of(plan["argv"]), [f"--bundle={BUNDLE}", sandbox_id]
    restore = ["restore", *(["--detach"] if ahead else []), f"--image-path={IMAGE}", *bundle]
    return {
        **{name: value for name, value in plan.items() if name != "first"},
        **({"first": [*flags, "create", *bundle]} if ahead else {}),
        "sandbox_id": sandbox_id,
        "build_at": f"{directory}/root",
        "stdio": [f"{directory}/{name}" for name in ("to_guest", "from_guest", "guest_stderr")],
        "tree": tree,
        "argv": [*flags, *restore],
        "env": {**plan["env"], "TORPOR_SANDBOX": directory},
    }


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
