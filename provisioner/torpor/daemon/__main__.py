"""``python -m torpor.daemon``: run torpord, in the foreground or detached."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torpor.backends.base import Backend
    from torpor.config import SettingsSource
    from torpor.daemon.app import Daemon
    from torpor.paths import Paths

    MakeBackend = Callable[[SettingsSource, Paths], Backend]

_LEAVE_S = 3.0


def main(argv: Sequence[str] | None = None, *, make_backend: MakeBackend | None = None) -> int:
    """Run the daemon until it ends; give the exit code.

    With ``--ready-fd N`` one JSON line goes to that descriptor: ``{"ready": true}`` once requests
    are answered, or the error that prevented it.
    """
    parser = argparse.ArgumentParser(prog="torpord", description="Owns the sandboxes of one user.")
    parser.add_argument("--detach", action="store_true", help="run in the background")
    parser.add_argument("--ready-fd", type=int, metavar="N", help="tell the outcome there")
    options = parser.parse_args(argv)
    if options.detach and os.fork():  # before anything heavy is imported
        return 0
    os.umask(0o022)  # the same for every user; what is private lies in folders of mode 0700
    from torpor.errors import SandboxError

    tell = _Teller(options.ready_fd)
    try:
        _run(make_backend or _local_backend, tell.ready)
    except SandboxError as exc:
        tell.failed(exc.to_json())
        print(f"torpord: {exc}", file=sys.stderr)
        return 1
    except BaseException as exc:
        error = {"code": "unavailable", "message": f"torpord failed: {exc!r}", "hint": ""}
        tell.failed({"error": error})
        raise
    return 0


def _run(make_backend: MakeBackend, on_ready: Callable[[], None]) -> None:
    import asyncio

    from torpor.config import SettingsSource, user_paths
    from torpor.daemon.app import Daemon
    from torpor.daemon.listen import take_lock
    from torpor.daemon.logs import start_logging
    from torpor.paths import private_folder

    paths = user_paths()
    private_folder(paths.runtime)
    private_folder(paths.state)
    lock = take_lock(paths.daemon_lock, within_s=10.0)
    try:
        source = SettingsSource(paths)
        settings = source.read().daemon
        handler = start_logging(paths.log, max_bytes=settings.log_max_bytes, keep=settings.log_keep)
        try:
            daemon = Daemon(paths, source, settings, make_backend, _starter(paths))
            asyncio.run(_to_the_end(daemon, on_ready))
        finally:
            handler.close()
    finally:
        os.close(lock)


async def _to_the_end(daemon: Daemon, on_ready: Callable[[], None]) -> None:
    """Run a daemon; what does not end with it, soon, is left as a ``kill -9`` would leave it.

    A task that is cancelled while it makes a process may never end, and asyncio would wait for it.
    """
    import asyncio

    from torpor.daemon.logs import log

    await daemon.run(on_ready)
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for each in left:
        each.cancel()
    if left:
        _, stuck = await asyncio.wait(left, timeout=_LEAVE_S)
        if stuck:
            log("left behind", tasks=sorted(each.get_name() for each in stuck))
            os._exit(0)


def _starter(paths: Paths) -> dict[str, Any]:
    """Give how another one is started just as this one was."""
    from torpor.config import process_environment
    from torpor.start import daemon_environment

    program = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv) + 1]
    argv = [sys.executable, *program]
    env = daemon_environment(process_environment())
    return {"argv": argv, "env": env, "lock": str(paths.start_lock)}


def _local_backend(source: SettingsSource, paths: Paths) -> Backend:
    from torpor.daemon.backend import make_backend

    return make_backend(source, paths)


class _Teller:
    """Tells the starting client how the start went: once, then the descriptor is closed."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        if fd is not None:
            os.set_inheritable(fd, False)

    def ready(self) -> None:
        self._tell({"ready": True})

    def failed(self, error: dict[str, Any]) -> None:
        self._tell(error)

    def _tell(self, body: dict[str, Any]) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            with os.fdopen(fd, "w") as pipe:
                pipe.write(json.dumps(body) + "\n")


if __name__ == "__main__":
    sys.exit(main())
