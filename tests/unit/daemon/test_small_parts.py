"""Logs, the lock and the socket, ipc paths, tasks."""

import asyncio
import json
import logging
import os
import socket
import stat

import pytest
from torpor.api import CHANNELS, Endpoints
from torpor.daemon import ipc_links
from torpor.daemon.listen import listen, take_lock
from torpor.daemon.logs import about, log, start_logging
from torpor.daemon.tasks import Tasks
from torpor.errors import Busy, ConfigError
from torpor.paths import private_folder, resolve_paths
from torpor.start import daemon_environment


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "torpord.log"
    handler = start_logging(path, max_bytes=2000, keep=2)
    yield lambda: [json.loads(line) for line in path.read_text().splitlines()]
    logging.getLogger().removeHandler(handler)
    handler.close()


def test_each_line_is_json_and_names_the_kernel(lines, tmp_path):
    with about("k1"):
        log("launched", seconds=1.5)
    log("failed", level=logging.ERROR, error=ValueError("why"))
    logging.getLogger("other").warning("from %s", "outside")
    first, second, third = lines()
    assert (first["event"], first["kernel_id"], first["seconds"]) == ("launched", "k1", 1.5)
    assert second["error"] == "ValueError: why"
    assert "kernel_id" not in second
    assert (third["from"], third["event"]) == ("other", "from outside")
    assert stat.S_IMODE((tmp_path / "torpord.log").stat().st_mode) == 0o600


def test_logs_are_rotated_by_size(lines, tmp_path):
    for number in range(100):
        log("x" * 100, number=number)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "torpord.log",
        "torpord.log.1",
        "torpord.log.2",
    ]


def test_one_lock_at_a_time(tmp_path):
    fd = take_lock(tmp_path / "lock", within_s=0)
    with pytest.raises(Busy, match="another torpord"):
        take_lock(tmp_path / "lock", within_s=0.05)
    os.close(fd)
    os.close(take_lock(tmp_path / "lock", within_s=0))


def test_a_dead_daemons_socket_is_replaced(tmp_path):
    path = tmp_path / "s"
    listen(path).close()
    assert path.is_socket()
    sock = listen(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    sock.close()


def test_what_is_not_a_socket_is_not_replaced(tmp_path):
    (tmp_path / "s").write_text("mine")
    with pytest.raises(ConfigError, match="in the way"):
        listen(tmp_path / "s")
    with pytest.raises(ConfigError, match="longer"):
        listen(tmp_path / ("x" * 120))


def test_private_folders(tmp_path):
    folder = private_folder(tmp_path / "a" / "b")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o755)
    assert stat.S_IMODE(private_folder(folder).stat().st_mode) == 0o700
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(folder)
    for wrong in ("file", "link", "file/x"):
        with pytest.raises(ConfigError):
            private_folder(tmp_path / wrong)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_somebody_else_is_refused(tmp_path):
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", 12345, 12345)
    with pytest.raises(ConfigError, match="belongs to user 12345"):
        private_folder(tmp_path / "theirs")


def test_where_things_are(tmp_path):
    assert resolve_paths({}, uid=7, home=tmp_path).runtime.name == "torpor-7"
    paths = resolve_paths({"TORPOR_HOME": "/x"}, uid=7, home=tmp_path)
    assert str(paths.start_lock) == "/x/run/start.lock"


def test_the_daemon_gets_no_tokens():
    env = {"JUPYTERHUB_API_TOKEN": "t", "HOME": "/h", "LC_ALL": "C", "TORPOR_HOME": "/x", "A": "b"}
    assert daemon_environment(env) == {"HOME": "/h", "LC_ALL": "C", "TORPOR_HOME": "/x"}


def ipc(ip, **ports):
    return Endpoints("ipc", str(ip), {**dict.fromkeys(CHANNELS, 0), **ports}, "key")


def test_ipc_numbers_avoid_what_exists(tmp_path):
    (tmp_path / "k-2").write_text("")
    chosen = ipc_links.choose_ports(ipc(tmp_path / "k", control=1))
    assert chosen.ports == {"shell": 3, "iopub": 4, "stdin": 5, "control": 1, "hb": 6}


def test_ipc_links_come_back_and_go(tmp_path):
    private = tmp_path / "private"
    private.mkdir()
    client = ipc_links.choose_ports(ipc(tmp_path / "k"))
    inner = ipc_links.private_endpoints(client, "id", private)
    (private / f"{inner.ip.rsplit('/', 1)[1]}-1").write_text("socket")
    ipc_links.make_links(client, "id", private)
    ipc_links.make_links(client, "id", private)
    (tmp_path / "k-1").unlink()  # as jupyter_client does on a restart
    ipc_links.make_links(client, "id", private)
    assert (tmp_path / "k-1").read_text() == "socket"
    (tmp_path / "k-2").unlink()
    (tmp_path / "k-2").write_text("somebody else's")
    with pytest.raises(ConfigError, match="k-2"):
        ipc_links.make_links(client, "id", private)
    ipc_links.remove_links(client, "id", private)
    ipc_links.remove_links(client, "id", private)
    assert [path.name for path in tmp_path.iterdir() if path.name != "private"] == ["k-2"]
    assert list(private.iterdir()) == []


def test_tcp_needs_no_links(tmp_path):
    client = Endpoints("tcp", "127.0.0.1", dict.fromkeys(CHANNELS, 0), "key")
    assert ipc_links.private_endpoints(client, "id", tmp_path) is client
    ipc_links.make_links(client, "id", tmp_path)
    ipc_links.remove_links(client, "id", tmp_path)
    assert list(tmp_path.iterdir()) == []


async def test_a_task_that_is_cancelled_before_it_has_begun_leaves_no_warning():
    tasks, begun = Tasks(), []

    async def work():
        begun.append(1)

    tasks.start(work(), name="work")
    await tasks.aclose()
    assert (begun, len(tasks)) == ([], 0)


async def test_tasks_are_held_and_awaited():
    tasks, ended = Tasks(), []

    async def work():
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            ended.append(1)

    async def fail():
        raise ValueError("logged, not lost")

    tasks.start(work(), name="work")
    tasks.start(fail(), name="fail")
    await asyncio.sleep(0.01)
    assert len(tasks) == 1
    await tasks.aclose()
    await tasks.aclose()
    assert (ended, len(tasks)) == ([1], 0)
