"""The daemon's way to speak with the bridge: asyncio, over its Unix socket (``protocol``)."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from torpor.bridge.protocol import MAX_LINE_BYTES
from torpor.errors import BackendUnavailable, SandboxError

ANSWER_TIMEOUT_S = 30.0
RPC_SLACK_S = 5.0  # the bridge itself ends these after their timeout
BOUNDED = {"rpc": "timeout_s", "hold": "timeout_s", "wake": "timeout_s", "release": "prove_s"}
QUEUED_EVENTS = 10_000


class BridgeRefused(SandboxError):
    """The bridge said no; ``reason`` is its code (``bind``, ``busy``, ``link``, …) or the guest's."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class BridgeClient:
    """One connection. Calls may overlap; when it breaks, all of them and ``events`` end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._events: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue(QUEUED_EVENTS)
        self._lost = False
        self._task = asyncio.create_task(self._read(), name="bridge connection")

    @classmethod
    async def connect(cls, path: Path) -> BridgeClient:
        """Connect to the bridge that listens at ``path``.

        Raises:
            BackendUnavailable: nobody listens there.
        """
        try:
            reader, writer = await asyncio.open_unix_connection(str(path), limit=2 * MAX_LINE_BYTES)
        except OSError as exc:
            raise BackendUnavailable(
                f"the bridge does not answer at {path}: {exc.strerror or exc}",
                hint="it is started with the daemon; see its log with: torpor logs",
            ) from exc
        return cls(reader, writer)

    @property
    def connected(self) -> bool:
        """Whether the bridge was still there when last heard of."""
        return not self._lost

    async def call(self, op: str, **params: Any) -> dict[str, Any]:
        """Give the result of one operation.

        After a cancel the operation may still take place; its answer is dropped.

        Raises:
            BridgeRefused: the bridge, or the guest behind it, said no.
            BackendUnavailable: the connection broke, or no answer came in time.
        """
        if self._lost:
            raise BackendUnavailable("the connection to the bridge is lost")
        ident = next(self._ids)
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[ident] = future
        timeout_s = ANSWER_TIMEOUT_S
        if op in BOUNDED:
            timeout_s = float(params.get(BOUNDED[op]) or ANSWER_TIMEOUT_S) + RPC_SLACK_S
        try:
            async with asyncio.timeout(timeout_s):
                request = {**params, "id": ident, "op": op}
                self._writer.write(json.dumps(request).encode() + b"\n")
                await self._writer.drain()
                answer = await future
        except TimeoutError as exc:
            raise BackendUnavailable(
                f"the bridge did not answer {op!r} in {timeout_s:g} s"
            ) from exc
        except OSError as exc:
            self._lost = (
                True  # writing tells of it before the reader does; who asks again must know
            )
            raise BackendUnavailable("the connection to the bridge is lost") from exc
        finally:
            self._waiting.pop(ident, None)
        if answer.get("ok") is True:
            result = answer.get("result")
            return result if isinstance(result, dict) else {}
        error = answer.get("error") or {}
        raise BridgeRefused(str(error.get("code")), str(error.get("message")))

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Give what the bridge reports, from connecting on, until the connection ends."""
        while (event := await self._events.get()) is not None:
            yield event
        self._events.put_nowait(None)  # for whoever asks next

    async def aclose(self) -> None:
        """Hang up; idempotent. The bridge and its kernels go on."""
        self._task.cancel()
        self._writer.close()
        await asyncio.wait({self._task})
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def _read(self) -> None:
        try:
            while line := await self._reader.readline():
                self._dispatch(json.loads(line))
        except (OSError, ValueError):
            pass  # a broken line is a broken connection
        finally:
            self._lost = True
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(BackendUnavailable("the connection to the bridge is lost"))
            if self._events.full():
                self._events.get_nowait()
            self._events.put_nowait(None)

    def _dispatch(self, body: dict[str, Any]) -> None:
        if "event" in body:
            if self._events.full():
                self._events.get_nowait()  # nobody listens; ``status`` tells what was missed
            self._events.put_nowait(body)
            return
        future = self._waiting.get(body["id"])
        if future is not None and not future.done():
            future.set_result(body)
