"""Every promise of a remote store on a server that speaks S3, through s3fs."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torpor.errors import ConfigError
from torpor.snapshot.errors import StoreUnavailable
from torpor.snapshot.remote.calls import Patience
from torpor.snapshot.store import SnapshotStore

from tests.contract.remote_losses import RemoteLossesContract
from tests.contract.remote_place import Key, Place, publish
from tests.contract.remote_store import RemoteStoreContract
from tests.integration.stores.s3_server import make_bucket, s3_server

pytestmark = [pytest.mark.s3, pytest.mark.timeout(60)]
BUCKET = "snapshots"


def options_for(address: str) -> dict[str, Any]:
    return {
        "key": "k",
        "secret": "s",
        "client_kwargs": {"endpoint_url": address},
        "skip_instance_cache": False,  # making a client takes half a second
    }


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3_server(tmp_path_factory.mktemp("s3")) as address:
        make_bucket(address, BUCKET)
        yield address


class TestS3(RemoteStoreContract, RemoteLossesContract):
    @pytest.fixture
    def key(self) -> Key:
        return Key()  # without one it differs in nothing that a server sees

    @pytest.fixture
    def place(self, address: str) -> Place:
        url = f"s3://{BUCKET}/{secrets.token_hex(8)}"
        return Place(url, options_for(address), is_quick=False)


def test_a_bucket_of_its_own(address: str, tmp_path: Path) -> None:
    make_bucket(address, "all-of-it")
    local = SnapshotStore(tmp_path / "local", 1 << 22)
    snapshot = publish(local)
    store = Place("s3://all-of-it", options_for(address)).store(Key())
    row = store.push(snapshot)
    assert store.list() == (row,)
    assert store.drop(row.kernel_id) == (1,)
    assert store.list() == ()


def test_no_such_bucket(address: str, tmp_path: Path) -> None:
    local = SnapshotStore(tmp_path / "local", 1 << 22)
    store = Place("s3://there-is-none/x", options_for(address)).store()
    assert store.list() == ()
    with pytest.raises(ConfigError, match="there is no such place"):
        store.push(publish(local))


def test_nobody_listens(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        patience = Patience(timeout_s=0.5, tries=2, pause_s=0.01)
        store = Place(f"s3://{BUCKET}/x", options_for(address)).store(patience=patience)
        with pytest.raises(StoreUnavailable, match="failed 2 times at listing"):
            store.list()
