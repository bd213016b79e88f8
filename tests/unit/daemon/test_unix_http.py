import asyncio
import contextlib
import os

import pytest
from torpor.unix_http import BadAnswer, NobodyListens, exchange, parse_head

from tests.unit.daemon.storing import until

ANSWER = b'HTTP/1.1 201 Created\r\nContent-Length: 8\r\nX: y\r\n\r\n{"a": 1}'


@contextlib.asynccontextmanager
async def server(path, answer, *, pieces=1, hold=False):
    seen = []

    async def serve(reader, writer):
        with contextlib.suppress(ConnectionError):
            head = await reader.readuntil(b"\r\n\r\n")
            seen.append(head)
            size = max(1, len(answer) // pieces)
            for start in range(0, len(answer), size):
                writer.write(answer[start : start + size])
                await writer.drain()
                await asyncio.sleep(0)
            if hold:
                seen.append(await reader.read())
        writer.close()

    listening = await asyncio.start_unix_server(serve, str(path))
    async with listening:
        yield seen


async def ask(path):
    return await exchange(path, "POST", "/v1/x", headers={"A": "b"}, body=b"")


@pytest.mark.parametrize("pieces", [1, 7, 1000])
async def test_an_exchange(tmp_path, pieces):
    async with server(tmp_path / "s", ANSWER, pieces=pieces) as seen:
        response = await ask(tmp_path / "s")
    assert (response.status, response.body) == (201, b'{"a": 1}')
    assert seen[0].startswith(b"POST /v1/x HTTP/1.1\r\n")
    assert b"\r\nA: b\r\n" in seen[0]


@pytest.mark.parametrize("cut", range(0, len(ANSWER), 5))
async def test_a_server_that_dies_is_an_error_at_every_byte(tmp_path, cut):
    async with server(tmp_path / "s", ANSWER[:cut]):
        with pytest.raises(OSError, match=r"hung up|reset"):
            await ask(tmp_path / "s")


async def test_nobody_listens(tmp_path):
    with pytest.raises(NobodyListens):
        await ask(tmp_path / "missing")
    async with server(tmp_path / "s", ANSWER):
        os.link(tmp_path / "s", tmp_path / "stale")
    with pytest.raises(NobodyListens):
        await ask(tmp_path / "stale")


async def test_cancelling_hangs_up_at_once(tmp_path):
    async with server(tmp_path / "s", b"HTTP/1.1 200", hold=True) as seen:
        asking = asyncio.create_task(ask(tmp_path / "s"))
        await until(lambda: seen)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await until(lambda: seen[1:])
        assert seen[1:] == [b""]  # the server has seen the end


@pytest.mark.parametrize(
    "head",
    [
        b"SSH-2.0-OpenSSH",
        b"HTTP/2 200",
        b"HTTP/1.1 2x0",
        b"HTTP/1.1 200 OK",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked",
    ],
)
def test_what_is_not_an_answer_of_ours(head):
    with pytest.raises(BadAnswer):
        parse_head(head)


def test_heads():
    assert parse_head(b"HTTP/1.0 404 Not Found\r\ncontent-length: 12") == (404, 12)
    assert parse_head(b"HTTP/1.1 204 No Content") == (204, 0)


async def test_an_endless_head(tmp_path):
    async with server(tmp_path / "s", b"HTTP/1.1 200 OK\r\n" + b"x" * 40_000):
        with pytest.raises(BadAnswer):
            await ask(tmp_path / "s")
