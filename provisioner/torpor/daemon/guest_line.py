"""The daemon's own line to a guest whose kernel is nobody's yet: a golden being made, a clone.

The same link that the bridge speaks. When the kernel becomes somebody's, the bridge connects to the
guest as any host does after another: nothing that was acknowledged here comes again there.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torpor.backends.base import FROM_GUEST, GUEST_STDERR, TO_GUEST
from torpor.errors import BackendUnavailable, LaunchError, LinkProtocolError
from torpor.link import Channel, Link, Message, Role
from torpor.link.fifo import FifoStream

_READ_BYTES = 1 << 18
_TAIL_BYTES = 8192


class GuestRefused(LaunchError):
    """The guest said no; ``reason`` is its code."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class GuestLine:
    """One connection to a guest. Use as an async context: everything is acknowledged at its end."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._link = Link(Role.HOST)
        self._stream: FifoStream
        self._loop = asyncio.get_running_loop()
        self._stderr_fd = -1
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._news = asyncio.Event()
        self._failure = ""
        self._writing = False
        self.events: deque[Mapping[str, Any]] = deque(maxlen=256)
        """What the guest told, oldest first."""
        self.stderr_tail = ""

    async def __aenter__(self) -> GuestLine:
        folder = self._directory
        self._stream = FifoStream.open(folder / FROM_GUEST, folder / TO_GUEST)
        self._stderr_fd = os.open(folder / GUEST_STDERR, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._loop.add_reader(self._stream.read_fileno(), self._readable)
        self._loop.add_reader(self._stderr_fd, self._stderr_readable)
        self._link.connect()
        self._write()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._link.flush()
        self._write()
        self.close()

    def close(self) -> None:
        """Let go; the guest goes on. Twice is fine."""
        if self._stderr_fd < 0:
            return
        self._loop.remove_reader(self._stream.read_fileno())
        self._loop.remove_reader(self._stderr_fd)
        self._loop.remove_writer(self._stream.write_fileno())
        os.close(self._stderr_fd)
        self._stderr_fd = -1
        self._stream.close()
        self._fail("the line was closed")

    async def call(
        self, method: str, params: Mapping[str, Any] | None = None, *, timeout_s: float
    ) -> dict[str, Any]:
        """Give the guest's result.

        Raises:
            GuestRefused: it said no.
            BackendUnavailable: it did not answer in time, or broke the protocol.
        """
        if self._failure:
            raise BackendUnavailable(f"the guest cannot be asked: {self._failure}")
        ident = next(self._ids)
        future: asyncio.Future[Any] = self._loop.create_future()
        self._waiting[ident] = future
        body = {"id": ident, "method": method, "params": dict(params or {})}
        self._link.send(Channel.RPC, [json.dumps(body).encode()])
        self._write()
        try:
            async with asyncio.timeout(timeout_s):
                answer = await future
        except TimeoutError as exc:
            raise BackendUnavailable(
                f"the guest did not answer {method!r} in {timeout_s:g} s"
            ) from exc
        finally:
            self._waiting.pop(ident, None)
        error = answer.get("error")
        if isinstance(error, Mapping):
            raise GuestRefused(str(error.get("code")), str(error.get("message")))
        result = answer.get("result")
        return result if isinstance(result, dict) else {}

    async def event(self, *names: str, timeout_s: float) -> Mapping[str, Any]:
        """Give the first event of one of these names, also one that came before.

        Raises:
            BackendUnavailable: none came in time, or the guest broke the protocol.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    for body in self.events:
                        if body.get("event") in names:
                            return body
                    if self._failure:
                        raise BackendUnavailable(f"the guest cannot be heard: {self._failure}")
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError as exc:
            raise BackendUnavailable(
                f"the guest did not say {' or '.join(names)} in {timeout_s:g} s"
            ) from exc

    def _readable(self) -> None:
        try:
            received = self._stream.read(_READ_BYTES)
            if received:
                self._link.receive_data(received)
        except (EOFError, OSError, LinkProtocolError) as exc:
            self._fail(str(exc))
        while (event := self._link.next_event()) is not None:
            if isinstance(event, Message):
                if event.channel is Channel.RPC:
                    self._told(b"".join(event.parts))
                self._link.acknowledge(event)
        self._link.flush()
        self._write()

    def _told(self, raw: bytes) -> None:
        try:
            body = json.loads(raw)
        except ValueError:
            return
        if not isinstance(body, dict):
            return
        if "event" in body:
            self.events.append(body)
            self._news.set()
            return
        future = self._waiting.get(body.get("id", -1))
        if future is not None and not future.done():
            future.set_result(body)

    def _stderr_readable(self) -> None:
        with contextlib.suppress(OSError):
            said = os.read(self._stderr_fd, _READ_BYTES).decode(errors="replace")
            self.stderr_tail = (self.stderr_tail + said)[-_TAIL_BYTES:]

    def _write(self) -> None:
        if self._stderr_fd < 0:
            return
        while buffers := self._link.data_to_send():
            try:
                sent = self._stream.write(buffers)
            except OSError as exc:
                self._fail(str(exc))
                return
            if sent == 0:
                self._loop.add_writer(self._stream.write_fileno(), self._writable)
                return
            self._link.sent(sent)

    def _writable(self) -> None:
        self._loop.remove_writer(self._stream.write_fileno())
        self._write()

    def _fail(self, why: str) -> None:
        self._failure = self._failure or why
        self._news.set()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(BackendUnavailable(f"the guest was lost: {self._failure}"))
