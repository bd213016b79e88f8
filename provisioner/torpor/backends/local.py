"""Sandboxes on this machine: one runsc each, never with the host's root rights.

As real root every sandbox gets a private uid, which sees the user's files as its own through
id-mapped mounts. Otherwise the caller's own uid runs it, in a user namespace. Either way runsc
lives in a mount, pid and network namespace of its own where nothing of the host is but what the
sandbox may see, and its first process is process 1 of that pid namespace: killing it ends all of
it, and every mount goes with it.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torpor.backends import local_cgroups
from torpor.backends.base import Build, Exit, Handle, Lineage, Ready, SandboxSpec
from torpor.backends.local_begun import Begun
from torpor.backends.local_byte_code import compile_folders
from torpor.backends.local_cgroups import Cgroups, find_cgroups
from torpor.backends.local_design import Design, GuestCode, User, design, installed_guest
from torpor.backends.local_faults import machine_error
from torpor.backends.local_freezer import go_on, stop
from torpor.backends.local_layout import Layout
from torpor.backends.local_lineage import lineage, processor
from torpor.backends.local_saving import Saving, pause, prepare_saved, resume, take_back
from torpor.backends.local_slots import FIRST_UID, UIDS, UidSlots, has_every_uid
from torpor.errors import Busy, LaunchError, SandboxError, SandboxGone
from torpor.lifecycle.cleanup import run_to_end
from torpor.runsc import pidfd
from torpor.runsc.launchers import Launchers
from torpor.runsc.plan import Machine, checkpoint_argv
from torpor.runsc.saved_plan import own_places
from torpor.runsc.spawn import Spawned, run_beside
from torpor.template import GIB, MIB, WorkspaceMode

_log = logging.getLogger(__name__)

_KILL_S = 10.0
_CHECKPOINT_S = 60.0
_UNDO_S = 20.0

Step = Callable[[str], Awaitable[None]]


async def _nothing(_step: str) -> None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalBackend:
    """Sandboxes made by ``runsc`` on this machine; see the module's text.

    ``slots`` is None to run sandboxes under the caller's own uid (the only way without root).
    ``private`` are Torpor's own folders, never shown in a sandbox. ``on_step`` is awaited before
    each of ``STEPS``; tests make it fail or hang.
    """

    runsc: Path
    runsc_build: str
    guest: GuestCode
    user: User
    cgroups: Cgroups
    slots: UidSlots | None
    private: tuple[str, ...] = ()
    on_step: Step = field(default=_nothing, repr=False)
    launchers: Launchers = field(default_factory=Launchers, repr=False, compare=False)

    name = "local"
    STEPS = ("design", "folders", "fifos", "plan", "uid", "cgroups", "spawn", "record", "go")
    PREPARE_STEPS = STEPS[:4]

    async def prepare(self, spec: SandboxSpec) -> None:
        layout = Layout(spec.directory)
        made = False
        try:
            await self.on_step("design")
            if not self.runsc.is_file():
                hint = "run: torpor install-runsc"
                raise LaunchError(f"there is no runsc at {self.runsc}", hint=hint)
            designed = self._design(spec)
            await self.on_step("folders")
            made = True
            layout.make_folders()
            await self.on_step("fifos")
            layout.make_fifos()
            await self.on_step("plan")
            layout.write_plan(designed.plan)
        except FileExistsError as exc:
            raise LaunchError(f"sandbox folder {spec.directory} exists already") from exc
        except BaseException as exc:
            if made:
                layout.remove()
            if isinstance(exc, OSError) and not isinstance(exc, SandboxError):
                raise machine_error(spec.directory, exc) from exc
            raise

    def start_params(self, spec: SandboxSpec) -> dict[str, Any]:
        return self._design(spec).start

    def lineage(self, spec: SandboxSpec) -> Lineage:
        return lineage(
            spec,
            guest=self.guest,
            machine=self._machine(),
            user=self.user,
            private=self.private,
            build=self.runsc_build,
        )

    async def start(self, spec: SandboxSpec, *, when: Awaitable[object] | None = None) -> Handle:
        undo = AsyncExitStack()
        undo.push_async_callback(self._free, spec.sandbox_id, spec.directory)
        try:
            return await self._start(spec, undo, when)
        except BaseException as exc:
            await _undone(undo, exc, spec.sandbox_id)
            if isinstance(exc, OSError) and not isinstance(exc, SandboxError):
                raise machine_error(spec.directory, exc) from exc
            raise

    async def _start(
        self, spec: SandboxSpec, undo: AsyncExitStack, when: Awaitable[object] | None
    ) -> Handle:
        begun = await self._begin(spec, undo)
        if when is not None:
            await when
        await self.on_step("go")
        await begun.go()
        return begun.handle

    async def _begin(self, spec: SandboxSpec, undo: AsyncExitStack) -> Begun:
        layout = Layout(spec.directory)
        plan = layout.read_plan()
        layout.clear_logs()
        await self.on_step("uid")
        uid = self._claim_uid(spec)
        await self.on_step("cgroups")
        folders = self.cgroups.folders(spec.sandbox_id)
        layout.write_groups(folders)
        self.cgroups.make(spec.sandbox_id, spec.template)
        await self.on_step("spawn")
        spawned = Spawned(self.launchers)
        undo.push_async_callback(spawned.aclose)
        await spawned.spawn(layout.plan, (uid, uid) if self.slots else None, folders)
        await self.on_step("record")
        handle = self._handle(spec, spawned, uid, plan["workspace"])
        layout.write_record(handle)
        return Begun(handle, layout, spawned, plan)

    async def stand_ready(self, spec: SandboxSpec) -> Ready:
        undo = AsyncExitStack()
        undo.push_async_callback(self._free, spec.sandbox_id, spec.directory)
        try:
            begun = await self._begin(spec, undo)
            async with asyncio.timeout(spec.start_timeout_s):
                await begun.spawned.ready()
            return begun
        except BaseException as exc:
            await _undone(undo, exc, spec.sandbox_id)
            if isinstance(exc, TimeoutError):
                raise LaunchError(
                    f"the sandbox was not ready in {spec.start_timeout_s:g} s"
                ) from exc
            if isinstance(exc, OSError) and not isinstance(exc, SandboxError):
                raise machine_error(spec.directory, exc) from exc
            raise

    async def checkpoint(self, spec: SandboxSpec, handle: Handle) -> None:
        """Save the sandbox into ``spec.image``; whether that worked or not, it is to be destroyed then.

        The files belong to this user afterwards. If cancelled, the sandbox is of no use any more.

        Raises:
            LaunchError: it could not be saved (disk full, a state that gVisor cannot save).
        """
        assert spec.image is not None
        overlay = spec.template.workspace is WorkspaceMode.OVERLAY
        argv = checkpoint_argv(
            spec.sandbox_id, overlay_bytes=spec.template.tmp_bytes if overlay else None
        )
        try:
            await run_beside(
                self.launchers, handle.pid, self._owner(handle), argv, within_s=_CHECKPOINT_S
            )
        except TimeoutError as exc:
            raise LaunchError(f"the checkpoint took more than {_CHECKPOINT_S:g} s") from exc
        finally:
            take_back(spec.image.folder)

    async def build(self) -> Build:
        return Build(self.runsc_build, processor())

    def saving(self, handle: Handle, name: str) -> Saving:
        return Saving(self.launchers, handle, self._owner(handle), name)

    async def resume(self, handle: Handle) -> None:
        await resume(self.launchers, handle, self._owner(handle))

    async def prepare_saved(self, spec: SandboxSpec, *, ahead: bool = False) -> None:
        prepare_saved(
            spec,
            ahead=ahead,
            ours=own_places(self._machine(), self.guest.folders),
            homes=self.user.homes,
            private=self.private,
            build=self.runsc_build,
        )

    async def freeze(self, handle: Handle) -> None:
        if await stop(handle):
            return
        go_on(handle)
        paused = Layout(Path(handle.directory)).paused
        try:
            paused.touch(mode=0o600)
            await pause(self.launchers, handle, self._owner(handle))
            if not await stop(handle):
                raise Busy(f"sandbox {handle.sandbox_id} could not be stopped: it goes on")
        except BaseException as exc:
            try:
                await run_to_end(self.thaw(handle), within_s=_UNDO_S, name="thaw")
            except SandboxError as again:
                exc.add_note(f"and it could not be thawed: {again}")
            raise

    async def thaw(self, handle: Handle) -> None:
        go_on(handle)
        paused = Layout(Path(handle.directory)).paused
        if not paused.exists():
            return
        try:
            await resume(self.launchers, handle, self._owner(handle))
        except LaunchError as exc:
            raise SandboxGone(f"sandbox {handle.sandbox_id} does not go on: {exc}") from exc
        paused.unlink(missing_ok=True)

    def _owner(self, handle: Handle) -> tuple[int, int] | None:
        return (handle.uid, handle.uid) if self.slots else None

    async def exited(self, handle: Handle) -> Exit:
        code = await pidfd.ended(handle.pid, handle.pid_start)
        return Exit(_reason(handle, code))

    async def destroy(self, sandbox_id: str, directory: Path) -> None:
        await run_to_end(
            self._destroy(sandbox_id, directory), within_s=_UNDO_S, name=f"destroy {sandbox_id}"
        )

    async def aclose(self) -> None:
        await self.launchers.aclose()

    async def alive(self, handle: Handle) -> bool:
        return pidfd.start_ticks(handle.pid) == handle.pid_start

    def _machine(self) -> Machine:
        sidecars = self.runsc.parent / "gvisor-bin"
        return Machine(
            runsc=str(self.runsc),
            runsc_sidecars=str(sidecars) if sidecars.is_dir() else None,
            cpus=len(os.sched_getaffinity(0)),
            memory_is_capped="memory" in self.cgroups.controllers,
        )

    def _design(self, spec: SandboxSpec) -> Design:
        return design(
            spec,
            guest=self.guest,
            machine=self._machine(),
            user=self.user,
            private=self.private,
        )

    def _claim_uid(self, spec: SandboxSpec) -> int:
        if self.slots is None:
            return os.geteuid()
        uid = self.slots.claim(spec.sandbox_id, spec.directory)
        os.chown(Layout(spec.directory).log, uid, uid)
        if spec.image is not None and not spec.image.restore:
            os.chown(spec.image.folder, uid, uid)
        return uid

    def _handle(
        self, spec: SandboxSpec, spawned: Spawned, uid: int, workspace: Mapping[str, Any]
    ) -> Handle:
        started = pidfd.start_ticks(spawned.pid)
        if started is None:
            raise LaunchError("the sandbox's process died as soon as it was made")
        return Handle(
            backend=self.name,
            sandbox_id=spec.sandbox_id,
            pid=spawned.pid,
            pid_start=started,
            runsc=str(self.runsc),
            runsc_build=self.runsc_build,
            root=str(spec.directory / "root"),
            uid=uid,
            cgroups=self.cgroups.folders(spec.sandbox_id),
            directory=str(spec.directory),
            workspace=workspace["path"],
            workspace_mode="ro" if spawned.notes else workspace["mode"],
            workspace_reason="; ".join(spawned.notes) or workspace["reason"],
            memory_bytes=spec.template.memory_bytes,
        )

    async def _destroy(self, sandbox_id: str, directory: Path) -> None:
        await self._free(sandbox_id, directory)
        try:
            Layout(directory).remove()
        except OSError as exc:
            raise LaunchError(f"cannot remove {directory}: {exc.strerror}") from exc

    async def _free(self, sandbox_id: str, directory: Path) -> None:
        """Undo ``start``; the directory stays as ``prepare`` left it."""
        layout = Layout(directory)
        handle = layout.read_record()
        if handle and not await pidfd.kill(handle.pid, handle.pid_start, within_s=_KILL_S):
            raise LaunchError(f"sandbox process {handle.pid} does not die", hint="try again")
        stuck = await local_cgroups.remove(layout.read_groups())
        if stuck:
            raise LaunchError(f"cgroup {stuck[0]} cannot be removed", hint="try again")
        for path in (layout.record, layout.groups):
            path.unlink(missing_ok=True)
        if self.slots is not None:
            self.slots.release(directory)


async def _undone(undo: AsyncExitStack, cause: BaseException, sandbox_id: str) -> None:
    """Undo to the end; a failure of that is logged and noted on ``cause``, which stays the error."""
    try:
        await run_to_end(undo.aclose(), within_s=_UNDO_S, name=f"undo {sandbox_id}")
    except Exception as exc:
        _log.exception("sandbox %s was not undone completely", sandbox_id)
        cause.add_note(f"and undoing it failed: {exc}")


def _reason(handle: Handle, exit_code: int | None) -> str | None:
    """Say what ended a sandbox, as far as anything is left that knows."""
    if local_cgroups.oom_kills(handle.cgroups):
        return f"out of memory (limit {_size(handle.memory_bytes)})"
    words = Layout(Path(handle.directory)).last_words()
    if not words and exit_code is not None and exit_code < 0:
        return f"its process was killed by signal {-exit_code}"
    return words or None


def _size(count: int) -> str:
    unit, name = (GIB, "GiB") if count >= GIB else (MIB, "MiB")
    return f"{count / unit:.1f} {name}"


def make_local_backend(
    runsc: Path,
    runsc_build: str,
    *,
    private: tuple[Path, ...],
    home: Path,
    search_path: str,
    guest: GuestCode | None = None,
    slots_folder: Path = Path("/run/torpor/uids"),
    spare_launchers: int = 0,
) -> LocalBackend:
    """Give a backend for this process: root mode where it has the rights, else the user's own uid.

    ``private`` are Torpor's state, runtime, data and configuration folders; ``home`` and
    ``search_path`` (``PATH``) are the caller's. ``guest`` is the installed one unless given.
    ``spare_launchers`` of them wait to be needed, until ``aclose``.
    """
    full = (
        os.geteuid() == 0
        and has_every_uid(Path("/proc/self/uid_map").read_text())
        and _has_root_rights(Path("/proc/self/status").read_text())
    )
    if guest is None:
        guest = installed_guest()
        compile_folders(guest.folders.values())
    return LocalBackend(
        runsc=runsc.resolve(),
        runsc_build=runsc_build,
        guest=guest,
        user=User.current(home, search_path),
        cgroups=find_cgroups(uid=os.geteuid()),
        slots=UidSlots(slots_folder, FIRST_UID, UIDS) if full else None,
        private=tuple(str(each) for each in private),
        launchers=Launchers(spare_launchers, str(private[0]) if private else ""),
    )


_NEEDED = (0, 1, 6, 7, 18, 21)
"""CAP_CHOWN, _DAC_OVERRIDE, _SETGID, _SETUID, _SYS_CHROOT, _SYS_ADMIN."""


def _has_root_rights(status: str) -> bool:
    """Tell from ``/proc/self/status`` whether this root may mount and change its uid."""
    for line in status.splitlines():
        key, _, value = line.partition(":")
        if key == "CapEff":
            effective = int(value, 16)
            return all(effective >> each & 1 for each in _NEEDED)
    return False
