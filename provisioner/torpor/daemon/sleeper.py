"""Puts kernels to sleep and wakes them: frozen they keep their memory, hibernated only a snapshot.

Every step can be the last of this daemon. What the registry says decides: until the row is ``ASLEEP``
the sandbox is the kernel, and a later daemon lets it go on (``settle``); from then on the snapshot is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from torpor.backends.base import Handle, Saving
from torpor.bridge.client import BridgeRefused
from torpor.daemon.ahead import Ahead, Templates
from torpor.daemon.guest_state import Phase
from torpor.daemon.holding import Still, held
from torpor.daemon.kernel import Kernel
from torpor.daemon.logs import about, log
from torpor.daemon.parts import Parts
from torpor.daemon.records import KernelRow
from torpor.daemon.transfers import Transfer
from torpor.daemon.waking import NotTakenUp, Waking, Watch, notice
from torpor.errors import (
    BackendUnavailable,
    Busy,
    ConfigError,
    LaunchError,
    SandboxError,
    SandboxGone,
    SnapshotUnusable,
)
from torpor.golden.disk import size_bytes_of
from torpor.lifecycle import Status, Target, run_to_end
from torpor.lifecycle.idle import Tier
from torpor.snapshot.build import Snapshot
from torpor.template import Template

_UNDO_S = 40.0


class Sleeper:
    """All ways of a kernel between its tiers. What takes its lock says so."""

    def __init__(
        self, parts: Parts, *, watch: Watch, templates: Templates, at_once: int, ahead: Ahead
    ) -> None:
        self._parts = parts
        self._templates = templates
        self._ahead = ahead
        self._waking = Waking(parts, watch, ahead)
        self._saves = asyncio.Semaphore(at_once + 1)
        self._wakes = asyncio.Semaphore(at_once)
        """Turns of their own: few wait for a save, of several GiB it takes a while, and a wake is wanted now."""

    async def aclose(self) -> None:
        """Leave what can wait to the next daemon. Twice is fine."""
        await self._waking.aclose()

    @property
    def has_turn(self) -> bool:
        """Whether a kernel would be saved at once. One that waits for its turn is held, and cannot be woken."""
        return not self._saves.locked()

    # -- deeper, under the kernel's lock -------------------------------------------------------

    async def hibernate(self, kernel: Kernel) -> None:
        """Put a kernel to sleep; one that sleeps is fine. If it fails, the kernel goes on.

        Raises:
            Busy: a cell runs, an input is open, …: it cannot sleep now, and why.
            SandboxGone: it has no sandbox.
            NoRoom, LaunchError, BackendUnavailable: it could not be saved.
        """
        async with kernel.lock:
            await self.hibernate_locked(kernel)

    async def hibernate_locked(self, kernel: Kernel) -> None:
        """Do the same for a caller that holds the kernel's lock."""
        if kernel.row.status is Status.ASLEEP:
            return
        handle, started = self._handle(kernel), time.monotonic()
        try:
            async with (
                self._saves,
                self._saving(handle) as saving,
                self._standing_still(kernel, handle, "hibernating") as still,
            ):
                await self._save(kernel, handle, saving, still)
        finally:  # also when the caller leaves just after the last write
            if kernel.tier is Tier.ASLEEP:
                await run_to_end(self._let_go(kernel), within_s=_UNDO_S, name="let go")
        self._parts.stores.news.set()
        log(
            "hibernated",
            generation=kernel.row.generation,
            seconds=round(time.monotonic() - started, 3),
        )
        kernel.notify()
        self._ahead.wanted(kernel)

    async def checkpoint(self, kernel: Kernel, name: str) -> Snapshot:
        """Save a kernel under a name and let it go on; one that sleeps is woken first.

        Raises:
            SnapshotUnusable: the name cannot be used, or is taken.
            others: as ``hibernate`` and ``wake``.
        """
        async with kernel.lock:
            await self._require_free(kernel.row.kernel_id, name)
            await self.wake_locked(kernel)
            return await self._checkpoint(kernel, name)

    async def _checkpoint(self, kernel: Kernel, name: str) -> Snapshot:
        handle = self._handle(kernel)
        async with (
            self._saves,
            self._saving(handle) as saving,
            self._standing_still(kernel, handle, "saving") as still,
        ):
            snapshot = await self._published(kernel, handle, saving, still, name)
            await run_to_end(self._resume(kernel, handle), within_s=_UNDO_S, name="resume")
            self._put(kernel, generation=snapshot.manifest.generation)
        await run_to_end(self._go_on(kernel, handle), within_s=_UNDO_S, name="go on")
        log("checkpoint", name=name, generation=snapshot.manifest.generation)
        self._parts.stores.news.set()
        return snapshot

    @asynccontextmanager
    async def snapshot_of(self, kernel: Kernel) -> AsyncIterator[Snapshot]:
        """Give a snapshot of a kernel as it is, which cannot go while the context lasts.

        Of one that sleeps it is the one it has; another one is made for this and removed again.
        Raises as ``hibernate`` and as ``Stores.at_hand``.
        """
        snapshots, kernel_id = self._parts.snapshots, kernel.row.kernel_id
        async with kernel.lock:
            if kernel.row.status is Status.ASLEEP:
                at_hand = self._parts.stores.at_hand(kernel_id, kernel.row.generation, keep=False)
                async with at_hand as snapshot:
                    yield snapshot
                return
            snapshot = await self._checkpoint(kernel, "")
            passing = (kernel_id, snapshot.manifest.generation)
            self._parts.stores.passing.add(passing)
        try:
            with snapshots.held(snapshot):
                yield snapshot
        finally:
            try:
                if kernel.row.status is Status.LIVE:
                    await run_to_end(
                        snapshots.drop(kernel_id, snapshot.manifest.generation),
                        within_s=_UNDO_S,
                        name="drop",
                    )
            finally:
                self._parts.stores.passing.discard(passing)

    async def roll_back(self, kernel: Kernel, which: int | str) -> None:
        """Have a kernel be as it was in one of its snapshots. If that fails it sleeps, as it was.

        What it is now becomes a snapshot first, which stays until it hibernates the next time.

        Raises:
            SnapshotUnusable: there is no such snapshot, or it cannot be used.
            others: as ``hibernate``, ``wake`` and ``Stores.at_hand``.
        """
        at_hand = self._parts.stores.at_hand(kernel.row.kernel_id, which)
        async with kernel.lock, at_hand as target:
            await self.hibernate_locked(kernel)
            present = kernel.row
            try:
                await self._become(kernel, target.manifest.generation, target.manifest.memory)
                await self._wake(kernel)
            except BaseException:
                if kernel.row.status is Status.ASLEEP:
                    undo = self._as_it_was(kernel, present)
                    await run_to_end(undo, within_s=_UNDO_S, name="as it was")
                raise
            log("rolled back", generation=target.manifest.generation, name=target.manifest.name)

    async def _become(self, kernel: Kernel, generation: int, memory: Mapping[str, Any]) -> None:
        self._put(kernel, generation=generation, paused=True)
        await self._told_which(kernel, memory)

    async def _told_which(self, kernel: Kernel, memory: Mapping[str, Any]) -> None:
        """Have the bridge take up a sleeping kernel as it was in the snapshot that the row names."""
        await self._tell("sleep", kernel, memory=dict(memory))
        with contextlib.suppress(BackendUnavailable):  # disk full: a later daemon tells it again
            self._put(kernel, paused=False)

    async def _as_it_was(self, kernel: Kernel, present: KernelRow) -> None:
        memory = await self._parts.snapshots.memory(present)
        await self._become(kernel, present.generation, memory)

    async def freeze(self, kernel: Kernel) -> None:
        """Stop the processes of a kernel; one that sleeps is fine. Raises as ``hibernate``."""
        async with kernel.lock:
            if kernel.row.status is Status.ASLEEP or kernel.frozen:
                return
            handle = self._handle(kernel)
            async with self._standing_still(kernel, handle, ""):
                await self._parts.backend.freeze(handle)
                kernel.frozen = True
                self._put(kernel, tier_since=time.time())
            log("frozen")
            kernel.notify()

    # -- back ----------------------------------------------------------------------------------

    async def wake(self, kernel: Kernel) -> None:
        """Bring a kernel back from whatever sleep; one that is awake is fine.

        Raises:
            SandboxError: why not, readable; it sleeps on, and clients that wait are told as well.
        """
        async with kernel.lock:
            await self.wake_locked(kernel)

    async def wake_locked(self, kernel: Kernel) -> None:
        """Do the same for a caller that holds the kernel's lock."""
        if kernel.row.status is Status.LIVE and kernel.frozen:
            going_on = self._go_on(kernel, self._handle(kernel))
            await run_to_end(going_on, within_s=_UNDO_S, name="go on")
            self._put(kernel, tier_since=time.time())
            log("thawed")
        elif kernel.row.status is Status.ASLEEP:
            if kernel.row.target is Target.ABSENT:  # it would only be waited for
                raise SandboxGone(f"kernel {kernel.row.kernel_id} is being removed")
            await self._wake(kernel)
        kernel.notify()

    async def _wake(self, kernel: Kernel) -> None:
        started, slept_s = time.monotonic(), time.time() - kernel.row.tier_since
        told = partial(_fetching, kernel, asyncio.get_running_loop())
        at_hand = self._parts.stores.at_hand(kernel.row.kernel_id, kernel.row.generation, told=told)
        kernel.moving = "waking"
        kernel.notify()
        try:
            async with at_hand as snapshot:  # a store may hang: that takes nobody's turn
                kernel.moving = "waking"
                kernel.notify()
                async with self._wakes:
                    await self._waking.wake(kernel, snapshot, await self._template(kernel))
        except BaseException as exc:
            if kernel.row.status is Status.LIVE:  # it is awake: only its caller has left
                raise
            why = str(exc) if isinstance(exc, SandboxError) else repr(exc)
            left = isinstance(exc, asyncio.CancelledError)
            log("not woken", level=logging.INFO if left else logging.ERROR, error=exc)
            kernel.outlook = ""
            reason = None if left else f"the kernel could not be woken: {why}"
            undo = self._waking.undo(kernel, reason, released=isinstance(exc, NotTakenUp))
            await run_to_end(undo, within_s=_UNDO_S, name="sleep on")
            raise
        finally:
            kernel.moving = ""
            kernel.notify()
        log(
            "woken",
            generation=kernel.row.generation,
            seconds=round(time.monotonic() - started, 3),
            slept_s=round(slept_s, 1),
            lost=list(kernel.row.lost),
        )
        self._parts.stores.news.set()

    # -- after a crash -------------------------------------------------------------------------

    async def settle(self, kernel: Kernel) -> None:
        """Finish what a daemon that died had begun: let it go on, or let it sleep."""
        row = kernel.row
        with about(row.kernel_id):
            async with kernel.lock:
                if kernel.row.status is Status.LIVE and kernel.sandbox_alive:
                    handle = self._handle(kernel, any_state=True)
                    await self._parts.backend.thaw(handle)
                    if row.paused:
                        await self._resume(kernel, handle)
                    await self._go_on(kernel, handle)
                elif kernel.row.status is Status.ASLEEP:
                    memory = await self._parts.snapshots.memory(kernel.row)
                    await self._told_which(kernel, memory)

    # -- inner ---------------------------------------------------------------------------------

    def _handle(self, kernel: Kernel, *, any_state: bool = False) -> Handle:
        sandbox = self._parts.registry.sandboxes.get(kernel.row.sandbox_id or "")
        if kernel.row.status is not Status.LIVE or not kernel.sandbox_alive or sandbox is None:
            raise SandboxGone(f"kernel {kernel.row.kernel_id} has no sandbox")
        if not any_state and (kernel.launching or kernel.guest.phase is not Phase.READY):
            raise Busy(f"kernel {kernel.row.kernel_id} is not ready: it is {kernel.state}")
        return Handle.from_json(sandbox.handle or {})

    async def _template(self, kernel: Kernel) -> Template | None:
        try:
            return await self._templates(kernel.row.template)
        except ConfigError:
            return None

    @asynccontextmanager
    async def _standing_still(
        self, kernel: Kernel, handle: Handle, moving: str
    ) -> AsyncIterator[Still]:
        """Have the kernel stand still; if the block fails, it goes on as if nothing had been."""
        kernel_id = kernel.row.kernel_id
        kernel.moving = moving
        try:
            if kernel.frozen:  # held already; runsc cannot save what does not run
                await self._parts.backend.thaw(handle)
            self._put(kernel, paused=True)
            still = await held(self._parts.bridge, kernel_id, handle.workspace)
            kernel.notify()
            yield still
        except BaseException as exc:
            if not isinstance(exc, Busy):
                log("not put to sleep", level=logging.WARNING, error=exc)
            await run_to_end(self._go_on(kernel, handle), within_s=_UNDO_S, name="go on")
            raise
        finally:
            kernel.moving = ""
            kernel.notify()

    def _saving(self, handle: Handle) -> AbstractAsyncContextManager[Saving]:
        return self._parts.backend.saving(handle, f"g{secrets.token_hex(4)}")

    async def _save(self, kernel: Kernel, handle: Handle, saving: Saving, still: Still) -> None:
        """Up to the one write that makes the snapshot the kernel."""
        snapshot = await self._published(kernel, handle, saving, still)
        try:
            self._put(
                kernel,
                status=Status.ASLEEP,
                generation=snapshot.manifest.generation,
                sandbox_id=None,
                reason=None,
                paused=False,
                tier_since=time.time(),
            )
        except BaseException:
            await run_to_end(self._resume(kernel, handle), within_s=_UNDO_S, name="resume")
            raise
        kernel.frozen = False
        kernel.forget_sandbox()

    async def _published(
        self,
        kernel: Kernel,
        handle: Handle,
        saving: Saving,
        still: Still,
        name: str = "",
    ) -> Snapshot:
        """Give a new snapshot of a kernel that stands still; its sandbox is paused then.

        If it fails the sandbox goes on.
        """
        parts, row = self._parts, kernel.row
        template = await self._template(kernel)
        if template is None:
            raise ConfigError(f"there is no template {row.template!r} any more")
        told = still.told
        mapped = [each for each in _listed(told.get("files")) if isinstance(each, str)]
        build = await parts.backend.build()
        saved = await saving.save()
        try:
            await parts.stores.make_room(size_bytes_of(saved.folder))
            return await parts.snapshots.publish(
                row,
                saved,
                handle=handle,
                template=template,
                build=build,
                memory=still.memory,
                mapped=mapped,
                opened=_listed(told.get("open")),
                peers=_listed(told.get("peers")),
                kernel_generation=kernel.guest.generation,
                name=name,
            )
        except BaseException:
            await run_to_end(self._resume(kernel, handle), within_s=_UNDO_S, name="resume")
            raise

    async def _let_go(self, kernel: Kernel) -> None:
        """Close the link and free the sandbox. What fails here the sweep and ``next_step`` finish.

        That it sleeps outlives a loss of power when this returns. The sandbox need not wait for
        that: no sandbox outlives one either way.
        """
        await asyncio.gather(
            self._tell("sleep", kernel),
            self._synced(),
            self._parts.free_sandboxes_of(kernel.row.kernel_id),
        )

    async def _synced(self) -> None:
        try:
            await asyncio.to_thread(self._parts.registry.sync)
        except OSError as exc:  # the row is there, but for a loss of power just now
            log("registry not synced", level=logging.WARNING, error=exc)

    async def _resume(self, kernel: Kernel, handle: Handle) -> None:
        """Let a sandbox go on that was paused by a save; one for which that fails is given up."""
        try:
            await self._parts.backend.resume(handle)
        except (SandboxGone, LaunchError) as exc:
            if await self._parts.backend.alive(handle):
                log("sandbox does not go on", level=logging.ERROR, error=exc)
                kernel.sandbox_ended(f"it could not be let go on: {exc}")

    async def _go_on(self, kernel: Kernel, handle: Handle) -> None:
        """Let a sandbox that may be frozen go on, and its messages flow."""
        try:
            await self._parts.backend.thaw(handle)
        except SandboxGone as exc:
            if await self._parts.backend.alive(handle):
                log("sandbox does not go on", level=logging.ERROR, error=exc)
                kernel.sandbox_ended(f"it could not be let go on: {exc}")
        kernel.frozen = False
        if kernel.row.status is Status.LIVE:
            try:
                self._put(kernel, paused=False)
            except BackendUnavailable as exc:  # disk full; a later daemon lets it go on once more
                log("not written", level=logging.WARNING, error=exc)
        await self._tell("release", kernel, notice=notice(kernel.row))

    async def _require_free(self, kernel_id: str, name: str) -> None:
        await self._parts.snapshots.require_free(kernel_id, name)
        if self._parts.stores.has_name(kernel_id, name):
            raise SnapshotUnusable(f"kernel {kernel_id} has a checkpoint {name!r} in the store")

    def _put(self, kernel: Kernel, **changes: Any) -> None:
        row = replace(kernel.row, **changes)
        row = replace(row, highest=max(row.highest, row.generation))
        self._parts.registry.put_kernel(row)
        kernel.row = row

    async def _tell(self, op: str, kernel: Kernel, **more: Any) -> None:
        if kernel.row.kernel_id not in self._parts.bridge.held:
            return
        try:
            await self._parts.bridge.call(op, kernel_id=kernel.row.kernel_id, **more)
        except (BridgeRefused, BackendUnavailable) as exc:
            log("bridge not told", level=logging.WARNING, error=exc, op=op)


def _fetching(kernel: Kernel, loop: asyncio.AbstractEventLoop, transfer: Transfer) -> None:
    """Say how far a fetch is; called from the thread that fetches, which may outlive the fetch."""

    def say() -> None:
        if not transfer.ended.is_set():
            kernel.moving = "fetching"
            kernel.outlook = f"asleep: its snapshot is fetched, {transfer.percent} %"

    with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
        loop.call_soon_threadsafe(say)


def _listed(said: object) -> list[Any]:
    """Give what a guest said where a list is expected."""
    return said if isinstance(said, list) else []
