"""The daemon's side of the bridge: started when needed, adopted when it runs, replaced if dead."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

from torpor.bridge.client import BridgeClient, BridgeRefused
from torpor.bridge.spawn import ensure_bridge
from torpor.daemon.logs import log
from torpor.daemon.tasks import Tasks
from torpor.errors import BackendUnavailable
from torpor.paths import Paths

CALL_TIMEOUT_S = 20.0
_LONGEST_PAUSE_S = 5.0
_FAREWELL_S = 2.0


class BridgeKeeper:
    """One connection to the one bridge.

    ``on_event`` gets what it tells; ``on_return`` is called when a lost bridge is there again.

    ``starter`` is how the bridge may start the next daemon (``bridge.protocol``).
    ``held`` names the kernels whose endpoints the connected bridge holds.
    """

    def __init__(
        self,
        paths: Paths,
        *,
        on_event: Callable[[str, Mapping[str, Any]], None],
        on_return: Callable[[], None],
        starter: Mapping[str, Any] | None = None,
    ) -> None:
        self._paths = paths
        self._starter = starter
        self._on_event = on_event
        self._on_return = on_return
        self._tasks = Tasks()
        self._connecting = asyncio.Lock()
        self._client: BridgeClient | None = None
        self._finding: asyncio.Task[Any] | None = None
        self._closing = False
        self.held: set[str] = set()
        self.seen: Mapping[str, Any] | None = None
        """What the connected bridge said in ``hello``; None while there is none."""

    async def start(self) -> None:
        """Be connected, starting a bridge if none runs. Raises BackendUnavailable."""
        await self._connected()

    async def call(
        self, op: str, *, within_s: float = CALL_TIMEOUT_S, **params: Any
    ) -> dict[str, Any]:
        """Give the bridge's answer.

        Raises:
            BridgeRefused: the bridge refused; nothing was changed.
            BackendUnavailable: no bridge, or no answer in ``within_s``.
        """
        client = await self._connected()
        try:
            async with asyncio.timeout(within_s):
                return await client.call(op, **params)
        except TimeoutError as exc:
            raise BackendUnavailable(f"the bridge did not answer {op!r} in {within_s:g} s") from exc

    async def rpc(
        self, kernel_id: str, method: str, params: Mapping[str, Any], *, timeout_s: float
    ) -> dict[str, Any]:
        """Ask a kernel's guest. Raises as ``call``; one that does not answer is a BridgeRefused."""
        return await self.call(
            "rpc",
            within_s=timeout_s + 2.0,
            kernel_id=kernel_id,
            method=method,
            params=dict(params),
            timeout_s=timeout_s,
        )

    async def _connected(self) -> BridgeClient:
        async with self._connecting:
            if self._client is not None and not self._client.connected:
                self._lose(self._client)
            if self._client is None:
                client = await ensure_bridge(self._paths)
                try:
                    hello = await client.call("hello", starter=self._starter)
                except BaseException:
                    await client.aclose()
                    raise
                self._client, self.seen = client, hello
                self.held = set(hello.get("kernels", ()))
                log("bridge connected", pid=hello.get("pid"), kernels=len(self.held))
                self._tasks.start(self._listen(client), name="bridge events")
            return self._client

    async def _listen(self, client: BridgeClient) -> None:
        try:
            async for event in client.events():
                kernel_id = event.get("kernel_id")
                if isinstance(kernel_id, str):
                    self._on_event(kernel_id, event)
        finally:
            self._lose(client)
            await client.aclose()

    def _lose(self, client: BridgeClient) -> None:
        """Take note that this connection is no more. Twice is fine."""
        if self._client is not client:
            return
        self._client, self.seen = None, None
        held, self.held = self.held, set()
        log("bridge lost", level=logging.WARNING, kernels=len(held))
        if held and not self._closing:
            self.find()

    def find(self) -> None:
        """Connect in the background, however long it takes, then call ``on_return``."""
        if self._finding is None or self._finding.done():
            self._finding = self._tasks.start(self._find(), name="bridge recovery")

    async def _find(self) -> None:
        pause_s = 0.1
        while True:
            try:
                await self._connected()
            except BackendUnavailable as exc:
                log("bridge not back yet", level=logging.WARNING, error=exc)
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
            else:
                self._on_return()
                return

    async def aclose(self, *, stop: bool, on_purpose: bool = False) -> None:
        """Let go of the bridge; with ``stop`` end it, unless it holds kernels. Twice is fine.

        ``on_purpose``: it starts no daemon until the next one has come by itself.
        """
        self._closing = True
        if self._finding is not None and stop:
            # One that is just coming up would otherwise wait half a minute for somebody to talk to.
            await asyncio.wait({self._finding}, timeout=_LONGEST_PAUSE_S)
        client = self._client
        if client is not None and stop:
            with contextlib.suppress(BridgeRefused, BackendUnavailable, TimeoutError):
                async with asyncio.timeout(CALL_TIMEOUT_S):
                    await client.call("shutdown")
        elif client is not None and on_purpose:
            with contextlib.suppress(BridgeRefused, BackendUnavailable, TimeoutError):
                async with asyncio.timeout(_FAREWELL_S):
                    await client.call("hello", starter=None)
        await self._tasks.aclose()
