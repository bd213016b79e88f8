"""Run a cell and collect everything that belongs to it, through the public jupyter_client API."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from jupyter_client.blocking import BlockingKernelClient

_GO = "print('go', flush=True)\n"


@dataclass(slots=True)
class Ran:
    """One executed cell: its reply content, its text per stream, and all its iopub messages."""

    reply: dict[str, Any]
    stdout: str = ""
    stderr: str = ""
    messages: list[dict[str, Any]] = field(default_factory=list)

    @property
    def error(self) -> str | None:
        """What went wrong; of a cell that never ran there is only its status, like "aborted"."""
        if self.reply.get("status") == "ok":
            return None
        return self.reply.get("ename") or self.reply.get("status")

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


def ended(kc: BlockingKernelClient, msg_id: str, timeout_s: float = 60) -> Ran:
    """Wait for the end of an executed cell, its idle status included; give the cell.

    A cell that comes between an error's reply and that is aborted, and only an idle kernel may sleep.
    """
    ran = Ran(reply_to(kc, msg_id, timeout_s))
    drain(kc, msg_id, ran, timeout_s)
    return ran


def begin(kc: BlockingKernelClient, code: str, *, timeout_s: float = 60) -> str:
    """Execute ``code``; give the message's id once the cell runs, before which no interrupt means it."""
    msg_id = kc.execute(marked(code))
    wait_begun(kc, msg_id, timeout_s)
    return msg_id


def marked(code: str) -> str:
    """Give ``code`` for which ``wait_begun`` can wait."""
    return _GO + code


def wait_begun(kc: BlockingKernelClient, msg_id: str, timeout_s: float = 60) -> None:
    """Return once a ``marked`` cell runs. Its iopub till then is gone."""
    deadline = time.monotonic() + timeout_s
    while True:
        message = kc.get_iopub_msg(timeout=max(0.01, deadline - time.monotonic()))
        if message["parent_header"].get("msg_id") != msg_id or message["msg_type"] != "stream":
            continue
        if message["content"]["text"].startswith("go"):
            return


def wait_ready(kc: BlockingKernelClient, within_s: float = 60) -> None:
    """Return once a kernel answers a client that no manager has made.

    To such a client a kernel is dead that misses one heartbeat and says nothing for a second. On a busy
    machine that happens to a living one, so it is asked again.
    """
    deadline = time.monotonic() + within_s
    while True:
        try:
            kc.wait_for_ready(timeout=max(1.0, deadline - time.monotonic()))
            return
        except RuntimeError:
            if time.monotonic() >= deadline:
                raise


def run(
    kc: BlockingKernelClient, code: str, *, timeout_s: float = 60, answers: tuple[str, ...] = ()
) -> Ran:
    """Execute ``code``; each of ``answers`` is given to one input request, in order."""
    msg_id = kc.execute(code, allow_stdin=bool(answers))
    for answer in answers:
        request = kc.get_stdin_msg(timeout=timeout_s)
        assert request["msg_type"] == "input_request"
        kc.input(answer)
    return ended(kc, msg_id, timeout_s)


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
