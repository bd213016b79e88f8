"""Turns a request into a launch plan for this machine: what is bound, granted and run."""

from __future__ import annotations

import importlib.util
import os
import pwd
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torpor
from torpor.backends.base import SandboxSpec
from torpor.backends.local_workspace import Granted, grant_workspace
from torpor.environment import SYSTEM_FOLDERS, Environment, find_environment
from torpor.errors import ConfigError
from torpor.python_prefix import within
from torpor.runsc.etc import HOME, USER
from torpor.runsc.oci import GuestProcess
from torpor.runsc.plan import (
    BOOT_FILE,
    GUEST_FOLDER,
    LINK_FOLDER,
    HostFolders,
    ImageFolder,
    Machine,
    launch_plan,
)

BOOT_VERSION = 1
STDERR_TAIL_BYTES = 8192
BUFFER_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class GuestCode:
    """Process 1 of a sandbox: its ``argv``, and by place the host ``folders`` it needs."""

    argv: tuple[str, ...]
    folders: Mapping[str, str] = field(default_factory=dict)


def installed_guest() -> GuestCode:
    """Give the guest that is installed beside this package, run by this very Python."""
    spec = importlib.util.find_spec("torpor_guest")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("torpor_guest is not installed", hint="reinstall: pip install torpor")
    folders = {
        GUEST_FOLDER: str(Path(spec.submodule_search_locations[0])),
        LINK_FOLDER: str(Path(torpor.__path__[0]) / "link"),
    }
    return GuestCode((sys.executable, "-I", "-S", "-B", GUEST_FOLDER, BOOT_FILE), folders)


@dataclass(frozen=True, slots=True)
class User:
    """Whom the sandboxes belong to, and whose homes are never shown."""

    home: str
    homes: tuple[str, ...]
    search_path: str

    @classmethod
    def current(cls, home: Path, search_path: str) -> User:
        """Look up the homes of this machine's people; system accounts have theirs elsewhere."""
        homes = {each.pw_dir for each in pwd.getpwall() if _is_home(each.pw_dir)}
        return cls(str(home), tuple(sorted(homes | {str(home)})), search_path)


def _is_home(path: str) -> bool:
    system = ("/usr", "/bin", "/sbin", "/dev", "/proc", "/var", "/run", "/etc", "/nonexistent")
    return path.startswith("/") and path != "/" and not any(within(path, each) for each in system)


@dataclass(frozen=True, slots=True)
class Design:
    """The plan for the launcher, and how the guest starts the kernel.

    ``plan["workspace"]`` holds path, mode and reason of what was granted, for the Handle.
    """

    plan: dict[str, Any]
    start: dict[str, Any]


def design(
    spec: SandboxSpec, *, guest: GuestCode, machine: Machine, user: User, private: tuple[str, ...]
) -> Design:
    """Work out everything about a sandbox. Reads the host's files, changes nothing.

    Raises:
        ConfigError: argv[0] is missing or cannot be shown, or the workspace cannot be read.
    """
    seen = survey(spec, guest=guest, user=user, private=private)
    start = start_params(spec, seen)
    restored = spec.image is not None and spec.image.restore
    granted = seen.granted
    plan = launch_plan(
        sandbox_id=spec.sandbox_id,
        directory=str(spec.directory),
        template=spec.template,
        machine=machine,
        folders=seen.folders,
        workspace=granted.mount,
        process=GuestProcess(argv=guest.argv, env=_guest_env()),
        boot={} if restored else _boot(spec, start),  # the guest of a checkpoint has read its own
        image=_image(spec),
    )
    plan["workspace"] = {
        "path": granted.mount.path if granted.mount else None,
        "mode": granted.mode.value,
        "reason": granted.reason,
    }
    return Design(plan, start)


@dataclass(frozen=True, slots=True)
class Survey:
    """What of the host a sandbox would see."""

    environment: Environment
    granted: Granted
    folders: HostFolders


def survey(spec: SandboxSpec, *, guest: GuestCode, user: User, private: tuple[str, ...]) -> Survey:
    """Look at the host for ``spec``. Raises as ``design``."""
    environment = find_environment(
        spec.argv,
        guest.argv[0],
        homes=user.homes,
        home=user.home,
        search_path=spec.env.get("PATH", user.search_path),
        python_path=spec.env.get("PYTHONPATH", ""),
    )
    # The host runs this code too: no workspace may make it writable.
    own_code = tuple(
        str(Path(each).resolve()) for each in (*torpor.__path__, *guest.folders.values())
    )
    granted = grant_workspace(
        spec.template.workspace,
        spec.workspace,
        homes=user.homes,
        prefixes=environment.prefixes,
        private=private,
    )
    return Survey(environment, granted, _folders(spec, environment, granted, guest, own_code))


def _image(spec: SandboxSpec) -> ImageFolder | None:
    if spec.image is None:
        return None
    return ImageFolder(
        path=str(spec.image.folder), restore=spec.image.restore, read_only=spec.image.read_only
    )


def _folders(
    spec: SandboxSpec,
    environment: Environment,
    granted: Granted,
    guest: GuestCode,
    own_code: tuple[str, ...],
) -> HostFolders:
    system = tuple(
        each for each in SYSTEM_FOLDERS if os.path.isdir(each) and not os.path.islink(each)
    )
    links = {each: os.readlink(each) for each in SYSTEM_FOLDERS if os.path.islink(each)}
    prefixes = list(environment.prefixes)
    for each in spec.template.read_only:
        if not os.path.isdir(each):
            raise ConfigError(f"template {spec.template.name!r}: folder {each} does not exist")
    for each in (*spec.template.read_only, *own_code):
        inside = granted.mount is not None and within(each, granted.mount.path)
        wanted = each in spec.template.read_only or inside
        if wanted and not any(within(each, other) for other in (*system, *prefixes)):
            prefixes = [other for other in prefixes if not within(other, each)]
            prefixes.append(each)
    if granted.mount and spec.workspace:
        asked = os.path.abspath(spec.workspace)
        if asked != granted.mount.path and not any(within(asked, each) for each in system):
            links[asked] = granted.mount.path
    return HostFolders(
        system=system,
        links=links,
        prefixes=tuple(prefixes),
        sources=environment.sources,
        live=environment.live,
        guest=guest.folders,
    )


def _guest_env() -> dict[str, str]:
    return {"HOME": HOME, "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}


def start_params(spec: SandboxSpec, seen: Survey) -> dict[str, Any]:
    """Give the guest's StartParams: the kernel's program, its whole environment, its folder."""
    environment, granted, folders = seen.environment, seen.granted, seen.folders
    env = {
        "HOME": HOME,
        "USER": USER,
        "LOGNAME": USER,
        "SHELL": "/bin/sh",
        "LANG": "C.UTF-8",
        "PATH": ":".join(environment.path),
        **environment.env,
        **spec.template.env,
        **spec.env,
    }
    shown = (*folders.prefixes, *folders.sources)
    asked = os.path.realpath(spec.cwd)
    if granted.mount and within(asked, granted.mount.path):
        cwd = asked
    elif any(within(spec.cwd, each) for each in shown):
        cwd = spec.cwd
    else:
        cwd = HOME
    return {
        "argv": [environment.executable, *spec.argv[1:]],
        "env": env,
        "cwd": cwd,
        "start_timeout_s": spec.start_timeout_s,
        "kernel_name": spec.kernel_name,
    }


def _boot(spec: SandboxSpec, start: Mapping[str, Any]) -> dict[str, Any]:
    """Give the guest's ``boot.json``: what to start as soon as it runs."""
    return {
        "version": BOOT_VERSION,
        "key": spec.key,
        "start": start,
        "stderr_tail_bytes": STDERR_TAIL_BYTES,
        "buffer_bytes": BUFFER_BYTES,
        "golden": spec.image is not None,
    }
