"""The daemon starts exactly once, ends by itself, and says why it cannot start."""

import asyncio
import contextlib
import json
import os
import sqlite3
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torpor.client
from torpor.client import Client, Interrupted, NotRunning
from torpor.errors import Busy, ConfigError, VersionMismatch
from torpor.unix_http import exchange

from tests.integration.daemon.conftest import DAEMON, eventually

# A daemon with very little patience may end in a pause of this process, before it hears of any request.
NOT_THERE = (NotRunning, Interrupted)


def test_twenty_clients_race_for_one_daemon(home):
    def ensure(_):
        return asyncio.run(Client(home.paths).ensure())["pid"]

    with ThreadPoolExecutor(20) as pool:
        pids = list(pool.map(ensure, range(20)))
    assert len(set(pids)) == 1
    assert len(home.logged("started")) == 1
    assert len(home.daemons()) == 1


def test_processes_race_for_one_daemon(home):
    code = (
        "import sys, asyncio, torpor.client as c; c.daemon_argv = lambda: tuple(sys.argv[1:]);"
        "from torpor.config import user_paths;"
        "print(asyncio.run(c.Client(user_paths()).ensure())['pid'])"
    )
    racers = [
        subprocess.Popen([sys.executable, "-c", code, *DAEMON], stdout=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    pids = {racer.communicate(timeout=60)[0] for racer in racers}
    assert len(pids) == 1
    assert len(home.logged("started")) == 1


async def test_a_racer_that_dies_while_starting_blocks_nobody(home):
    code = (
        "import asyncio, os, torpor.start as s; from torpor.config import user_paths\n"
        "async def main():\n"
        "    async with s.start_lock(user_paths()):\n"
        "        print('locked', flush=True); await asyncio.sleep(60)\n"
        "asyncio.run(main())"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=-1) as holder:  # noqa: ASYNC220
        holder.stdout.readline()
        waiting = asyncio.create_task(home.client.ensure())
        await asyncio.sleep(0.3)
        assert not waiting.done()
        holder.kill()
    await waiting


async def test_what_it_tells_about_itself(home):
    status = await home.client.ensure()
    assert status["kernels"] == 0
    assert status["state_dir"] == str(home.paths.state)
    assert stat.S_IMODE(home.paths.runtime.stat().st_mode) == 0o700
    assert stat.S_IMODE(home.paths.daemon_socket.stat().st_mode) == 0o600
    assert [each["name"] for each in await home.client.templates()] == ["default"]
    environ = Path(f"/proc/{status['pid']}/environ").read_bytes()
    assert b"PYTEST_CURRENT_TEST" not in environ


async def test_it_runs_in_the_background_on_its_own(home):
    pid = (await home.client.ensure())["pid"]
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    assert int(fields[1]) != os.getpid()  # parent
    assert int(fields[3]) != os.getsid(0)
    assert os.readlink(f"/proc/{pid}/cwd") == "/"


async def test_idle_it_ends(home):
    home.configure("c.TorporDaemon.idle_exit_s = 0.3")
    with contextlib.suppress(*NOT_THERE):
        await home.client.ensure()
    await eventually(lambda: not home.processes(), within_s=15)
    assert home.logged("idle")
    with pytest.raises(NotRunning, match="torpor daemon start"):
        await home.client.status()
    home.configure("")
    await home.client.ensure()


async def test_with_a_kernel_it_does_not_end(home):
    home.configure("c.TorporDaemon.idle_exit_s = 0.3")
    launched = None
    while launched is None:
        with contextlib.suppress(*NOT_THERE):
            launched = await home.client.launch(home.request())
    await asyncio.sleep(1)
    assert (await home.client.status())["kernels"] == 1
    await home.client.delete("k1")
    await eventually(lambda: not home.processes(), within_s=15)


async def test_stop_is_refused_while_it_holds_kernels(home):
    await home.client.launch(home.request())
    with pytest.raises(Busy, match="1 kernel"):
        await home.client.shutdown()
    await home.client.shutdown(force=True)
    await home.client.shutdown()
    assert (await home.client.kernel("k1"))["status"] == "running"  # the next one took it over
    await home.client.delete("k1")


async def test_sigterm_is_a_clean_stop(home):
    pid = (await home.client.ensure())["pid"]
    os.kill(pid, 15)
    await eventually(lambda: not home.processes())
    assert home.logged("stopping")


async def test_stopping_undoes_what_is_being_launched(home):
    program = home.program("import time; time.sleep(60)")
    launch = asyncio.create_task(home.client.launch(home.request(argv=program)))
    await eventually(lambda: home.paths.kernels.is_dir() and list(home.paths.kernels.iterdir()))
    os.kill(await home.daemon_pid(), 15)
    await eventually(lambda: len(home.logged("stopping")) == 1)
    await eventually(lambda: len(home.logged("started")) == 2)  # the client asks again
    launch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await launch
    await home.until_no_kernel()


@pytest.mark.parametrize("damage", ["garbage", "version"])
async def test_a_registry_it_cannot_read_is_a_clear_error(home, damage):
    home.paths.state.mkdir(parents=True)
    if damage == "garbage":
        home.paths.registry.write_bytes(b"x" * 5000)
    else:
        db = sqlite3.connect(home.paths.registry)
        db.execute("PRAGMA user_version=77")
        db.close()
    for _ in range(2):
        with pytest.raises(ConfigError, match="registry") as caught:
            await home.client.ensure()
    assert "move" in caught.value.hint
    await eventually(lambda: not home.processes())
    home.paths.registry.unlink()
    await home.client.ensure()


async def test_wrong_configuration_is_a_clear_error(home):
    home.configure("c.TorporDaemon.idle_exit_s = 'never'")
    with pytest.raises(ConfigError, match="idle_exit_s"):
        await home.client.ensure()
    home.configure("")
    await home.client.ensure()


async def test_a_daemon_that_cannot_even_run_says_so(home, monkeypatch):
    broken = (sys.executable, "-c", "raise SystemExit('no such luck')")
    monkeypatch.setattr(torpor.client, "daemon_argv", lambda: broken)
    with pytest.raises(Exception, match="no such luck"):
        await home.client.ensure()
    monkeypatch.setattr(torpor.client, "daemon_argv", lambda: ("/no/such/python",))
    with pytest.raises(Exception, match="cannot be run"):
        await home.client.ensure()


async def test_configuration_is_read_again_when_it_changes(home):
    await home.client.ensure()
    home.configure("c.Torpor.templates = {'big': {'memory_bytes': '8G'}}")
    assert [each["name"] for each in await home.client.templates()] == ["default", "big"]
    home.configure("oops(")
    with pytest.raises(ConfigError, match=r"torpor_config\.py"):
        await home.client.templates()
    with pytest.raises(ConfigError, match=r"torpor_config\.py"):
        await home.client.launch(home.request())


async def raw(home, method, path, *, content=b"", headers=None):
    return await exchange(
        home.paths.daemon_socket, method, path, headers=headers or {}, body=content or b""
    )


async def test_another_version_of_the_api_is_told_what_to_do(home):
    await home.client.ensure()
    answer = await raw(home, "GET", "/v1/kernels", headers={"Torpor-Api": "2"})
    assert answer.status == 426
    error = json.loads(answer.body)["error"]
    assert error["code"] == "version"
    assert "torpor daemon stop" in error["hint"]
    assert (await raw(home, "GET", "/v1/status")).status == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/v1/kernels/none", None, 404),
        ("GET", "/nowhere", None, 404),
        ("GET", "/v1/kernels/x/dance", None, 404),
        ("POST", "/v1/kernels/none/kill", None, 404),
        ("POST", "/v1/kernels", b"{not json", 400),
        ("POST", "/v1/kernels", b"[]", 400),
        ("POST", "/v1/kernels", b"{}", 400),
        ("GET", "/v1/kernels/x/wait?timeout_s=soon", None, 400),
        ("DELETE", "/v1/kernels/none", None, 200),
        ("PUT", "/v1/kernels", None, 405),
        ("POST", "/v1/kernels/none/signal", b'{"signum": 900}', 400),
    ],
)
async def test_every_answer_is_json(home, method, path, body, status):
    await home.client.ensure()
    answer = await raw(home, method, path, content=body, headers={"Torpor-Api": "1"})
    assert answer.status == status
    told = json.loads(answer.body)
    assert told == {} or told["error"]["message"]


async def test_an_idle_daemon_of_another_version_is_replaced(home, monkeypatch):
    first = (await home.client.ensure())["pid"]
    monkeypatch.setattr(torpor.client, "__version__", "0.0.9")
    assert (await home.client.ensure())["pid"] != first


async def test_a_busy_daemon_of_another_version_is_used_if_we_understand_it(home, monkeypatch):
    await home.client.launch(home.request())
    pid = await home.daemon_pid()
    monkeypatch.setattr(torpor.client, "__version__", "0.0.9")
    assert (await home.client.ensure())["pid"] == pid
    monkeypatch.setattr(torpor.client, "API_VERSION", 2)
    with pytest.raises(VersionMismatch, match="holds kernels"):
        await home.client.kernels()
    monkeypatch.setattr(torpor.client, "API_VERSION", 1)
    await home.client.delete("k1")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
async def test_a_stranger_is_hung_up_on(home):
    await home.client.ensure()
    home.path.chmod(0o755)
    home.paths.runtime.chmod(0o777)
    home.paths.daemon_socket.chmod(0o666)
    code = (
        "import os, socket, sys; os.setgid(12345); os.setuid(12345);"
        "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
        "s.sendall(b'GET /v1/status HTTP/1.1\\r\\nHost: d\\r\\n\\r\\n'); print(s.recv(100))"
    )
    asked = await asyncio.create_subprocess_exec(
        sys.executable, "-S", "-c", code, str(home.paths.daemon_socket), stdout=-1, stderr=-1
    )
    out, err = await asked.communicate()
    assert out.strip() == b"b''" or b"ConnectionReset" in err or b"BrokenPipe" in err
    await eventually(lambda: home.logged("stranger refused"))
    assert home.logged("stranger refused")[0]["uid"] == 12345


async def test_without_its_socket_it_makes_room_for_another(home):
    home.configure("c.TorporDaemon.idle_exit_s = 4")  # it looks at its socket four times meanwhile
    first = (await home.client.ensure())["pid"]
    home.paths.daemon_socket.unlink()
    assert (await home.client.ensure())["pid"] != first
    assert home.logged("socket is gone")
