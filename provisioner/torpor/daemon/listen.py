"""The daemon's lock and its Unix socket, in a folder that nobody else can enter."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import time
from pathlib import Path

from torpor.errors import Busy, ConfigError

_LONGEST_ADDRESS_BYTES = 107  # sizeof(sockaddr_un.sun_path) - 1


def take_lock(path: Path, *, within_s: float) -> int:
    """Give the descriptor that holds the daemon's lock until it is closed or the process ends.

    Waits while a former daemon finishes. Raises Busy when another one holds it for longer than
    that.
    """
    fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    give_up_at = time.monotonic() + within_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > give_up_at:
                os.close(fd)
                raise Busy("another torpord runs already", hint=f"it holds {path}") from None
            time.sleep(0.02)
        else:
            return fd


def listen(path: Path) -> socket.socket:
    """Give a listening socket at ``path``, 0600. Only the holder of the lock may call this.

    A socket that a dead daemon left behind is replaced. Raises ConfigError: the path is too long,
    or something that is not a socket is in the way.
    """
    if len(os.fsencode(path)) > _LONGEST_ADDRESS_BYTES:
        raise ConfigError(
            f"the socket path {path} is longer than {_LONGEST_ADDRESS_BYTES} bytes",
            hint="choose a shorter TORPOR_HOME",
        )
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise ConfigError(f"{path} is in the way: it is not a socket", hint="remove it")
        os.unlink(path)
    except FileNotFoundError:
        pass
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        sock.bind(os.fspath(path))
        sock.listen(128)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    finally:
        os.umask(before)
    return sock
