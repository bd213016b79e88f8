"""Start a kernel: steps that allocate, each with its undo registered before it.

    warm launch   take a clone (or restore one), bind endpoints, claim, live
    first launch  remember, prepare, start the sandbox, bind endpoints, kernel answers, live
    new sandbox   the same for a lost kernel, whose endpoints stay bound throughout
    new process   in the sandbox that lives: the guest replaces the kernel, files stay

The whole has one deadline, waiting for a turn included. If it fails, times out or is cancelled, at
whatever step, everything is undone before the error is delivered.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any, Protocol

from torpor.backends.base import Handle, Lineage
from torpor.bridge.client import BridgeRefused
from torpor.daemon.failures import guest_failure, never_its_turn, sandbox_failure, timed_out
from torpor.daemon.guest_state import GuestState, Phase
from torpor.daemon.ipc_links import choose_ports, make_links, private_endpoints
from torpor.daemon.kernel import Kernel
from torpor.daemon.logs import log
from torpor.daemon.parts import Parts
from torpor.daemon.plan import Plan, fifos, sandbox_spec
from torpor.daemon.records import KernelRow, SandboxRow
from torpor.daemon.unclaimed import Clone
from torpor.daemon.warm import OFF, Warm
from torpor.errors import (
    AtCapacity,
    BackendUnavailable,
    LaunchError,
    LaunchTimeout,
    SandboxError,
)
from torpor.lifecycle import Status, run_to_end

CLOSE_S = 30.0
_RPC_S = 10.0
_MARGIN_S = 1.5
"""How much earlier than the daemon the guest gives up: its error says more than ours."""


class NotBound(LaunchError):
    """The endpoints that the client wants cannot be had: no other sandbox would change that."""


_FINAL = (NotBound, LaunchTimeout)
"""What ends a launch: a slower way to start would not help."""


class Ask(Protocol):
    """How a guest is asked (``Steps.ask``)."""

    async def __call__(
        self, kernel: Kernel, method: str, params: Mapping[str, Any], *, timeout_s: float
    ) -> dict[str, Any]: ...


class Launcher:
    """Starts kernels, at most ``at_once`` at a time; the rest wait for their turn.

    ``watch`` is told of each sandbox as soon as it runs; ``ask`` asks a kernel's guest.
    """

    def __init__(
        self,
        parts: Parts,
        *,
        at_once: int,
        watch: Callable[[Kernel, SandboxRow, Handle], None],
        ask: Ask,
        warm: Warm | None = None,
        room: Callable[[str, int | None], None] = lambda _kernel_id, _starting: None,
    ) -> None:
        self._parts = parts
        self._warm = warm
        self._room = room
        self._starting = 0
        self._turns = asyncio.Semaphore(at_once)
        self._watch = watch
        self._ask = ask

    async def create(self, kernel: Kernel, plan: Plan) -> str:
        """Make a kernel that never was, from its row on; give how. All or nothing.

        In this order: from a waiting clone, from a golden, cold. Each that fails is undone.
        """
        ends_at = asyncio.get_running_loop().time() + plan.limit_s
        self._room(kernel.row.kernel_id, None)
        if self._warm is None:
            kernel.start_reason = OFF
            await self._create_cold(kernel, plan, ends_at)
            return "created"
        async with self._warm.pool.launching():
            how = await self._create_warm(kernel, plan, ends_at)
            if how is None:
                how = "created"
                await self._create_cold(kernel, plan, ends_at)
        self._warm.count(how)
        return how

    async def _create_warm(self, kernel: Kernel, plan: Plan, ends_at: float) -> str | None:
        assert self._warm is not None
        row = kernel.row
        nothing = SandboxRow("", row.kernel_id, self._parts.paths.kernels)
        spec = sandbox_spec(kernel, nothing, plan, plan.limit_s)
        choice = await self._warm.choose(spec)
        kernel.start_reason = choice.why
        if choice.lineage is None or choice.golden is None:
            return None
        clone = choice.clone
        if clone is not None and await self._claimed(kernel, plan, ends_at, clone, choice.lineage):
            return "claimed"
        try:
            async with self._turn(plan, ends_at, row.kernel_id):
                clone = await self._warm.pool.clone(choice.golden, choice.lineage, spec)
        except (AtCapacity, LaunchTimeout):
            raise
        except (SandboxError, OSError) as exc:
            kernel.start_reason = f"the golden could not be restored: {exc}"
            return None
        if await self._claimed(kernel, plan, ends_at, clone, choice.lineage):
            return "cloned"
        return None

    async def _claimed(
        self, kernel: Kernel, plan: Plan, ends_at: float, clone: Clone, lineage: Lineage
    ) -> bool:
        """Claim ``clone``; False when it turned out to be of no use, and is gone."""
        assert self._warm is not None
        row = kernel.row
        try:
            await self._claim(kernel, plan, ends_at, clone, lineage)
        except _FINAL:
            raise
        except SandboxError as exc:
            kernel.row, kernel.start_reason = row, f"a clone could not be claimed: {exc}"
            await self._warm.give_up(clone, exc)
            return False
        self._warm.claimed(clone)
        return True

    async def _claim(
        self, kernel: Kernel, plan: Plan, ends_at: float, clone: Clone, lineage: Lineage
    ) -> None:
        """Make ``clone`` this kernel, or destroy it."""
        parts = self._parts
        sandbox = replace(clone.row, kernel_id=kernel.row.kernel_id)
        row = replace(kernel.row, guest_key=clone.golden.manifest.guest_key)
        assert self._warm is not None
        async with self._attempt(kernel, plan, ends_at) as undo:
            undo.push_async_callback(self._free, kernel, sandbox.sandbox_id)
            undo.callback(parts.registry.drop_kernel, row.kernel_id)
            kernel.row = row
            parts.registry.put_kernel(row)
            parts.registry.put_sandbox(sandbox)
            self._warm.unclaimed.held.discard(sandbox.sandbox_id)
            kernel.guest, kernel.sandbox_end = GuestState(phase=Phase.STARTING), None
            self._watch(kernel, sandbox, clone.handle)
            undo.push_async_callback(self._unbind, kernel)
            row = await self._bind(kernel, sandbox)
            claim = parts.bridge.rpc(row.kernel_id, "claim", lineage.claim, timeout_s=_RPC_S)
            await kernel.while_it_lives(claim)
            await self._ready(kernel, plan, 1)
            row = replace(row, status=Status.LIVE, sandbox_id=sandbox.sandbox_id, reason=None)
            parts.registry.put_kernel(row)
            kernel.row = row

    async def _create_cold(self, kernel: Kernel, plan: Plan, ends_at: float) -> None:
        parts, row = self._parts, kernel.row
        turn = self._turn(plan, ends_at, row.kernel_id)
        async with turn, self._attempt(kernel, plan, ends_at) as undo:
            undo.callback(parts.registry.drop_kernel, row.kernel_id)
            parts.registry.put_kernel(row)
            undo.push_async_callback(self._unbind, kernel)
            await self._boot(kernel, plan, undo, ends_at, bind=self._bind)

    async def replace(self, kernel: Kernel, plan: Plan) -> str:
        """Give a lost kernel a new sandbox behind its old endpoints. All, or lost as before."""
        ends_at = asyncio.get_running_loop().time() + plan.limit_s
        async with self._turn(plan, ends_at), self._attempt(kernel, plan, ends_at) as undo:
            undo.push_async_callback(self._unlink, kernel)
            await self._boot(kernel, plan, undo, ends_at, bind=self._rebind)
        return "replaced"

    async def restart(self, kernel: Kernel, plan: Plan) -> str:
        """Replace the kernel process in its sandbox, which stays even if that fails."""
        ends_at = asyncio.get_running_loop().time() + plan.limit_s
        async with self._turn(plan, ends_at), self._attempt(kernel, plan, ends_at) as undo:
            make_links(kernel.row.client, kernel.row.kernel_id, self._parts.paths.client_sockets)
            undo.push_async_callback(self._stop_process, kernel)
            kernel.guest = replace(kernel.guest, phase=Phase.STARTING)
            generation = kernel.guest.generation + 1
            answer = await self._ask(
                kernel,
                "restart",
                {"start": self._start_params(kernel, plan, _left_s(ends_at))},
                timeout_s=_RPC_S,
            )
            told = answer.get("generation")
            await self._ready(kernel, plan, told if isinstance(told, int) else generation)
            self._parts.registry.put_kernel(replace(kernel.row, reason=None))
        return "restarted"

    @asynccontextmanager
    async def _turn(
        self, plan: Plan, ends_at: float, kernel_id: str | None = None
    ) -> AsyncIterator[None]:
        """Wait for a turn, first come first served, within the start timeout.

        ``kernel_id`` is that of a new kernel, for which there must be room.

        Raises:
            LaunchTimeout: it never came.
            AtCapacity: there is no room for another kernel.
        """
        if kernel_id is not None:
            self._room(kernel_id, self._starting)
        self._starting += 1
        try:
            try:
                async with asyncio.timeout_at(ends_at):
                    await self._turns.acquire()
            except TimeoutError as exc:
                raise never_its_turn(plan.name, plan.limit_s) from exc
            try:
                yield
            finally:
                self._turns.release()
        finally:
            self._starting -= 1

    @asynccontextmanager
    async def _attempt(
        self, kernel: Kernel, plan: Plan, ends_at: float
    ) -> AsyncIterator[AsyncExitStack]:
        """Bound an attempt in time, undo it if it does not succeed, say why."""
        undo = AsyncExitStack()
        try:
            async with asyncio.timeout_at(ends_at) as deadline:
                yield undo
        except BaseException as exc:
            stderr = await _finish(self._stderr(kernel), default="")
            await _finish(undo.aclose(), default=None)
            if deadline.expired() and isinstance(exc, TimeoutError):
                raise timed_out(plan.name, plan.limit_s, stderr=stderr) from exc
            if isinstance(exc, BridgeRefused):
                kind = NotBound if exc.reason == "bind" else LaunchError
                raise kind(f"the bridge refused: {exc}") from exc
            if isinstance(exc, SandboxError) or not isinstance(exc, Exception):
                raise
            raise LaunchError(f"the kernel could not be started: {exc!r}") from exc
        undo.pop_all()

    async def _boot(
        self,
        kernel: Kernel,
        plan: Plan,
        undo: AsyncExitStack,
        ends_at: float,
        *,
        bind: Callable[[Kernel, SandboxRow], Awaitable[KernelRow]],
    ) -> None:
        parts, kernel_id = self._parts, kernel.row.kernel_id
        sandbox_id = f"t{secrets.token_hex(8)}"
        sandbox = SandboxRow(sandbox_id, kernel_id, parts.paths.kernels / sandbox_id)
        undo.push_async_callback(self._free, kernel, sandbox_id)
        parts.registry.put_sandbox(sandbox)
        spec = sandbox_spec(kernel, sandbox, plan, _left_s(ends_at))
        await parts.backend.prepare(spec)
        kernel.guest, kernel.sandbox_end = GuestState(phase=Phase.STARTING), None
        # The sandbox boots while the endpoints are bound (and, at first, the bridge is started).
        handle = await parts.backend.start(spec)
        sandbox = replace(sandbox, handle=handle.to_json())
        parts.registry.put_sandbox(sandbox)
        self._watch(kernel, sandbox, handle)
        row = await bind(kernel, sandbox)
        await self._ready(kernel, plan, 1)
        row = replace(row, status=Status.LIVE, sandbox_id=sandbox_id, reason=None)
        parts.registry.put_kernel(row)
        kernel.row = row

    async def _bind(self, kernel: Kernel, sandbox: SandboxRow) -> KernelRow:
        """Bind the endpoints that the client asked for; give the row with what was bound."""
        paths, row = self._parts.paths, kernel.row
        client = choose_ports(row.client) if row.client.transport == "ipc" else row.client
        answer = await self._parts.bridge.call(
            "open",
            kernel_id=row.kernel_id,
            client=private_endpoints(client, row.kernel_id, paths.client_sockets).to_json(),
            guest_key=kernel.row.guest_key,
            resume=False,
            **fifos(sandbox.directory),
        )
        self._parts.bridge.held.add(row.kernel_id)
        kernel.row = replace(row, client=client.with_ports(answer["ports"]))
        self._parts.registry.put_kernel(kernel.row)
        make_links(kernel.row.client, row.kernel_id, paths.client_sockets)
        return kernel.row

    async def _rebind(self, kernel: Kernel, sandbox: SandboxRow) -> KernelRow:
        """Connect the bound endpoints to a new sandbox; bind them if the bridge died meanwhile."""
        row, bridge = kernel.row, self._parts.bridge
        await bridge.start()
        if row.kernel_id not in bridge.held:
            return await self._bind(kernel, sandbox)
        await bridge.call(
            "relink",
            kernel_id=row.kernel_id,
            **fifos(sandbox.directory),
        )
        make_links(row.client, row.kernel_id, self._parts.paths.client_sockets)
        return row

    async def _ready(self, kernel: Kernel, plan: Plan, generation: int) -> None:
        """Return once the kernel of ``generation`` has answered.

        Raises:
            LaunchError: it never will.
        """

        def decided() -> bool:
            state = kernel.guest
            told = state.generation >= generation and (state.ended or state.phase is Phase.READY)
            return told or kernel.sandbox_end is not None or state.link_error is not None

        await kernel.until(decided)
        if kernel.sandbox_end is not None:
            raise sandbox_failure(kernel.sandbox_end, await self._stderr(kernel))
        if kernel.guest.timed_out:
            raise timed_out(plan.name, plan.limit_s, stderr=kernel.guest.stderr_tail)
        if kernel.guest.phase is not Phase.READY or kernel.guest.link_error:
            raise guest_failure(kernel.guest, plan.request.argv)

    def _start_params(self, kernel: Kernel, plan: Plan, start_timeout_s: float) -> dict[str, Any]:
        sandbox = self._parts.registry.sandboxes[kernel.row.sandbox_id or ""]
        spec = sandbox_spec(kernel, sandbox, plan, start_timeout_s)
        return dict(self._parts.backend.start_params(spec))

    async def _stderr(self, kernel: Kernel) -> str:
        with contextlib.suppress(BridgeRefused, BackendUnavailable):
            status = await self._parts.bridge.call(
                "status", within_s=2.0, kernel_id=kernel.row.kernel_id
            )
            return str(status.get("stderr_tail") or status.get("guest_stderr") or "")
        return ""

    async def _free(self, kernel: Kernel, sandbox_id: str) -> None:
        kernel.forget_sandbox()
        await self._parts.free_sandbox(sandbox_id)

    async def _unbind(self, kernel: Kernel) -> None:
        await self._parts.free_endpoints(kernel.row)

    async def _unlink(self, kernel: Kernel) -> None:
        if kernel.row.kernel_id in self._parts.bridge.held:
            await self._parts.bridge.call("unlink", kernel_id=kernel.row.kernel_id)

    async def _stop_process(self, kernel: Kernel) -> None:
        if kernel.sandbox_alive and not kernel.guest.ended:
            await self._ask(kernel, "signal", {"signum": 9}, timeout_s=_RPC_S)


def _left_s(ends_at: float) -> float:
    return max(ends_at - asyncio.get_running_loop().time() - _MARGIN_S, 1.0)


async def _finish(coro: Any, *, default: Any) -> Any:
    """Await a clean-up to its end; its failure is logged and never replaces the first error."""
    try:
        return await run_to_end(coro, within_s=CLOSE_S, name="undo launch")
    except asyncio.CancelledError:
        return default  # the first error, a cancellation most likely, is on its way already
    except Exception as exc:
        log("undo failed", level=logging.ERROR, error=exc)
        return default
