"""The daemon's connection to the bridge, when the bridge dies."""

import socket
import time

import pytest
from torpor.bridge.client import BridgeClient
from torpor.errors import BackendUnavailable


async def test_a_call_that_fails_to_write_leaves_a_connection_known_as_lost(tmp_path):
    path = tmp_path / "bridge.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        client = await BridgeClient.connect(path)
        server.accept()[0].close()
        time.sleep(0.01)  # noqa: ASYNC251 - the loop must not hear of the end by reading
        with pytest.raises(BackendUnavailable, match="lost"):
            await client.call("hello")
        assert not client.connected
        await client.aclose()
