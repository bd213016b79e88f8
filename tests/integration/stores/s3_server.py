"""An S3 server of a test's own, on loopback: moto's, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

START_TIMEOUT_S = 30.0


@contextmanager
def s3_server(folder: Path) -> Iterator[str]:
    """Give its address while it runs. It forgets everything when it ends; its log is in ``folder``."""
    log = folder / "s3.log"
    # MOTO_PORT=0: the system chooses, and the server's first words say what.
    argv = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with (
        log.open("w") as out,
        subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        ) as server,
    ):
        try:
            yield _address(server, log)
        finally:
            server.kill()


def make_bucket(address: str, name: str) -> None:
    """Make a bucket without an S3 client, which would keep connections for a test after this one."""
    httpx.put(f"{address}/{name}", timeout=10, trust_env=False).raise_for_status()


def _address(server: subprocess.Popen[bytes], log: Path) -> str:
    until = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < until and server.poll() is None:
        for word in log.read_text().split():
            if word.startswith("http://127.0.0.1:"):
                httpx.get(word, timeout=10, trust_env=False)
                return word
        time.sleep(0.05)
    raise RuntimeError(f"the S3 server did not start: {log.read_text()}")
