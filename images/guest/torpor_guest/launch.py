"""One kernel process with its connection file: made together, removed together."""

from torpor_guest.boot import StartParams
from torpor_guest.connection import Connection, make_connection
from torpor_guest.spawn import Spawned, SpawnError, spawn


class Launched:
    """A kernel process that was started, and where it will listen."""

    __slots__ = ("connection", "process")

    def __init__(self, connection: Connection, process: Spawned) -> None:
        self.connection = connection
        self.process = process


def launch(params: StartParams, folder: str, key: str) -> Launched:
    """Start ``params`` with a fresh connection file in ``folder``.

    Raises:
        SpawnError: it could not be started; nothing is left behind.
    """
    try:
        connection = make_connection(folder, key, params.kernel_name)
    except OSError as exc:
        raise SpawnError(f"cannot write the kernel's connection file: {exc}") from exc
    try:
        argv = kernel_argv(params.argv, connection.path)
        return Launched(connection, spawn(argv, params.env, params.cwd))
    except BaseException:
        connection.remove()
        raise


def kernel_argv(argv: tuple[str, ...], connection_file: str) -> tuple[str, ...]:
    """Give the argv to execute.

    ipykernel sleeps for half a millisecond at the end of every cell, in the hope that output then
    arrives before the reply. Both go through one thread of ours, so the hope costs time and buys
    nothing.
    """
    words = tuple(word.replace("{connection_file}", connection_file) for word in argv)
    launcher = (
        "ipykernel_launcher" in words and words[words.index("ipykernel_launcher") - 1] == "-m"
    )
    if launcher and not any("_execute_sleep" in word for word in words):
        words += ("--Kernel._execute_sleep=0",)
    return words
