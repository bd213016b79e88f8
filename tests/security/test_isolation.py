"""Every probe succeeds for an ordinary process of this machine and fails in a sandboxed kernel."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from jupyter_client.blocking import BlockingKernelClient
from torpor.client import Client
from torpor.config import user_paths

from tests.e2e.cells import run
from tests.e2e.stores import QUIET
from tests.home import start, torpor_home
from tests.security.probes import ALL, Probe
from tests.security.scene import NEIGHBOUR, build, enter_private_network

pytestmark = [
    pytest.mark.runsc,
    pytest.mark.timeout(180),
    pytest.mark.skipif(
        os.geteuid() != 0, reason="positive controls need a privileged host process"
    ),
]


def outcome(text: str) -> dict[str, object]:
    """Give what a probe printed, or a failure to reach when it died."""
    lines = [line for line in text.splitlines() if line.startswith("PROBE ")]
    return json.loads(lines[-1][6:]) if lines else {"reached": False, "detail": text[-300:]}


def _started_as() -> list[str]:
    kernels = asyncio.run(Client(user_paths()).kernels())
    return [str(kernel["start"]["how"]) for kernel in kernels]


@pytest.fixture(scope="module", params=["cold", "clone"])
def scene(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[tuple[dict[str, object], BlockingKernelClient]]:
    """Targets on the host, a sandboxed neighbour that offers its own, and the kernel that probes.

    Both kernels are started cold, or both are clones of a golden that were claimed.
    """
    is_clone = request.param == "clone"
    with ExitStack() as stack:
        workspace = tmp_path_factory.mktemp("probe-ws")
        interface = enter_private_network(stack)
        # its daemon lives in the same private network; a neighbour that is frozen would offer nothing
        config = f"c.TorporDaemon.pool = {is_clone}\n{QUIET}"
        home = stack.enter_context(torpor_home(config))
        arguments = build(stack, home, workspace, interface)
        if is_clone:
            subprocess.run([sys.executable, "-m", "torpor", "golden", "build"], check=True)
        for folder in (tmp_path_factory.mktemp("neighbour-ws"), workspace):
            # ipc: threads of this process that were started before stay in the other network
            km, kc = start(folder, transport="ipc")
            stack.callback(km.shutdown_kernel, now=True)
            stack.callback(kc.stop_channels)
            if folder != workspace:
                assert "neighbour ready" in run(kc, NEIGHBOUR.format(**arguments)).stdout
        wanted = {"claimed", "cloned"} if is_clone else {"created"}
        assert set(_started_as()) <= wanted
        yield arguments, kc


def on_the_host(probe: Probe, arguments: dict[str, object]) -> dict[str, object]:
    """Run ``probe`` as an ordinary process, beside an ordinary process that plays the neighbour."""
    with ExitStack() as stack:
        if probe.area == "neighbours":
            code = NEIGHBOUR.format(**arguments) + "\nimport time; time.sleep(600)"
            neighbour = stack.enter_context(
                subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
            )
            stack.callback(neighbour.kill)
            for folder in ("/tmp", "/dev/shm"):
                path = Path(folder) / str(arguments["neighbour_file"])
                stack.callback(path.unlink, missing_ok=True)
            assert neighbour.stdout is not None
            assert neighbour.stdout.readline().strip() == "neighbour ready"
            children = Path(f"/proc/{neighbour.pid}/task/{neighbour.pid}/children").read_text()
            for pid in children.split():
                stack.callback(os.kill, int(pid), 9)
        ran = subprocess.run(
            [sys.executable, "-c", probe.source(arguments)],
            capture_output=True,
            text=True,
            timeout=60,
        )
        return outcome(ran.stdout + ran.stderr)


@pytest.mark.parametrize("probe", ALL, ids=lambda probe: probe.name.replace(" ", "-"))
def test_probe(probe: Probe, scene: tuple[dict[str, object], BlockingKernelClient]) -> None:
    arguments, kc = scene
    for _ in range(3):  # an answer may be late on a busy machine, and no probe waits for long
        control = on_the_host(probe, arguments)
        if control["reached"]:
            break
    assert control["reached"], f"positive control failed: {control['detail']}"
    ran = run(kc, probe.source(arguments), timeout_s=60)
    inside = outcome(ran.stdout + ran.stderr + str(ran.reply.get("evalue", "")))
    assert not inside["reached"], f"{probe.name} reached its target: {inside['detail']}"


def test_there_are_at_least_twenty_five_probes() -> None:
    assert len(ALL) >= 25
    assert len({probe.name for probe in ALL}) == len(ALL)
