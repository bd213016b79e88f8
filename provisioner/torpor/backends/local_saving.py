"""Save a running sandbox, let it go on, and make one again from what was saved.

The saved folder holds what runsc wrote and ``shape.json``, the plan that the sandbox was started with
(without secrets): what is restored must see exactly what the saved one saw.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torpor.backends.base import Handle, SandboxSpec, Saved
from torpor.backends.local_faults import machine_error
from torpor.backends.local_layout import Layout
from torpor.backends.local_outflow import Outflow
from torpor.backends.local_workspace import grant_workspace
from torpor.errors import LaunchError, SandboxError
from torpor.lifecycle.cleanup import run_to_end
from torpor.runsc.launchers import Launchers
from torpor.runsc.oci import ROOTFS
from torpor.runsc.plan import is_folder_mount
from torpor.runsc.saved_plan import (
    SaveArgvs,
    covered_places,
    foreign_flags,
    needed_paths,
    restored_plan,
    save_argvs,
    written_paths,
)
from torpor.runsc.spawn import Beside, run_beside
from torpor.runsc.version import speaks_control
from torpor.template import WorkspaceMode

SHAPE = "shape.json"
_PAGES = "pages.img"
"""By far the largest file that runsc writes: the memory itself."""
_SAVE_S = 600.0
_RESUME_S = 10.0
_UNDO_S = 20.0

Owner = tuple[int, int] | None


class Saving:
    """One save of one sandbox; see ``Backend.saving``."""

    def __init__(self, launchers: Launchers, handle: Handle, owner: Owner, name: str) -> None:
        self._launchers = launchers
        self._handle = handle
        self._owner = owner
        self._layout = Layout(Path(handle.directory))
        self._folder = self._layout.save / name
        try:
            self._shape = self._layout.read_shape()
            argv = _argvs(self._shape, handle, name).save
        except (OSError, ValueError, KeyError, TypeError, StopIteration) as exc:
            raise LaunchError(f"the sandbox's own record is damaged: {exc!r}") from exc
        self._beside = Beside(launchers, handle.pid, owner, argv)
        self._outflow = Outflow(self._folder / _PAGES)

    async def __aenter__(self) -> Saving:
        self._beside.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._beside.aclose()

    async def save(self) -> Saved:
        """Save it, and leave it paused. Raises as ``Backend.saving`` says."""
        try:
            return await self._save()
        except BaseException as exc:
            await _undone(self._launchers, self._handle, self._owner, self._folder, exc)
            if isinstance(exc, TimeoutError):
                raise LaunchError(f"saving took more than {_SAVE_S:g} s") from exc
            if isinstance(exc, OSError) and not isinstance(exc, SandboxError):
                raise machine_error(self._folder, exc) from exc
            raise

    async def _save(self) -> Saved:
        if self._owner:
            os.chown(self._layout.save, *self._owner)
        try:
            with self._outflow:
                await self._beside.run(within_s=_SAVE_S)
        finally:
            if self._owner:
                os.chown(self._layout.save, 0, 0)
        take_back(self._folder)
        text = json.dumps(self._shape).encode()
        (self._folder / SHAPE).write_bytes(text)
        (self._folder / SHAPE).chmod(0o600)
        return Saved(self._folder, hashlib.sha256(text).hexdigest(), _shown(self._shape))


def _argvs(shape: Mapping[str, Any], handle: Handle, name: str = "") -> SaveArgvs:
    return save_argvs(shape["argv"], name, direct=speaks_control(handle.runsc_build))


async def pause(launchers: Launchers, handle: Handle, owner: Owner) -> None:
    """Have runsc stop everything that the sandbox computes. Raises LaunchError; then it goes on."""
    try:
        shape = Layout(Path(handle.directory)).read_shape()
        argv = _argvs(shape, handle).pause
        await run_beside(launchers, handle.pid, owner, argv, within_s=_RESUME_S)
    except TimeoutError as exc:
        raise LaunchError(f"the sandbox was not paused within {_RESUME_S:g} s") from exc
    except (OSError, ValueError, KeyError) as exc:
        raise LaunchError(f"the sandbox cannot be paused: {exc!r}") from exc


async def resume(launchers: Launchers, handle: Handle, owner: Owner) -> None:
    """Do as ``Backend.resume``."""
    try:
        shape = Layout(Path(handle.directory)).read_shape()
        argv = _argvs(shape, handle).resume
        await run_beside(launchers, handle.pid, owner, argv, within_s=_RESUME_S)
    except LaunchError as exc:
        # One that was made ahead and restored without runsc has only been created, as far as that knows.
        if not any(f"in state {state}" in exc.message for state in ("running", "created")):
            raise
    except TimeoutError as exc:
        raise LaunchError(f"the sandbox did not go on within {_RESUME_S:g} s") from exc
    except (OSError, ValueError, KeyError) as exc:
        raise LaunchError(f"the sandbox cannot be told to go on: {exc!r}") from exc


def prepare_saved(
    spec: SandboxSpec,
    *,
    ahead: bool = False,
    ours: Mapping[str, str],
    homes: Sequence[str],
    private: Sequence[str],
    build: str = "",
) -> None:
    """Do as ``Backend.prepare_saved``, for what was saved here or on another machine.

    ``ours``: where runsc and the guest's code are here. ``homes`` and ``private``: as in
    ``grant_workspace``. ``build``: which runsc that is.
    """
    assert spec.image is not None
    layout = Layout(spec.directory)
    try:
        shape = json.loads((spec.image.folder / SHAPE).read_bytes())
        plan = restored_plan(
            shape,
            sandbox_id=spec.sandbox_id,
            directory=str(spec.directory),
            image=str(spec.image.folder),
            ahead=ahead,
            direct=speaks_control(build),
            ours=ours,
        )
        layout.make_folders()
        _require_here(plan, homes, private)
        layout.make_fifos()
        layout.write_plan(plan)
    except BaseException as exc:
        layout.remove()
        if isinstance(exc, SandboxError):
            raise
        if isinstance(exc, OSError):
            raise machine_error(spec.directory, exc) from exc
        if isinstance(exc, (ValueError, KeyError, TypeError, StopIteration)):
            raise LaunchError(f"the saved sandbox's shape is damaged: {exc!r}") from exc
        raise


def _require_here(plan: Mapping[str, Any], homes: Sequence[str], private: Sequence[str]) -> None:
    """Raise LaunchError unless this machine can and may show what the saved sandbox saw."""
    if odd := foreign_flags(plan):
        raise LaunchError(
            f"its sandbox ran with other flags of runsc: {' '.join(odd):.200}",
            hint="restore it with the Torpor that made it; if that was this one, drop it: "
            "somebody has changed it",
        )
    missing = [path for path in needed_paths(plan) if not os.path.exists(path)]
    if missing:
        raise LaunchError(
            f"its sandbox saw {missing[0]}, which is not on this machine",
            hint="put it there, or restore the snapshot where it was made",
        )
    shown, mode = plan["workspace"]["path"], WorkspaceMode(plan["workspace"]["mode"])
    writable = written_paths(plan) - ({shown} if mode is WorkspaceMode.READ_WRITE else set())
    if writable:
        raise LaunchError(
            f"its sandbox could write to {min(writable)}, which none of this machine may",
            hint="drop the snapshot: somebody has changed it",
        )
    if shown is None:
        return
    granted = grant_workspace(mode, Path(shown), homes=homes, prefixes=(), private=private)
    if granted.mount is None or granted.mode is not mode:
        raise LaunchError(f"its workspace cannot be shown here: {granted.reason}")
    bare = set(granted.mount.hidden) - covered_places(plan)
    if bare:
        raise LaunchError(
            f"its workspace {shown} has Torpor's own folder {min(bare)} in it here, which the "
            "saved sandbox would see",
            hint="set TORPOR_HOME to a folder outside the workspace",
        )


def take_back(folder: Path) -> None:
    """Make what a sandbox's uid has written ours alone."""
    with suppress(FileNotFoundError):  # somebody has removed it meanwhile
        for path in (folder, *folder.iterdir()):
            os.chown(path, os.geteuid(), os.getegid(), follow_symlinks=False)
            if not path.is_symlink():
                path.chmod(0o700 if path is folder else 0o600)


def _shown(shape: Mapping[str, Any]) -> tuple[str, ...]:
    """Give the folders of the host that are in the sandbox read-only, under their own paths."""
    return tuple(
        entry["from"]
        for entry in shape["tree"]
        if entry["do"] == "bind"
        and entry["read_only"]
        and (entry["at"] == ROOTFS + entry["from"] or is_folder_mount(entry["at"]))
    )


async def _undone(
    launchers: Launchers, handle: Handle, owner: Owner, folder: Path, cause: BaseException
) -> None:
    """Let the sandbox go on and remove what was written; a failure of that is noted on ``cause``."""
    try:
        await run_to_end(resume(launchers, handle, owner), within_s=_UNDO_S, name="resume")
    except Exception as exc:
        cause.add_note(f"and it could not be resumed: {exc}")
    shutil.rmtree(folder, ignore_errors=True)
