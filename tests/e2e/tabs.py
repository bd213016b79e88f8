"""A browser's tab, as JupyterLab's server sees it: a websocket to one kernel, closed before the test goes on."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tornado.websocket import WebSocketClientConnection, websocket_connect

Told = list[tuple[str, dict[str, Any]]]


class Tab:
    """A websocket to one kernel, as a browser's tab has it."""

    def __init__(self, connection: WebSocketClientConnection) -> None:
        self._connection = connection

    async def ask(self, kind: str, content: dict[str, Any], channel: str = "shell") -> Told:
        """Send a request; give everything that belongs to it, (type, content), to reply and idle."""
        header = {"msg_id": uuid.uuid4().hex, "msg_type": kind, "session": "s"}
        header |= {"username": "u", "version": "5.3", "date": "2026-01-01T00:00:00Z"}
        message = {"header": header, "parent_header": {}, "metadata": {}, "content": content}
        await self._connection.write_message(
            json.dumps(message | {"channel": channel, "buffers": []})
        )
        told: Told = []
        async with asyncio.timeout(60):
            while not (_has(told, "_reply") and _is_idle(told)):
                text = await self._connection.read_message()
                assert text is not None, "the websocket was closed"
                got = json.loads(text)
                if got["parent_header"].get("msg_id") == header["msg_id"]:
                    told.append((got["msg_type"], got["content"]))
        return told

    async def execute(self, code: str) -> Told:
        """Execute ``code``; give everything that belongs to it."""
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}}
        return await self.ask("execute_request", content)


@asynccontextmanager
async def open_tab(base: str, kernel_id: str, token: str) -> AsyncIterator[Tab]:
    """A tab on a kernel of the server at ``base``; at the end its connection is closed on both sides.

    The end waits for the server's answer: a loop that stops before it leaves the socket to the garbage
    collector. What the server still had to tell is read first, since tornado looks at nothing else before.
    """
    url = f"ws{base[4:]}api/kernels/{kernel_id}/channels?session_id=s&token={token}"
    connection = await websocket_connect(url)
    try:
        yield Tab(connection)
    finally:
        connection.close()
        async with asyncio.timeout(20):
            while await connection.read_message() is not None:
                pass


def text_of(told: Told) -> str:
    """Give the text of the one result among what belongs to a cell."""
    [text] = [body["data"]["text/plain"] for kind, body in told if kind == "execute_result"]
    return str(text)


def stdout_of(told: Told) -> str:
    """Give what a cell printed."""
    return "".join(body["text"] for kind, body in told if kind == "stream")


def _has(told: Told, ending: str) -> bool:
    return any(kind.endswith(ending) for kind, _ in told)


def _is_idle(told: Told) -> bool:
    return ("status", {"execution_state": "idle"}) in told
