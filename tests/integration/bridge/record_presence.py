"""Record what a bare ipykernel says when it is only looked at: ``python -m …record_presence > FILE``.

Per request on control: the frames of the reply and of what is published, without what differs from
message to message. ``content`` is null where it is the kernel's own affair.
"""

from __future__ import annotations

import json
import time
from typing import Any

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

REQUESTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("kernel_info", {}),
    ("comm_info", {}),
    ("interrupt", {}),
    ("shutdown", {"restart": False}),
)
DELIMITER = b"<IDS|MSG>"


def frames(parts: list[bytes]) -> dict[str, Any]:
    """Give one message as it is compared."""
    cut = parts.index(DELIMITER)
    header, metadata, content = (json.loads(parts[cut + at]) for at in (2, 4, 5))
    topics = [".".join(part.decode().split(".")[2:]) for part in parts[:cut]]
    kind = header["msg_type"]
    own = kind in ("kernel_info_reply", "comm_info_reply")
    return {
        "topics": topics,
        "msg_type": kind,
        "header": list(header),
        "metadata": metadata,
        "content": None if own else content,
    }


def record(client: BlockingKernelClient) -> dict[str, Any]:
    """Ask a kernel that is ready; the last request ends it."""
    found = {}
    control, iopub = client.control_channel.socket, client.iopub_channel.socket
    for kind, content in REQUESTS:
        client.session.send(control, f"{kind}_request", content)
        time.sleep(1)
        found[kind] = {"control": drain(control), "iopub": drain(iopub)}
    return found


def drain(socket: Any) -> list[dict[str, Any]]:
    messages = []
    while socket.poll(0):
        messages.append(frames(socket.recv_multipart()))
    return messages


def main() -> None:
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel()
    client = manager.blocking_client()
    client.start_channels()
    client.wait_for_ready()
    time.sleep(1)
    drain(client.iopub_channel.socket)
    print(json.dumps(record(client), indent=1))
    client.stop_channels()
    manager.shutdown_kernel(now=True)


if __name__ == "__main__":
    main()
