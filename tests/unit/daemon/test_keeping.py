"""Somebody who waits for an answer keeps torpord from ending; somebody who looks does not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPRequest
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application
from torpor.api import API_HEADER, API_VERSION
from torpor.daemon.handlers import Handler


@dataclass
class Daemon:
    held: int = 0
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    fails: bool = False

    @contextmanager
    def working(self) -> Iterator[None]:
        self.held += 1
        try:
            yield
        finally:
            self.held -= 1


class Slow(Handler):
    daemon: Daemon  # type: ignore[assignment]

    async def get(self) -> None:
        await self.answer(self._do())

    async def post(self) -> None:
        await self.answer(self._do())

    async def _do(self) -> dict[str, int]:
        self.daemon.begun.set()
        await self.daemon.gate.wait()
        if self.daemon.fails:
            raise RuntimeError("unforeseen")
        return {}


@pytest.fixture
async def daemon() -> AsyncIterator[tuple[Daemon, str]]:
    daemon = Daemon()
    sock, port = bind_unused_port()
    server = HTTPServer(Application([("/x", Slow, {"daemon": daemon})]))
    server.add_socket(sock)
    yield daemon, f"http://127.0.0.1:{port}/x"
    server.stop()
    await server.close_all_connections()


async def ask(url: str, method: str) -> int:
    headers = {API_HEADER: str(API_VERSION)}
    body = None if method == "GET" else ""
    asked = HTTPRequest(url, method, headers, body=body, request_timeout=30)
    client = AsyncHTTPClient(force_instance=True)
    try:
        return (await client.fetch(asked, raise_error=False)).code
    finally:
        client.close()


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize(("method", "held"), [("POST", 1), ("GET", 0)])
async def test_who_keeps_it(
    daemon: tuple[Daemon, str], method: str, held: int, fails: bool
) -> None:
    world, url = daemon
    world.fails = fails
    asking = asyncio.create_task(ask(url, method))
    await asyncio.wait_for(world.begun.wait(), 10)
    assert world.held == held
    world.gate.set()
    assert await asking == (500 if fails else 200)
    assert world.held == 0
