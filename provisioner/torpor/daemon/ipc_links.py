"""The file names of ``ipc`` kernels.

The bridge binds its sockets in our private runtime folder, and the paths that the client asked for
are links to them. jupyter_client unlinks a kernel's ipc files on every clean-up, a restart
included: with links that costs nobody anything, they are simply made again, and the private paths
are always short enough for a socket address.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import replace
from pathlib import Path

from torpor.api import CHANNELS, Endpoints
from torpor.errors import ConfigError


def choose_ports(client: Endpoints) -> Endpoints:
    """Give ``client`` with every 0 replaced by the lowest number whose path is still free."""
    taken = {port for port in client.ports.values() if port}
    ports: dict[str, int] = {}
    number = 0
    for name in CHANNELS:
        port = client.ports[name]
        while not port:
            number += 1
            if number not in taken and not os.path.lexists(f"{client.ip}-{number}"):
                port = number
        taken.add(port)
        ports[name] = port
    return client.with_ports(ports)


def private_endpoints(client: Endpoints, kernel_id: str, folder: Path) -> Endpoints:
    """Give what the bridge is to bind for ``client``."""
    if client.transport != "ipc":
        return client
    return replace(client, ip=str(_prefix(kernel_id, folder)))


def make_links(client: Endpoints, kernel_id: str, folder: Path) -> None:
    """Make, or make again, the paths that the client knows.

    Raises:
        ConfigError: something else is in the way, or the folder cannot be written.
    """
    if client.transport != "ipc":
        return
    for port in client.ports.values():
        target, link = f"{_prefix(kernel_id, folder)}-{port}", f"{client.ip}-{port}"
        try:
            if os.path.islink(link) and os.readlink(link) == target:
                continue
            os.symlink(target, link)
        except OSError as exc:
            raise ConfigError(
                f"cannot make the ipc path {link}: {exc.strerror}", hint="is it in use?"
            ) from exc


def remove_links(client: Endpoints, kernel_id: str, folder: Path) -> None:
    """Remove the links that are ours and the sockets behind them; what never was is fine."""
    if client.transport != "ipc":
        return
    for port in client.ports.values():
        target, link = f"{_prefix(kernel_id, folder)}-{port}", f"{client.ip}-{port}"
        with contextlib.suppress(OSError):
            if os.readlink(link) == target:
                os.unlink(link)
        with contextlib.suppress(OSError):
            os.unlink(target)


def _prefix(kernel_id: str, folder: Path) -> Path:
    return folder / hashlib.sha256(kernel_id.encode()).hexdigest()[:16]
