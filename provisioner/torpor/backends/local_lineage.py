"""What of a sandbox a golden fixes, and what a clone can still become.

Everything that a restored gVisor cannot change, or that a running program has read already, is part
of the key: a golden is used for exactly the sandboxes that would have looked like it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from torpor._version import __version__
from torpor.backends.base import Image, Lineage, NotClonable, SandboxSpec
from torpor.backends.local_design import GuestCode, Survey, User, design, start_params, survey
from torpor.python_prefix import within
from torpor.runsc.etc import HOME
from torpor.runsc.plan import WORKSPACE_AT, Machine
from torpor.template import Template, WorkspaceMode

_VERSION = 1
_NOWHERE = Path("/golden")
_LAUNCHER = "ipykernel_launcher"
_PLAIN = "TORPOR_PLAIN_IPYKERNEL"
_BOUND = "PYTHONPATH"
"""Its folders are in every golden, also those that lie in a workspace."""


def lineage(
    spec: SandboxSpec,
    *,
    guest: GuestCode,
    machine: Machine,
    user: User,
    private: tuple[str, ...],
    build: str,
) -> Lineage:
    """Work out the lineage of ``spec``; ``build`` names the runsc build.

    Raises:
        NotClonable, ConfigError: as ``Backend.lineage``.
    """
    _check_hook(spec)
    seen = survey(spec, guest=guest, user=user, private=private)
    if seen.granted.mount and seen.granted.mount.hidden:
        raise NotClonable("the workspace holds folders of Torpor itself")
    if seen.granted.mount and within(seen.granted.mount.path, WORKSPACE_AT):
        raise NotClonable(f"{WORKSPACE_AT} is where clones have their workspace first")
    if why := _reads_workspace(spec, seen):
        raise NotClonable(f"the kernel may read from its workspace when it starts ({why})")
    start = start_params(spec, seen)
    golden = _golden_spec(spec, seen)
    golden_start = start_params(golden, survey(golden, guest=guest, user=user, private=private))
    assert golden.image is not None
    fixed = {
        "version": (_VERSION, __version__),
        "plan": _plan(golden, guest, machine, user, private),
        "start": golden_start,
        "runsc": (build, _stamp(machine.runsc)),
        "processor": processor(),
        "guest": [_code_stamp(folder) for folder in guest.folders.values()],
        "warm_up": spec.template.warm_up,
        "claim_code": spec.template.claim_code,
    }
    mount = seen.granted.mount
    env = {
        name: value
        for name, value in start["env"].items()
        if golden_start["env"].get(name) != value
    }
    return Lineage(
        key=hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest(),
        golden=golden,
        read_only=golden.image.read_only,
        workspace=mount.path if mount else None,
        asked=_asked(spec, seen),
        mode=seen.granted.mode.value,
        claim={
            "env": env,
            "unset": [name for name in golden_start["env"] if name not in start["env"]],
            "cwd": start["cwd"],
            "workspace": {"path": mount.path, "keep": _kept(seen)} if mount else None,
            "code": _claim_code(spec.template, env, start["cwd"]),
            "start": start,
        },
        watched=seen.environment.live,
        processor=processor(),
    )


def _check_hook(spec: SandboxSpec) -> None:
    plain = _PLAIN in spec.env or _PLAIN in spec.template.env
    at = spec.argv.index(_LAUNCHER) if _LAUNCHER in spec.argv else 0
    if (plain or not at or spec.argv[at - 1] != "-m") and not spec.template.claim_code:
        raise NotClonable("this kernel has no claim hook (claim_code of the template)")


def _golden_spec(spec: SandboxSpec, seen: Survey) -> SandboxSpec:
    """Give ``spec`` without anything that belongs to one kernel only."""
    at_start = {
        name: value
        for name, value in spec.env.items()
        if any(fnmatchcase(name, pattern) for pattern in spec.template.env_at_start)
    }
    read_only = seen.granted.mode is WorkspaceMode.READ_ONLY
    return replace(
        spec,
        sandbox_id="golden",
        argv=(seen.environment.executable, *spec.argv[1:]),
        env=at_start,
        cwd=HOME,
        workspace=None,
        key="",
        directory=_NOWHERE,
        start_timeout_s=spec.template.start_timeout_s,
        image=Image(_NOWHERE / "image", restore=False, read_only=read_only),
    )


def _reads_workspace(spec: SandboxSpec, seen: Survey) -> str | None:
    """Give what of a request names something in the workspace, which no golden has when it starts."""
    if not seen.granted.mount:
        return None
    folders = [
        seen.granted.mount.path,
        *([os.path.abspath(spec.workspace)] if spec.workspace else []),
    ]
    said = {f"argument {each!r}": each for each in spec.argv[1:]}
    said |= {
        name: value
        for name, value in spec.env.items()
        if name != _BOUND and any(fnmatchcase(name, each) for each in spec.template.env_at_start)
    }
    for what, text in said.items():
        for folder in folders:
            _, found, rest = text.partition(folder)
            if found and rest[:1] in ("", "/", ":", "'", '"', ",", " "):
                return what
    return None


def _plan(
    golden: SandboxSpec,
    guest: GuestCode,
    machine: Machine,
    user: User,
    private: tuple[str, ...],
) -> Any:
    plan = design(golden, guest=guest, machine=machine, user=user, private=private).plan
    return {name: plan[name] for name in ("argv", "tree", "env")}


def _asked(spec: SandboxSpec, seen: Survey) -> str:
    """Give the link by which the workspace was asked for, which a clone's files have as well."""
    path = os.path.abspath(spec.workspace) if spec.workspace else ""
    return path if path in seen.folders.links else ""


def _kept(seen: Survey) -> list[str]:
    """Give what stays read-only inside the workspace: environments that lie in it."""
    assert seen.granted.mount is not None
    path = seen.granted.mount.path
    return [each for each in seen.folders.prefixes if within(each, path) and each != path]


def _claim_code(template: Template, env: Mapping[str, str], cwd: str) -> str | None:
    if not template.claim_code:
        return None
    return template.claim_code.replace("{claim}", json.dumps({"env": dict(env), "cwd": cwd}))


@functools.cache
def processor() -> tuple[str, ...]:
    """Give the processor's features: a checkpoint is of no use on one that has fewer."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, text = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return tuple(sorted(text.split()))
    return (os.uname().machine,)


def _code_stamp(folder: str) -> list[tuple[str, Any]]:
    return [(path, _stamp(path)) for path in sorted(_sources(folder))]


def _sources(folder: str) -> Iterable[str]:
    return (entry.path for entry in os.scandir(folder) if entry.name.endswith(".py"))


def _stamp(path: str) -> tuple[int, ...]:
    seen = os.stat(path)
    return (seen.st_mtime_ns, seen.st_size, seen.st_ino)
