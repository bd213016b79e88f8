"""Run a cell and collect everything that belongs to it, through the public jupyter_client API."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from jupyter_client.blocking import BlockingKernelClient


@dataclass(slots=True)
class Ran:
    """One executed cell: its reply content, its text per stream, and all its iopub messages."""

    reply: dict[str, Any]
    stdout: str = ""
    stderr: str = ""
    messages: list[dict[str, Any]] = field(default_factory=list)

    @property
    def error(self) -> str | None:
        return self.reply.get("ename")

    @property
    def result(self) -> str | None:
        for message in self.messages:
            if message["msg_type"] == "execute_result":
                return str(message["content"]["data"]["text/plain"])
        return None

    def of_type(self, msg_type: str) -> list[dict[str, Any]]:
        return [message for message in self.messages if message["msg_type"] == msg_type]


def drain(kc: BlockingKernelClient, msg_id: str, ran: Ran, timeout_s: float) -> None:
    """Collect iopub until the idle status that ends ``msg_id``."""
    deadline = time.monotonic() + timeout_s
    while True:
        message = kc.get_iopub_msg(timeout=max(0.01, deadline - time.monotonic()))
        if message["parent_header"].get("msg_id") != msg_id:
            continue
        ran.messages.append(message)
        content = message["content"]
        if message["msg_type"] == "stream":
            if content["name"] == "stdout":
                ran.stdout += content["text"]
            else:
                ran.stderr += content["text"]
        if message["msg_type"] == "status" and content["execution_state"] == "idle":
            return


def reply_to(kc: BlockingKernelClient, msg_id: str, timeout_s: float) -> dict[str, Any]:
    """Give the shell reply whose parent is ``msg_id``, dropping older ones."""
    deadline = time.monotonic() + timeout_s
    while True:
        reply = kc.get_shell_msg(timeout=max(0.01, deadline - time.monotonic()))
        if reply["parent_header"].get("msg_id") == msg_id:
            return dict(reply["content"])


def run(
    kc: BlockingKernelClient, code: str, *, timeout_s: float = 60, answers: tuple[str, ...] = ()
) -> Ran:
    """Execute ``code``; each of ``answers`` is given to one input request, in order."""
    msg_id = kc.execute(code, allow_stdin=bool(answers))
    for answer in answers:
        request = kc.get_stdin_msg(timeout=timeout_s)
        assert request["msg_type"] == "input_request"
        kc.input(answer)
    reply = reply_to(kc, msg_id, timeout_s)
    ran = Ran(reply)
    drain(kc, msg_id, ran, timeout_s)
    return ran


def tell(kc: BlockingKernelClient, code: str, *, timeout_s: float = 60) -> None:
    """Execute ``code``; an error fails the test."""
    ran = run(kc, code, timeout_s=timeout_s)
    assert ran.error is None, f"{ran.error}: {ran.reply.get('evalue')}"


def value(kc: BlockingKernelClient, code: str, *, timeout_s: float = 60) -> str:
    """Execute ``code`` and give the text of its last expression; an error fails the test."""
    ran = run(kc, code, timeout_s=timeout_s)
    assert ran.error is None, f"{ran.error}: {ran.reply.get('evalue')}"
    assert ran.result is not None, f"no result: {ran.messages}"
    return ran.result
