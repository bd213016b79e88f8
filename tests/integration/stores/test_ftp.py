"""Every promise of a remote store on FTP: one connection, which two threads cannot use at once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from torpor.errors import SandboxError
from torpor.snapshot.remote.settings import RemoteSettings, open_store

from tests.contract.remote_losses import RemoteLossesContract
from tests.contract.remote_place import Place
from tests.contract.remote_store import RemoteStoreContract
from tests.integration.stores.ftp_server import PASSWORD, USER, ftp_server


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with ftp_server(tmp_path_factory.mktemp("ftp")) as port:
        yield port


class TestFtp(RemoteStoreContract, RemoteLossesContract):
    @pytest.fixture
    def place(self, port: int, request: pytest.FixtureRequest) -> Place:
        name = f"{abs(hash(request.node.nodeid)):x}"
        options = {"skip_instance_cache": True}
        url = f"ftp://{USER}:{PASSWORD}@127.0.0.1:{port}/{name}/store"
        return Place(url, options, is_quick=False)


def test_a_wrong_password(port: int) -> None:
    wrong = f"{PASSWORD}-but-wrong"
    with pytest.raises(SandboxError, match="cannot be reached") as caught:
        open_store(RemoteSettings(f"ftp://{USER}:{wrong}@127.0.0.1:{port}/x")).list()
    assert PASSWORD not in str(caught.value)
    assert caught.value.hint
