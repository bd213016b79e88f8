"""JupyterLab's server, unmodified: its default kernel is sandboxed and works over REST and websocket."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.tabs import open_tab, stdout_of
from tests.home import KERNEL, write_kernelspec
from tests.world import look, wait_clean

pytestmark = [pytest.mark.runsc, pytest.mark.timeout(180)]
TOKEN = "not-a-secret"


def request(base: str, path: str, method: str = "GET", body: object = None) -> Any:
    """Call the server's REST API; give the JSON of the answer."""
    headers = {"Authorization": f"token {TOKEN}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(base + path, data=data, headers=headers, method=method)
    with urllib.request.urlopen(asked, timeout=60) as answer:
        text = answer.read()
    return json.loads(text) if text else None


def free_port() -> int:
    """Give a port that nobody gets who asks for any, as other tests do while the server starts."""
    while True:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", random.randrange(20_000, 30_000)))
            return int(probe.getsockname()[1])


@pytest.fixture
def lab(torpor_env: Path, tmp_path: Path) -> Iterator[str]:
    """A JupyterLab server on a free port; give its address."""
    port = free_port()
    before = look(torpor_env)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}"]
    command += [f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={tmp_path}"]
    command += [f"--MappingKernelManager.default_kernel_name={KERNEL}"]
    environment = {**os.environ, "JUPYTER_CONFIG_DIR": str(tmp_path / ".config")}
    with (tmp_path / "lab.log").open("wb") as log:
        server = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log, env=environment)
        base = f"http://127.0.0.1:{port}/"
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    request(base, "api/status")
                    break
                except OSError as exc:
                    if isinstance(exc, urllib.error.HTTPError):  # it is up, and not yet ready
                        exc.close()
                    assert time.monotonic() < deadline, (tmp_path / "lab.log").read_text()
                    assert server.poll() is None, (tmp_path / "lab.log").read_text()
                    time.sleep(0.2)
            yield base
        finally:
            server.terminate()
            server.wait(30)
    wait_clean(torpor_env, before=before)


async def execute(base: str, kernel_id: str, code: str) -> str:
    """Execute over the websocket that a browser uses; give what the cell printed."""
    async with open_tab(base, kernel_id, TOKEN) as tab:
        return stdout_of(await tab.execute(code))


async def test_the_default_kernel_of_jupyterlab_is_sandboxed(lab: str, tmp_path: Path) -> None:
    assert request(lab, "api/kernelspecs")["default"] == KERNEL
    kernel = request(lab, "api/kernels", "POST", {})
    assert kernel["name"] == KERNEL
    code = (
        "import subprocess, os; print(subprocess.run(['dmesg'], capture_output=True, text=True).stdout)\n"
        "open('made-in-the-sandbox.txt', 'w').write('hello'); print(os.getcwd())"
    )
    printed = await execute(lab, kernel["id"], code)
    assert "gVisor" in printed
    assert printed.strip().endswith(str(tmp_path))
    assert (tmp_path / "made-in-the-sandbox.txt").read_text() == "hello"
    assert (tmp_path / "made-in-the-sandbox.txt").stat().st_uid == os.geteuid()
    request(lab, f"api/kernels/{kernel['id']}/restart", "POST", {})
    assert (await execute(lab, kernel["id"], "print('code' in globals())")).strip() == "False"
    request(lab, f"api/kernels/{kernel['id']}", "DELETE")
    assert request(lab, "api/kernels") == []


async def test_a_kernel_that_cannot_start_says_why_to_the_browser(
    lab: str, torpor_env: Path
) -> None:
    stanza = {"provisioner_name": "torpor-provisioner", "config": {"template": "nope"}}
    write_kernelspec(torpor_env / "jupyter", "lab-bad", metadata={"kernel_provisioner": stanza})
    session = {"path": "a.ipynb", "type": "notebook", "kernel": {"name": "lab-bad"}}
    for path, body in (("api/kernels", {"name": "lab-bad"}), ("api/sessions", session)):
        with pytest.raises(urllib.error.HTTPError) as caught:
            request(lab, path, "POST", body)
        answer = json.loads(caught.value.read())
        caught.value.close()
        assert "there is no template 'nope'" in answer["message"]
