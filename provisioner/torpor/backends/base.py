"""What every place where sandboxes live promises to the daemon."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torpor.errors import SandboxError, SandboxGone
from torpor.template import Template

HANDLE_VERSION = 1

TO_GUEST = "to_guest"
FROM_GUEST = "from_guest"
GUEST_STDERR = "guest_stderr"


@dataclass(frozen=True, slots=True)
class Image:
    """The folder of a checkpoint: the sandbox is to be restored from it, or saved into it."""

    folder: Path
    restore: bool
    read_only: bool = False
    """How the workspace is mounted in every clone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSpec:
    """Everything a backend needs to make one sandbox.

    ``env`` is the kernel's whole explicit environment; the backend adds what the sandbox fixes
    (``HOME``,
    ``PATH`` and the like) below it. ``cwd`` counts when the sandbox can see it, else the private
    home does. ``directory`` is the sandbox's private folder on the host, made and removed by the
    backend; in it are the link's FIFOs ``to_guest``, ``from_guest`` and ``guest_stderr``.
    """

    sandbox_id: str
    template: Template
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    cwd: str
    workspace: Path | None
    key: str = field(repr=False)
    directory: Path
    kernel_name: str
    start_timeout_s: float
    image: Image | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """Which golden serves a sandbox, and what a clone of it needs to become that sandbox.

    ``key`` is a digest of all that a golden fixes: programs, environment, limits, mounts, runsc,
    processor. ``golden`` is what to build it from; the builder sets id, directory, key and image.
    ``workspace``, ``asked`` (the path that leads there, where that is another) and ``mode`` are what
    every clone is restored with. ``claim`` holds the parameters
    of the guest's ``claim``: ``env``, ``unset``, ``cwd``, ``workspace``, ``code``, ``start``.
    ``watched`` are the host folders that packages are installed into.
    """

    key: str
    golden: SandboxSpec
    read_only: bool
    workspace: str | None
    asked: str
    mode: str
    claim: Mapping[str, Any] = field(repr=False)
    watched: tuple[str, ...]
    processor: tuple[str, ...] = ()
    """Features of the processor, which a machine that restores must have, too."""


class NotClonable(SandboxError):
    """No golden can serve this sandbox: it is started cold. The message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Handle:
    """All that is needed to find a running sandbox again after the daemon was replaced.

    ``pid`` is the sandbox's first process on the host, ``pid_start`` its start in clock ticks
    since boot (field 22 of ``/proc/PID/stat``): together they name a process for ever.
    ``workspace_mode`` is what the sandbox really got and ``workspace_reason`` why that is not what
    the template says ("" if it is).
    """

    backend: str
    sandbox_id: str
    pid: int
    pid_start: int
    runsc: str
    runsc_build: str
    root: str
    uid: int
    cgroups: tuple[str, ...]
    directory: str
    workspace: str | None
    workspace_mode: str
    workspace_reason: str = ""
    memory_bytes: int = 0
    version: int = HANDLE_VERSION

    def to_json(self) -> dict[str, Any]:
        """Give a JSON object with every field under its own name."""
        return asdict(self)

    @classmethod
    def from_json(cls, shape: Mapping[str, Any]) -> Handle:
        """Rebuild what ``to_json`` gave.

        Raises:
            SandboxGone: the shape is of another version or damaged; the sandbox cannot be adopted.
        """
        version = shape.get("version") if isinstance(shape, Mapping) else None
        if version != HANDLE_VERSION:
            raise SandboxGone(f"sandbox record has version {version!r}, not {HANDLE_VERSION}")
        try:
            return cls(**{**shape, "cgroups": tuple(shape["cgroups"])})
        except (TypeError, KeyError) as exc:
            raise SandboxGone(f"sandbox record is damaged: {exc}") from exc


@dataclass(frozen=True, slots=True)
class Exit:
    """The end of a sandbox; ``reason`` says in words what ended it, None when it simply ended."""

    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Build:
    """What restores a snapshot: the build of the runtime and the processor's features."""

    runtime: str
    processor: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Saved:
    """A sandbox that was saved: everything in ``folder`` belongs to it.

    ``plan_digest`` is of how it was made; ``shown`` are the host's folders that it sees read-only,
    under their own paths.
    """

    folder: Path
    plan_digest: str
    shown: tuple[str, ...]


class Saving(Protocol):
    """What ``Backend.saving`` gives."""

    async def save(self) -> Saved:
        """Save the sandbox into a new folder, which is the caller's; it stays paused. Once.

        If it fails or is cancelled the sandbox goes on and nothing is left.

        Raises:
            LaunchError: it could not be saved (disk full, a state that cannot be saved).
        """


class Ready(Protocol):
    """A sandbox made ahead of need: all of it is there but the memory of its kernel.

    ``destroy`` removes it like any other, after ``aclose``.
    """

    @property
    def handle(self) -> Handle:
        """As ``start`` would give it."""

    async def go(self) -> None:
        """Have it restored; returns as soon as that has begun. Once. Raises LaunchError."""

    async def aclose(self) -> None:
        """Let go of it. It ends, unless ``go`` was called. Twice is fine."""


class Backend(Protocol):
    """Makes, watches and removes sandboxes; a new instance can do all that an old one could."""

    name: str

    async def prepare(self, spec: SandboxSpec) -> None:
        """Make ``spec.directory`` with FIFOs and all files of the sandbox; nothing runs yet.

        On failure or cancel nothing is left.

        Raises:
            ConfigError: the request cannot work (argv[0] missing, workspace unreadable).
            LaunchError: this machine cannot do it now (disk full).
        """

    def start_params(self, spec: SandboxSpec) -> Mapping[str, Any]:
        """Give the guest's StartParams for ``spec``: a new process in a sandbox that runs already.

        Reads the host's files, changes nothing.

        Raises:
            ConfigError: the request cannot work (argv[0] missing, workspace unreadable).
        """

    def lineage(self, spec: SandboxSpec) -> Lineage:
        """Give what golden could serve ``spec``. Reads the host's files, changes nothing.

        Raises:
            NotClonable: none; the sandbox has to be started cold.
            ConfigError: the request cannot work at all.
        """

    async def checkpoint(self, spec: SandboxSpec, handle: Handle) -> None:
        """Save a sandbox into ``spec.image``; whether that worked or not, it is to be destroyed then.

        Raises:
            LaunchError: it could not be saved; what is in the folder is of no use.
        """

    async def build(self) -> Build:
        """Give what a snapshot must match to be restored here. Raises LaunchError, ConfigError."""

    def saving(self, handle: Handle, name: str) -> AbstractAsyncContextManager[Saving]:
        """Get ready to save a running sandbox, as long as the context lasts.

        Entering it changes nothing about the sandbox and saves time later. ``name``: of a folder.

        Raises:
            LaunchError: this machine refused.
        """

    async def resume(self, handle: Handle) -> None:
        """Let a sandbox that was saved go on; one that runs is fine. Raises LaunchError."""

    async def freeze(self, handle: Handle) -> None:
        """Stop everything in a sandbox where it is; its memory stays. Twice is fine.

        Raises:
            SandboxGone: it has ended.
            Busy: it does not stop, and goes on.
            LaunchError: this machine refused; it goes on.
        """

    async def thaw(self, handle: Handle) -> None:
        """Let a frozen sandbox go on; one that runs is fine.

        Raises:
            SandboxGone: it has ended, or will not go on.
        """

    async def prepare_saved(self, spec: SandboxSpec, *, ahead: bool = False) -> None:
        """Do as ``prepare`` for a sandbox that ``start`` restores from a saved one, ``spec.image``.

        One that is made ``ahead`` is for ``stand_ready``. Of ``spec`` only id, directory, template
        and image count.

        Raises:
            LaunchError: this machine cannot do it now, or what was saved is damaged.
        """

    async def stand_ready(self, spec: SandboxSpec) -> Ready:
        """Start a sandbox prepared ahead of need, up to where its kernel's memory is restored.

        It ends with this process. ``start_timeout_s`` counts, too. On failure or cancel it is as
        after a failed ``start``.

        Raises:
            LaunchError: this machine refused, or it was not ready in time.
        """

    async def start(self, spec: SandboxSpec, *, when: Awaitable[object] | None = None) -> Handle:
        """Start a prepared sandbox; returns as soon as its process exists, the guest not yet
        booted.

        ``when`` is awaited when it could begin to run, and before it does: what it raises is raised.

        On failure or cancel no process, mount, cgroup or uid is left; the directory is, as
        prepared.

        Raises:
            LaunchError: this machine refused (no user namespaces, no memory, runsc missing).
        """

    async def exited(self, handle: Handle) -> Exit:
        """Return when the sandbox's process is gone; at once if it is already. Twice is fine."""

    async def destroy(self, sandbox_id: str, directory: Path) -> None:
        """Remove every trace of the sandbox, whatever state it is in, running included.

        Needs no memory of it, so a new daemon can clean up after a dead one. Repeating it is fine.
        If cancelled, finishes first.

        Raises:
            LaunchError: something would not go away; call it again.
        """

    async def aclose(self) -> None:
        """Let go of what it keeps ready for later. Sandboxes go on. Twice is fine."""

    async def alive(self, handle: Handle) -> bool:
        """Tell whether exactly that process still runs (not a zombie, not a reused pid)."""
