"""Homes whose snapshots go to an object store, and looks into both."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager

from tests.e2e.cells import wait_ready
from tests.e2e.sleeping import snapshots, wait
from tests.home import torpor_home

QUIET = 'c.Torpor.templates = {"default": {"freeze_after_s": 0, "hibernate_after_s": 0}}\n'


def a_key(folder: Path) -> Path:
    """Make a master key in ``folder``."""
    path = folder / "store.key"
    path.write_text(secrets.token_hex(32))
    path.chmod(0o600)
    return path


def store_config(url: str, **more: Any) -> str:
    """Give a configuration with that store, and nothing that falls asleep by itself."""
    return f"{QUIET}c.Torpor.store = { ({'url': url, 'timeout_s': 5} | more)!r}\n"


@contextmanager
def store_home(url: str, more: dict[str, Any], config: str = "") -> Iterator[Path]:
    """Make a home with that store."""
    with torpor_home(store_config(url, **more) + config) as home:
        yield home


def configure(home: Path, text: str) -> None:
    """Replace the configuration of a home, which its daemon notices by itself."""
    path = home / "config/torpor_config.py"
    path.with_suffix(".new").write_text(f"c.TorporDaemon.pool = False\n{text}")
    path.with_suffix(".new").replace(path)


def places(km: KernelManager) -> dict[int, list[str]]:
    """Give where each snapshot of a kernel is."""
    return {
        each["generation"]: each["on"] for each in snapshots() if each["kernel_id"] == km.kernel_id
    }


def wait_places(km: KernelManager, wanted: dict[int, list[str]], within_s: float = 20) -> None:
    """Return once the snapshots of a kernel are where they are wanted."""
    wait(lambda: places(km) == wanted, lambda: f"{places(km)}", within_s)


def torpor(*words: str, fails: bool | None = False) -> Any:
    """Run a command with ``--json``; give what it prints. ``fails`` None: it may, or not."""
    done = subprocess.run(
        [sys.executable, "-m", "torpor", *words, "--json"],
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert fails is None or (done.returncode != 0) == fails, done.stdout + done.stderr
    return json.loads(done.stdout)


@contextmanager
def connected(state: dict[str, Any]) -> Iterator[BlockingKernelClient]:
    """Give a client of a kernel that `torpor fork` or `restore` has made, and end both."""
    client = BlockingKernelClient(connection_file=str(state["connection_file"]))
    client.load_connection_file()
    client.start_channels()
    try:
        wait_ready(client)
        yield client
    finally:
        client.stop_channels()
        torpor("shutdown", str(state["kernel_id"]))


def plaintext(home: Path) -> list[str]:
    """Give the snapshots of kernels on the disk of a home."""
    root, found = home / "state/snapshots", []
    for folder in root.glob("[!+]*"):
        with suppress(FileNotFoundError, NotADirectoryError):  # it goes just now
            found += [str(path.relative_to(root)) for path in folder.iterdir()]
    return sorted(found)
