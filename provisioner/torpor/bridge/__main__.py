"""``python -m torpor.bridge --runtime-dir DIR --log FILE``: the bridge process of one user.

``--detach`` returns 0 as soon as the bridge listens and leaves it running as a child of init, in a
session of its own. The exit status is 3 when another bridge of the same folder runs already.
"""

from __future__ import annotations

import argparse
import fcntl
import gc
import logging
import os
import resource
import signal
import sys
from pathlib import Path

from torpor.bridge.protocol import EXIT_ALREADY_RUNNING
from torpor.bridge.reactor import READ
from torpor.bridge.server import IDLE_EXIT_S, Server


def main(argv: list[str] | None = None) -> int:
    """Serve until idle or told to stop; see the module's text."""
    parser = argparse.ArgumentParser(prog="python -m torpor.bridge")
    parser.add_argument("--runtime-dir", type=Path, required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--idle-exit-s", type=float, default=IDLE_EXIT_S)
    parser.add_argument("--detach", action="store_true")
    options = parser.parse_args(argv)
    options.runtime_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(
        options.runtime_dir / "bridge.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
    )
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return EXIT_ALREADY_RUNNING
    if not options.detach:
        return _serve(options, ready_fd=-1)
    ready_read, ready_write = os.pipe()
    if os.fork():  # before libzmq has threads; the lock goes with the child
        os.close(ready_write)
        return 0 if os.read(ready_read, 1) else 1
    os.close(ready_read)
    os.setsid()
    return _serve(options, ready_fd=ready_write)


def _serve(options: argparse.Namespace, ready_fd: int) -> int:
    logging.basicConfig(
        filename=options.log, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
    )
    _raise_fd_limit()
    server = Server(options.runtime_dir, idle_exit_s=options.idle_exit_s)
    _stop_on_signals(server)
    gc.collect()
    gc.freeze()  # what exists now stays: keep it out of every later collection
    logging.info("bridge %d serves %s", os.getpid(), options.runtime_dir)
    if ready_fd >= 0:
        os.write(ready_fd, b"1")
        os.close(ready_fd)
    server.run()
    logging.info("bridge %d ends", os.getpid())
    return 0


def _stop_on_signals(server: Server) -> None:
    """SIGTERM and SIGINT end the loop; the pipe wakes it, since a handler alone would not."""
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server.reactor.watch(wake_read, READ, server, server.reactor.stop)


def _raise_fd_limit() -> None:
    """A kernel with clients takes some 20 descriptors: 300 of them pass the usual 1,024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main())
