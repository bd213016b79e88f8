"""The private connection of guest and kernel: five loopback ports, and the file that names them.

::

    {"transport": "tcp", "ip": "127.0.0.1", "shell_port": int, "iopub_port": int,
     "stdin_port": int, "control_port": int, "hb_port": int, "key": str,
     "signature_scheme": "hmac-sha256", "kernel_name": str}
"""

import _socket
import os

from torpor_guest.lean_json import dumps

_NAMES = ("shell", "iopub", "stdin", "control", "hb")
# Below every system's ephemeral range (Linux 32768+, gVisor 16000+). In that range a connect to a
# port where nobody listens yet can pick the same number as its source: it then connects to itself
# and takes the port away from the kernel.
_FIRST_PORT, _LAST_PORT = 10240, 15999


class Connection:
    """Where one kernel process listens; ``path`` is its connection file (mode 0600)."""

    __slots__ = ("path", "ports")

    def __init__(self, path: str, ports: dict[str, int]) -> None:
        self.path = path
        self.ports = ports

    def remove(self) -> None:
        """Delete the file; fine when user code has deleted it before."""
        try:  # noqa: SIM105 (contextlib is not loaded yet)
            os.unlink(self.path)
        except OSError:
            pass


def make_connection(folder: str, key: str, kernel_name: str) -> Connection:
    """Choose five free ports and write the connection file into ``folder`` (made 0700 if missing).

    Raises:
        OSError: the folder cannot be made or written, or no port is free.
    """
    ports = dict(zip(_NAMES, _free_ports(len(_NAMES)), strict=True))
    body: dict[str, object] = {f"{name}_port": port for name, port in ports.items()}
    body |= {"transport": "tcp", "ip": "127.0.0.1", "signature_scheme": "hmac-sha256"}
    body |= {"key": key, "kernel_name": kernel_name}
    os.makedirs(folder, mode=0o700, exist_ok=True)
    path = f"{folder}/kernel-{os.urandom(8).hex()}.json"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, dumps(body))
    finally:
        os.close(fd)
    return Connection(path, ports)


def _free_ports(count: int) -> list[int]:
    found: list[int] = []
    for _ in range(200):
        port = _FIRST_PORT + int.from_bytes(os.urandom(4), "big") % (_LAST_PORT - _FIRST_PORT)
        probe = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        finally:
            probe.close()
        if port not in found:
            found.append(port)
        if len(found) == count:
            return found
    raise OSError("no free loopback port for the kernel")
