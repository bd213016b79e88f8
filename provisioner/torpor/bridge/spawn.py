"""Getting hold of the user's one bridge process, starting it when there is none."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from torpor.bridge.client import BridgeClient, BridgeRefused
from torpor.bridge.protocol import EXIT_ALREADY_RUNNING, VERSION
from torpor.errors import BackendUnavailable, VersionMismatch
from torpor.paths import Paths

START_TIMEOUT_S = 20.0
RETRY_S = 0.05


def bridge_argv(python: str, paths: Paths) -> list[str]:
    """Give the command that starts the bridge and returns once it listens."""
    arguments = ["--runtime-dir", str(paths.runtime), "--log", str(paths.bridge_log), "--detach"]
    return [python, "-P", "-m", "torpor.bridge", *arguments]


async def ensure_bridge(paths: Paths, *, python: str = sys.executable) -> BridgeClient:
    """Connect to the bridge of ``paths``, starting it first if it does not run.

    Safe under any race: a lock lets one process through, the others connect to it. A bridge of
    another version is replaced when it holds no kernels. The bridge outlives the caller; after a
    failure or cancel it may be running, and ends by itself when nobody connects.

    Raises:
        BackendUnavailable: it does not start, or does not answer; its log's path is in the message.
        VersionMismatch: a bridge of another version holds kernels.
    """
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            while True:
                client = await _try_connect(paths)
                if client is not None:
                    return client
                await _start(paths, python)
                await asyncio.sleep(RETRY_S)
    except TimeoutError as exc:
        raise BackendUnavailable(
            f"the bridge did not start in {START_TIMEOUT_S:g} s",
            hint=f"its log is {paths.bridge_log}",
        ) from exc


async def _try_connect(paths: Paths) -> BridgeClient | None:
    """Give a connection to a bridge of our version, or None when one has to be started."""
    try:
        client = await BridgeClient.connect(paths.bridge_socket)
    except BackendUnavailable:
        return None
    try:
        version = (await client.call("hello", version=VERSION))["version"]
        if version == VERSION:
            return client
        await client.call("shutdown")
    except BackendUnavailable:
        await client.aclose()  # it was about to end
        return None
    except BridgeRefused as exc:
        await client.aclose()
        raise VersionMismatch(
            f"a bridge of version {version} holds running kernels; this is {VERSION}",
            hint="shut those kernels down, or use the version that started them",
        ) from exc
    except BaseException:
        await client.aclose()
        raise
    await client.aclose()
    return None


async def _start(paths: Paths, python: str) -> None:
    """Run the starter to its end; another one having been faster is success, too."""
    paths.runtime.mkdir(mode=0o700, parents=True, exist_ok=True)
    paths.bridge_log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    log = _append(paths.bridge_log)
    try:
        starter = await asyncio.create_subprocess_exec(
            *bridge_argv(python, paths),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            start_new_session=True,
        )
    except OSError as exc:
        raise BackendUnavailable(f"cannot run {python}: {exc.strerror}") from exc
    finally:
        os.close(log)
    try:
        code = await starter.wait()
    except BaseException:
        if starter.returncode is None:
            starter.kill()
            await starter.wait()  # which ends at once; its transport must not be left open
        raise
    if code not in (0, EXIT_ALREADY_RUNNING):
        raise BackendUnavailable(
            f"the bridge could not be started (exit status {code})",
            hint=f"its log is {paths.bridge_log}",
        )


def _append(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
