"""Start torpord exactly once, however many want it at the same moment."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from torpor.config import process_environment
from torpor.errors import BackendUnavailable, from_json
from torpor.lifecycle import run_to_end
from torpor.paths import Paths, private_folder

START_TIMEOUT_S = 30.0
_ENVIRONMENT = (
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "LANG",
    "TZ",
    "TMPDIR",
    "PYTHONPATH",
    "LD_LIBRARY_PATH",
)
_PREFIXES = ("LC_", "XDG_", "TORPOR_", "GO", "SSL_", "REQUESTS_CA")


def daemon_argv() -> tuple[str, ...]:
    """Give the command that runs torpord."""
    return (sys.executable, "-P", "-m", "torpor.daemon")


@asynccontextmanager
async def start_lock(paths: Paths) -> AsyncIterator[None]:
    """Be the only one who starts the daemon. The lock goes with the process that holds it.

    Raises:
        BackendUnavailable: somebody else has been starting it for too long.
        ConfigError: the runtime folder is not ours.
    """
    await asyncio.to_thread(private_folder, paths.runtime)
    flags = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(paths.start_lock, flags, 0o600)
    try:
        try:
            async with asyncio.timeout(START_TIMEOUT_S + 5):
                while not _locked(fd):  # noqa: ASYNC110 - another process
                    await asyncio.sleep(0.02)
        except TimeoutError as exc:
            raise BackendUnavailable(
                "another process has been starting torpord for too long", hint=f"see {paths.log}"
            ) from exc
        yield
    finally:
        os.close(fd)


async def daemon_ended(paths: Paths) -> None:
    """Return once no daemon holds its lock; the caller bounds the wait."""
    try:
        fd = os.open(paths.daemon_lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        while not _locked(fd):  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.02)
    finally:
        os.close(fd)


async def start_daemon(paths: Paths, argv: Sequence[str]) -> None:
    """Run ``argv`` in the background, return once it answers requests.

    The caller holds the start lock. If cancelled, the daemon may still come up: it is idle then
    and ends by itself.

    Raises:
        SandboxError: its own account of why it could not start.
        BackendUnavailable: it gave none.
    """
    await asyncio.to_thread(private_folder, paths.state)
    errors = paths.state / "torpord.err"
    read_fd, write_fd = os.pipe()
    try:
        starter = await asyncio.to_thread(_spawn, argv, write_fd, errors)
    except BaseException:
        os.close(read_fd)
        raise
    finally:
        os.close(write_fd)
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            told = await _read_to_end(read_fd)
    except TimeoutError as exc:
        raise BackendUnavailable(
            f"torpord did not come up in {START_TIMEOUT_S:g} s", hint=f"see {paths.log}"
        ) from exc
    finally:
        # It has forked the daemon and ended, or failed: either way it is over in a moment.
        await run_to_end(asyncio.to_thread(starter.wait), within_s=START_TIMEOUT_S, name="starter")
    _check(told, errors)


def _spawn(argv: Sequence[str], ready_fd: int, errors: Path) -> subprocess.Popen[bytes]:
    try:
        with errors.open("wb") as stderr:
            return subprocess.Popen(
                [*argv, "--detach", "--ready-fd", str(ready_fd)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                pass_fds=[ready_fd],
                start_new_session=True,
                cwd="/",
                env=daemon_environment(process_environment()),
            )
    except OSError as exc:
        raise BackendUnavailable(f"torpord cannot be run: {exc}") from exc


def daemon_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Give what torpord needs of ``environ``: it is nobody's place for a server's tokens. Pure."""
    return {
        name: value
        for name, value in environ.items()
        if name in _ENVIRONMENT or name.startswith(_PREFIXES)
    }


async def _read_to_end(fd: int) -> bytes:
    reader = asyncio.StreamReader()
    pipe = os.fdopen(fd, "rb", 0)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), pipe
    )
    try:
        return await reader.read()
    finally:
        transport.close()


def _check(told: bytes, errors: Path) -> None:
    """Return if the daemon said that it is ready. Raises what it said otherwise."""
    try:
        body = json.loads(told)
    except ValueError:
        tail = errors.read_text(errors="replace")[-1500:].strip() if errors.exists() else ""
        raise BackendUnavailable(
            f"torpord ended before it was ready{': ' + tail if tail else ''}"
        ) from None
    if body != {"ready": True}:
        raise from_json(body)


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
