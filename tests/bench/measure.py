"""The same measurements for any kernel: start, execute, prints, buffers. Times in seconds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager

ECHO = """
from comm import create_comm
def _target(comm, message):
    @comm.on_msg
    def _(m):
        n = m['content']['data'].get('send', 0)
        comm.send({'got': sum(len(b) for b in m['buffers'])}, buffers=[bytes(n)] if n else None)
get_ipython().kernel.comm_manager.register_target('bench', _target)
"""


def start(kernel_name: str, cwd: Path) -> tuple[KernelManager, BlockingKernelClient, float]:
    """Start a kernel and execute one cell; give the time from the call to that first execute_reply."""
    began = time.perf_counter()
    km = KernelManager(kernel_name=kernel_name)
    km.start_kernel(cwd=str(cwd))
    kc = km.client()
    kc.start_channels()
    kc.wait_for_ready(timeout=60)
    execute(kc, "1 + 1")
    return km, kc, time.perf_counter() - began


def stop(km: KernelManager, kc: BlockingKernelClient) -> None:
    kc.stop_channels()
    km.shutdown_kernel(now=True)


def execute(kc: BlockingKernelClient, code: str, *, timeout_s: float = 120) -> list[dict]:
    """Execute and give all iopub messages up to idle; the reply has been read too."""
    msg_id = kc.execute(code, allow_stdin=False)
    got = []
    while True:
        message = kc.get_iopub_msg(timeout=timeout_s)
        if message["parent_header"].get("msg_id") != msg_id:
            continue
        got.append(message)
        content = message["content"]
        if message["msg_type"] == "status" and content["execution_state"] == "idle":
            break
    while kc.get_shell_msg(timeout=timeout_s)["parent_header"].get("msg_id") != msg_id:
        pass
    return got


def timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def round_trips(kc: BlockingKernelClient, count: int) -> list[float]:
    """Give ``count`` execute round trips of ``pass`` (until reply and idle)."""
    return [timed(lambda: execute(kc, "pass")) for _ in range(count)]


def prints(kc: BlockingKernelClient, count: int) -> float:
    """Give the time of ``count`` flushed prints until the last one and the reply are here."""
    got: list[dict] = []
    code = f"for i in range({count}): print(i, flush=True)"
    took = timed(lambda: got.extend(execute(kc, code)))
    text = "".join(m["content"]["text"] for m in got if m["msg_type"] == "stream")
    if text != "".join(f"{i}\n" for i in range(count)):
        raise AssertionError("output was lost or out of order")
    return took


def buffers(kc: BlockingKernelClient, nbytes: int) -> tuple[float, float]:
    """Give the times to send ``nbytes`` in one binary buffer to the kernel, and to get as many back."""
    execute(kc, ECHO)
    session = kc.session
    comm = {"comm_id": "bench", "target_name": "bench", "data": {}}
    kc.shell_channel.send(session.msg("comm_open", comm))
    payload = np.random.default_rng(0).bytes(nbytes)

    def ask(send: int, parts: list[bytes]) -> dict:
        message = session.msg("comm_msg", {"comm_id": "bench", "data": {"send": send}})
        session.send(kc.shell_channel.socket, message, buffers=parts)
        while True:
            got = kc.get_iopub_msg(timeout=120)
            if got["msg_type"] == "comm_msg":
                return dict(got)

    began = time.perf_counter()
    reply = ask(0, [payload])
    there = time.perf_counter() - began
    if reply["content"]["data"]["got"] != nbytes:
        raise AssertionError(f"the kernel got {reply['content']['data']['got']} bytes")
    began = time.perf_counter()
    reply = ask(nbytes, [])
    back = time.perf_counter() - began
    if len(reply["buffers"][0]) != nbytes:
        raise AssertionError("the buffer came back short")
    return there, back


def median(values: list[float]) -> float:
    return statistics.median(values)
