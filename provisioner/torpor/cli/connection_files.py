"""Connection files of kernels that a command has made: nobody's process owns those, so nobody else
removes the files.

Each has a record beside torpord's state, named after the kernel, that says where its file is: the
folder of connection files is Jupyter's, and what others wrote there is theirs.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from jupyter_core.paths import jupyter_runtime_dir, secure_write

from torpor.errors import ConfigError
from torpor.paths import Paths, private_folder


def write_connection_file(paths: Paths, state: Mapping[str, Any], key: str) -> str:
    """Write the file for a kernel of that ``KernelState`` and key; give its path.

    Raises ConfigError: it cannot be written; nothing of it is left.
    """
    kernel_id = str(state["kernel_id"])
    path = os.path.join(jupyter_runtime_dir(), f"kernel-{kernel_id}.json")
    ports = {f"{name}_port": port for name, port in state["client"]["ports"].items()}
    body = {
        "ip": "127.0.0.1",
        "transport": "tcp",
        "key": key,
        "signature_scheme": "hmac-sha256",
        "kernel_name": state["kernel_name"],
    }
    try:
        private_folder(paths.state)
        (private_folder(_records(paths)) / kernel_id).write_text(path)
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with secure_write(path) as file:
            file.write(json.dumps(ports | body, indent=2))
    except OSError as exc:
        remove_connection_files(paths, [kernel_id])
        raise ConfigError(f"cannot write {path}: {exc.strerror or exc}") from exc
    return path


def kernels_with_files(paths: Paths) -> list[str]:
    """Give the kernels whose connection files a command has written and nobody removed."""
    try:
        return sorted(each.name for each in _records(paths).iterdir())
    except OSError:
        return []


def remove_connection_files(paths: Paths, kernel_ids: Collection[str]) -> None:
    """Remove what was written for these kernels; nothing is fine, and so is what cannot be removed."""
    for kernel_id in kernel_ids:
        record = _records(paths) / kernel_id
        try:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                Path(record.read_text()).unlink()
            record.unlink()
        except OSError:
            continue  # the next command tries again


def _records(paths: Paths) -> Path:
    return paths.state / "connection-files"
