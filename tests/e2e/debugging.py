"""A debugger, as far as tests need one: over the control channel, as JupyterLab does it."""

from __future__ import annotations

import time
from typing import Any

from jupyter_client.blocking import BlockingKernelClient


def debug(kc: BlockingKernelClient, command: str, **arguments: object) -> dict[str, Any]:
    """Ask the debugger for ``command`` and give its answer's body; no success fails the test."""
    request = {"type": "request", "command": command, "seq": 1, "arguments": arguments}
    message = kc.session.msg("debug_request", request)
    kc.control_channel.send(message)
    ends_at = time.monotonic() + 30
    while True:
        reply = kc.get_control_msg(timeout=max(0.01, ends_at - time.monotonic()))
        if reply["parent_header"].get("msg_id") == message["header"]["msg_id"]:
            break
    assert reply["content"]["success"], reply["content"]
    return dict(reply["content"].get("body") or {})


def attach(kc: BlockingKernelClient) -> None:
    """Start the kernel's debugger."""
    debug(kc, "initialize", clientID="tests", adapterID="", linesStartAt1=True)
    debug(kc, "attach", justMyCode=True)


def set_breakpoint(kc: BlockingKernelClient, code: str, line: int) -> None:
    """Have ``code`` stop at ``line`` whenever it is executed."""
    path = debug(kc, "dumpCell", code=code)["sourcePath"]
    lines = [{"line": line}]
    debug(kc, "setBreakpoints", source={"path": path}, breakpoints=lines, sourceModified=False)
    debug(kc, "configurationDone")


def stopped_thread(kc: BlockingKernelClient) -> int:
    """Give the thread that stops, once it has."""
    while True:
        message = kc.get_iopub_msg(timeout=30)
        if message["msg_type"] == "debug_event" and message["content"].get("event") == "stopped":
            return int(message["content"]["body"]["threadId"])
