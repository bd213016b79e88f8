"""One kernel process with its connection file: made together, removed together."""

import os

from torpor_guest.boot import StartParams
from torpor_guest.connection import Connection, make_connection
from torpor_guest.spawn import Spawned, SpawnError, spawn

_LAUNCHER = "ipykernel_launcher"
_QUICK = __file__.rpartition("/")[0] + "/quick_ipykernel.py"
# A kernelspec or template that sets this variable gets ipykernel exactly as it is installed.
PLAIN_VARIABLE = "TORPOR_PLAIN_IPYKERNEL"
# Tells quick_ipykernel.py which descriptor is its end of the line; gone before user code runs.
LINE_VARIABLE = "TORPOR_CLAIM_FD"


class Launched:
    """A kernel process that was started, and where it will listen."""

    __slots__ = ("connection", "line_fd", "process")

    def __init__(self, connection: Connection, process: Spawned, line_fd: int = -1) -> None:
        self.connection = connection
        self.process = process
        self.line_fd = line_fd


def launch(params: StartParams, folder: str, key: str, *, with_line: bool = False) -> Launched:
    """Start ``params`` with a fresh connection file in ``folder``.

    ``with_line`` asks for a line into the kernel (``kernel_line``), which ipykernel alone can have.

    Raises:
        SpawnError: it could not be started; nothing is left behind.
    """
    try:
        connection = make_connection(folder, key, params.kernel_name)
    except OSError as exc:
        raise SpawnError(f"cannot write the kernel's connection file: {exc}") from exc
    try:
        plain = PLAIN_VARIABLE in params.env
        argv = kernel_argv(params.argv, connection.path, plain=plain)
        if with_line and _QUICK in argv:
            return _launch_with_line(connection, argv, params)
        return Launched(connection, spawn(argv, params.env, params.cwd))
    except BaseException:
        connection.remove()
        raise


def _launch_with_line(
    connection: Connection, argv: tuple[str, ...], params: StartParams
) -> Launched:
    from torpor_guest.kernel_line import line_pair

    ours, theirs = line_pair()
    try:
        env = {**params.env, LINE_VARIABLE: "3"}
        return Launched(connection, spawn(argv, env, params.cwd, theirs), ours)
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(theirs)


def kernel_argv(
    argv: tuple[str, ...], connection_file: str, *, plain: bool = False
) -> tuple[str, ...]:
    """Give the argv to execute.

    ``python -m ipykernel_launcher`` goes through ``quick_ipykernel``, which takes thread wake-ups out of
    its output, unless ``plain``. It also sleeps for half a millisecond at the end of every cell, in the
    hope that output then arrives before the reply; both go through one thread of ours, so that costs time
    and buys nothing.
    """
    words = tuple(word.replace("{connection_file}", connection_file) for word in argv)
    if _LAUNCHER not in words or plain:
        return words
    at = words.index(_LAUNCHER)
    if words[at - 1] != "-m":
        return words
    if not any("_execute_sleep" in word for word in words):
        words += ("--Kernel._execute_sleep=0",)
    return (*words[: at - 1], _QUICK, *words[at + 1 :])
