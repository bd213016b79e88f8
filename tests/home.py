"""A Torpor home of a test's own, and kernels started in it the way people do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager

from tests.world import reclaim, wait_clean

KERNEL = "sandboxed"


def find_runsc() -> str | None:
    """Give the runsc these tests use: ``TORPOR_TEST_RUNSC``, the installed one, or one on PATH."""
    chosen = os.environ.get("TORPOR_TEST_RUNSC")
    data = Path(os.environ.get("XDG_DATA_HOME", Path.home() / ".local/share"))
    installed = data / "torpor" / "runsc"
    for found in (chosen, str(installed / "runsc"), str(installed), shutil.which("runsc")):
        if found and os.access(found, os.X_OK) and Path(found).is_file():
            return found
    return None


def write_kernelspec(base: Path, name: str = KERNEL, **changes: object) -> None:
    """Write a sandboxed kernelspec below ``base``/kernels; ``changes`` replace keys of kernel.json."""
    folder = base / "kernels" / name
    folder.mkdir(parents=True, exist_ok=True)
    spec: dict[str, object] = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "Python 3 (gVisor)",
        "language": "python",
        "metadata": {
            "debugger": True,
            "supported_encryption": ["curve"],
            "kernel_provisioner": {"provisioner_name": "torpor-provisioner", "config": {}},
        },
    }
    spec.update(changes)
    (folder / "kernel.json").write_text(json.dumps(spec))


@contextmanager
def torpor_home(config: str = "", **environ: str) -> Iterator[Path]:
    """Make a fresh home and export it to this process; its daemon is stopped and the world checked.

    ``config`` becomes its ``torpor_config.py``; ``environ`` is exported too. The pool is off unless
    ``config`` switches it on: tests of other things need not share their processors with it.
    """
    runsc = find_runsc()
    if runsc is None:
        if os.environ.get("REQUIRE_RUNSC") == "1":
            pytest.fail("REQUIRE_RUNSC=1 and no runsc: run `torpor install-runsc`")
        pytest.skip("no runsc")
    home = Path(tempfile.mkdtemp(prefix="tp-", dir="/tmp"))
    (home / "data").mkdir()
    (home / "data" / "runsc").symlink_to(runsc)
    (home / "jr").mkdir(mode=0o700)
    (home / "config").mkdir()
    (home / "config" / "torpor_config.py").write_text(f"c.TorporDaemon.pool = False\n{config}")
    write_kernelspec(home / "jupyter")
    saved = dict(os.environ)
    os.environ.update(
        TORPOR_HOME=str(home),
        JUPYTER_PATH=str(home / "jupyter"),
        JUPYTER_RUNTIME_DIR=str(home / "jr"),
        IPYTHONDIR=str(home / "ipython"),
        **environ,
    )
    try:
        yield home
    finally:
        command = [sys.executable, "-m", "torpor", "daemon", "stop", "--kernels"]
        try:
            subprocess.run(command, check=False, timeout=60)
            wait_clean(home, services=True)
        finally:
            os.environ.clear()
            os.environ.update(saved)
            try:
                reclaim(home)
            finally:
                shutil.rmtree(home, ignore_errors=True)


def start(cwd: Path, **kwargs: object) -> tuple[KernelManager, BlockingKernelClient]:
    """Start a sandboxed kernel with the stock synchronous manager and wait until it answers."""
    name, transport = kwargs.pop("kernel_name", KERNEL), kwargs.pop("transport", "tcp")
    km = KernelManager(kernel_name=str(name), transport=transport)
    km.start_kernel(cwd=str(cwd), **kwargs)
    kc = km.client()
    kc.start_channels()
    try:
        kc.wait_for_ready(timeout=60)
    except BaseException:
        stop(km, kc)
        raise
    return km, kc


def stop(km: KernelManager, kc: BlockingKernelClient) -> None:
    """Shut one kernel down and close its client's sockets."""
    kc.stop_channels()
    km.shutdown_kernel(now=True)
    kc.context.destroy(linger=0) if not kc.context.closed else None
