"""Fixtures of the end-to-end tests: a Torpor home with its own daemon, and sandboxed kernels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager

from tests.home import start, torpor_home
from tests.world import look, wait_clean


@pytest.fixture(scope="session")
def torpor_env() -> Iterator[Path]:
    """The home that the end-to-end tests share."""
    with torpor_home() as home:
        yield home


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """An empty folder to be a kernel's working directory."""
    folder = tmp_path / "ws"
    folder.mkdir()
    return folder


@pytest.fixture
def manager_and_client(
    torpor_env: Path, workspace: Path
) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    """A sandboxed kernel of this test's own; afterwards the world is checked."""
    before = look(torpor_env)
    km, kc = start(workspace)
    try:
        yield km, kc
    finally:
        kc.stop_channels()
        if km.has_kernel:
            km.shutdown_kernel(now=True)
        wait_clean(torpor_env, before=before)


@pytest.fixture(scope="module")
def shared(
    torpor_env: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    """One sandboxed kernel for a whole module of tests that leave it usable."""
    km, kc = start(tmp_path_factory.mktemp("ws"))
    try:
        yield km, kc
    finally:
        kc.stop_channels()
        km.shutdown_kernel(now=True)


@pytest.fixture
def kc(shared: tuple[KernelManager, BlockingKernelClient]) -> BlockingKernelClient:
    """The client of the module's shared kernel."""
    return shared[1]


@pytest.fixture
def km(shared: tuple[KernelManager, BlockingKernelClient]) -> KernelManager:
    """The manager of the module's shared kernel."""
    return shared[0]
