"""Every way that Jupyter's own programs start a kernel gets it from the pool, and it works."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nbformat
import papermill
import pytest
import zmq
from jupyter_client.asynchronous import AsyncKernelClient
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import AsyncKernelManager, KernelManager
from jupyter_client.multikernelmanager import AsyncMultiKernelManager, MultiKernelManager
from nbclient import NotebookClient

from tests.e2e.cells import value
from tests.e2e.pool_home import LIGHT, PoolHome, pool_home, warm
from tests.home import KERNEL

pytestmark = [
    pytest.mark.slow,  # minutes: `make slow`
    pytest.mark.runsc,
    pytest.mark.timeout(120),
]


@pytest.fixture(scope="module")
def home() -> Iterator[PoolHome]:
    """A home with a pool."""
    with pool_home(LIGHT) as made:
        yield made


@pytest.fixture(scope="module")
def folder(home: PoolHome, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace for which clones wait now and then."""
    made = tmp_path_factory.mktemp("ws")
    warm(home, made)
    return made


@pytest.fixture
def ws(home: PoolHome, folder: Path) -> Iterator[Path]:
    """A workspace for which at least one clone waits; afterwards the world is checked."""
    home.wait_ready(folder)
    yield folder
    home.wait_settled()


def hows(home: PoolHome, before: int) -> list[str]:
    """Give how kernels were started since there were ``before`` of them in the log."""
    return [each["how"] for each in home.events("launched")[before:]]


def count(home: PoolHome) -> int:
    return len(home.events("launched"))


async def result_of(kc: AsyncKernelClient, code: str) -> str:
    """Execute ``code`` and give the text of its last expression."""
    results: list[str] = []

    def hook(message: dict[str, Any]) -> None:
        if message["msg_type"] == "execute_result":
            results.append(message["content"]["data"]["text/plain"])

    reply = await kc.execute_interactive(code, output_hook=hook, timeout=60)
    assert reply["content"]["status"] == "ok", reply["content"]
    return results[-1]


@asynccontextmanager
async def client_of(km: Any) -> AsyncIterator[AsyncKernelClient]:
    kc = km.client()
    kc.start_channels()
    try:
        await kc.wait_for_ready(timeout=60)
        yield kc
    finally:
        kc.stop_channels()


def assert_works(km: KernelManager, cwd: Path) -> None:
    kc: BlockingKernelClient = km.client()
    kc.start_channels()
    try:
        kc.wait_for_ready(timeout=60)
        assert value(kc, "import os; os.getcwd()") == repr(str(cwd))
    finally:
        kc.stop_channels()


async def assert_works_async(km: Any, cwd: Path) -> None:
    async with client_of(km) as kc:
        assert await result_of(kc, "import os; os.getcwd()") == repr(str(cwd))


def assert_claimed(home: PoolHome, kernel_id: str | None) -> None:
    assert home.launched(str(kernel_id))["how"] == "claimed"


def test_kernel_manager(home: PoolHome, ws: Path) -> None:
    km = KernelManager(kernel_name=KERNEL)
    km.start_kernel(cwd=str(ws))
    assert_claimed(home, km.kernel_id)
    assert_works(km, ws)
    km.shutdown_kernel()  # the polite way
    km.context.destroy(linger=0)


async def test_async_kernel_manager(home: PoolHome, ws: Path) -> None:
    km = AsyncKernelManager(kernel_name=KERNEL)
    await km.start_kernel(cwd=str(ws))
    assert_claimed(home, km.kernel_id)
    await assert_works_async(km, ws)
    await km.restart_kernel(now=True)
    await assert_works_async(km, ws)
    await km.shutdown_kernel()
    km.context.destroy(linger=0)


def test_multi_kernel_manager(home: PoolHome, ws: Path) -> None:
    mkm = MultiKernelManager(default_kernel_name=KERNEL)
    kernel_id = mkm.start_kernel(cwd=str(ws))
    km = mkm.get_kernel(kernel_id)
    assert_works(km, ws)
    assert_claimed(home, kernel_id)
    mkm.restart_kernel(kernel_id, now=True)
    assert_works(km, ws)
    mkm.shutdown_all(now=True)
    mkm.context.destroy(linger=0)


@pytest.mark.parametrize("pending", [False, True])
async def test_async_multi_kernel_manager(home: PoolHome, ws: Path, pending: bool) -> None:
    mkm = AsyncMultiKernelManager(default_kernel_name=KERNEL, use_pending_kernels=pending)
    kernel_id = await mkm.start_kernel(cwd=str(ws))
    km = mkm.get_kernel(kernel_id)
    await km.ready
    assert_claimed(home, kernel_id)
    await assert_works_async(km, ws)
    await mkm.restart_kernel(kernel_id, now=True)
    await km.ready
    await assert_works_async(km, ws)
    await mkm.shutdown_all(now=True)
    mkm.context.destroy(linger=0)


async def test_pending_kernel_that_is_shut_down_at_once(home: PoolHome, ws: Path) -> None:
    mkm = AsyncMultiKernelManager(default_kernel_name=KERNEL, use_pending_kernels=True)
    for _ in range(3):
        kernel_id = await mkm.start_kernel(cwd=str(ws))
        await mkm.shutdown_kernel(kernel_id, now=True)
        async with asyncio.timeout(30):
            while kernel_id in mkm:  # noqa: ASYNC110 - jupyter_client has no event for it
                await asyncio.sleep(0.05)
    mkm.context.destroy(linger=0)


def test_curve(home: PoolHome, ws: Path) -> None:
    km = KernelManager(kernel_name=KERNEL, transport_encryption="required")
    km.start_kernel(cwd=str(ws))
    assert_claimed(home, km.kernel_id)
    told = json.loads(Path(km.connection_file).read_text())
    assert told["curve_publickey"]
    assert_works(km, ws)
    km.restart_kernel(now=True)
    assert_works(km, ws)
    with zmq.Context() as context, context.socket(zmq.DEALER) as plain:
        plain.linger, plain.sndtimeo = 0, 500
        plain.connect(km._make_url("shell"))
        km.session.send(plain, "kernel_info_request")
        assert not plain.poll(500)
    km.shutdown_kernel(now=True)
    km.context.destroy(linger=0)


@pytest.mark.parametrize("policy", ["disabled", "auto"])
def test_ipc(home: PoolHome, ws: Path, policy: str) -> None:
    km = KernelManager(kernel_name=KERNEL, transport="ipc", transport_encryption=policy)
    km.start_kernel(cwd=str(ws))
    assert_claimed(home, km.kernel_id)
    assert_works(km, ws)
    km.restart_kernel(now=True)
    assert_works(km, ws)
    km.shutdown_kernel(now=True)
    km.context.destroy(linger=0)


def notebook(number: int) -> nbformat.NotebookNode:
    cells = [
        f"x = {number}",
        "import os\nprint(os.getcwd())\nopen(f'made-{x}.txt', 'w').write(str(x * x))\nx * x",
        "sum(range(x))",
    ]
    new = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(each) for each in cells])
    new.metadata["kernelspec"] = {"name": KERNEL, "display_name": "x", "language": "python"}
    return new


def assert_outputs(done: nbformat.NotebookNode, number: int, ws: Path) -> None:
    code = [cell for cell in done.cells if cell.cell_type == "code"]
    assert code[-2].outputs[0].text == f"{ws}\n"
    assert code[-2].outputs[1].data["text/plain"] == str(number * number)
    assert code[-1].outputs[0].data["text/plain"] == str(sum(range(number)))
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert (ws / f"made-{number}.txt").read_text() == str(number * number)


def test_nbclient(home: PoolHome, ws: Path) -> None:
    before = count(home)
    for number in range(2):
        home.wait_ready(ws)
        client = NotebookClient(notebook(number), resources={"metadata": {"path": str(ws)}})
        assert_outputs(client.execute(), number, ws)
    assert hows(home, before) == ["claimed", "claimed"]


def papermill_loop(home: PoolHome, ws: Path, out: Path, runs: int) -> None:
    before = count(home)
    for number in range(runs):
        source, target = out / f"{number}.ipynb", out / f"{number}-done.ipynb"
        nbformat.write(notebook(number), source)
        papermill.execute_notebook(str(source), str(target), cwd=str(ws), progress_bar=False)
        assert_outputs(nbformat.read(target, 4), number, ws)
    started = hows(home, before)
    assert len(started) == runs
    assert started.count("created") == 0, started
    assert started.count("claimed") >= runs // 2, started


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_papermill(home: PoolHome, ws: Path, tmp_path: Path) -> None:
    papermill_loop(home, ws, tmp_path, 6)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_papermill_fifty_times(home: PoolHome, ws: Path, tmp_path: Path) -> None:
    papermill_loop(home, ws, tmp_path, 50)
