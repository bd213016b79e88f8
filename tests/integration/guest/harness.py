"""The host's end of one real guest process, for tests: FIFOs, a real Link, a client's view."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import torpor.link
import torpor_guest
from jupyter_client.session import Session
from torpor.link import Channel, Link, Message, Opened, Role
from torpor.link.fifo import FifoStream

from tests.host_kernels import host_env

KEY = "0123456789abcdef0123456789abcdef"
IPYKERNEL = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
CHANNELS = (Channel.CONTROL, Channel.SHELL, Channel.STDIN, Channel.IOPUB)


def kernel_env(**more: str) -> dict[str, str]:
    """Give the whole environment of a test's kernel."""
    return host_env(LANG="C.UTF-8", **more)


def start_params(argv: list[str] | None = None, **changes: Any) -> dict[str, Any]:
    """Give StartParams for ipykernel, or for ``argv``."""
    params = {
        "argv": argv or IPYKERNEL,
        "env": kernel_env(),
        "cwd": "/tmp",
        "start_timeout_s": 30,
        "kernel_name": "python3",
    }
    return {**params, **changes}


def sandbox_tree(folder: Path) -> Path:
    """Lay out the guest's code as in a sandbox: the guest, and of torpor nothing but the link."""
    (folder / "torpor").mkdir(parents=True)
    guest, link = torpor_guest.__path__[0], torpor.link.__path__[0]
    (folder / "torpor_guest").symlink_to(guest)
    (folder / "torpor" / "link").symlink_to(link)
    return folder / "torpor_guest"


class Host:
    """Starts a guest and talks to it. Everything received is kept in ``events`` and ``messages``."""

    def __init__(self, folder: Path, start: dict[str, Any] | None, **boot: Any) -> None:
        self._folder = folder
        self._ident = 0
        self._answers: dict[int, dict[str, Any]] = {}
        self.session = Session(key=KEY.encode())
        self.events: list[dict[str, Any]] = []
        self.messages: dict[Channel, list[list[bytes]]] = {channel: [] for channel in CHANNELS}
        for name in ("to_guest", "from_guest"):
            os.mkfifo(folder / name, 0o600)
        body = {"version": 1, "key": KEY, "start": start, "stderr_tail_bytes": 8192, **boot}
        (folder / "boot.json").write_text(json.dumps(body))
        self.stderr_path = folder / "guest_stderr"
        self.connect()
        self.process = self._spawn()

    def _spawn(self) -> subprocess.Popen[bytes]:
        fds = [os.open(self._folder / name, os.O_RDWR) for name in ("to_guest", "from_guest")]
        argv = [sys.executable, "-I", "-B", "-S", str(sandbox_tree(self._folder / "opt"))]
        try:
            with self.stderr_path.open("wb") as stderr:
                return subprocess.Popen(
                    [*argv, str(self._folder / "boot.json")],
                    stdin=fds[0],
                    stdout=fds[1],
                    stderr=stderr,
                )
        finally:
            for fd in fds:
                os.close(fd)

    def connect(self) -> None:
        """Open the FIFOs and start a session that remembers nothing, as a new host process would."""
        self.stream = FifoStream.open(self._folder / "from_guest", self._folder / "to_guest")
        self.link = Link(Role.HOST)
        self.opened = 0
        self.link.connect()

    def die(self) -> None:
        """Vanish as a killed process would: nothing is flushed, nothing is acknowledged."""
        self.stream.close()

    def pump(self, wait_s: float = 0.05) -> None:
        """Move bytes both ways once, waiting at most ``wait_s`` for some."""
        while buffers := self.link.data_to_send():
            sent = self.stream.write(buffers)
            if not sent:
                break
            self.link.sent(sent)
        full = [self.stream.write_fileno()] if buffers else []
        select.select([self.stream.read_fileno()], full, [], wait_s)
        if received := self.stream.read(1 << 20):
            self.link.receive_data(received)
        else:
            self.link.flush()  # quiet: say now what we have handled
        while (event := self.link.next_event()) is not None:
            if isinstance(event, Opened):
                self.opened += 1
            else:
                self._take(event)

    def _take(self, message: Message) -> None:
        parts = [bytes(part) for part in message.parts]
        self.link.acknowledge(message)
        if message.channel is not Channel.RPC:
            self.messages[message.channel].append(parts)
            return
        body = json.loads(parts[0])
        if "event" in body:
            self.events.append(body)
        else:
            self._answers[body["id"]] = body

    def until(self, what: Callable[[], Any], timeout_s: float = 30) -> Any:
        """Pump until ``what()`` is true; give its value. Fails with everything that was seen."""
        end_s = time.monotonic() + timeout_s
        while not (value := what()):
            if time.monotonic() > end_s or self.process.poll() is not None:
                raise AssertionError(
                    f"guest={self.process.poll()} events={self.events} "
                    f"stderr={self.stderr_path.read_text()[-2000:]}"
                )
            self.pump()
        return value

    def event(self, name: str, generation: int | None = None, timeout_s: float = 30) -> Any:
        """Wait for an event of this name (and generation)."""

        def seen() -> Any:
            for body in self.events:
                if body["event"] == name and generation in (None, body.get("generation")):
                    return body
            return None

        return self.until(seen, timeout_s)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Give the guest's whole answer to one request."""
        ident = self.ask(method, **params)
        return dict(self.until(lambda: self._answers.pop(ident, None)))

    def ask(self, method: str, **params: Any) -> int:
        """Send one request without waiting."""
        self._ident += 1
        body = {"id": self._ident, "method": method, "params": params}
        self.link.send(Channel.RPC, [json.dumps(body).encode()])
        return self._ident

    def request(
        self, msg_type: str, content: dict[str, Any], channel: Channel = Channel.SHELL, **more: Any
    ) -> str:
        """Send a Jupyter request as a client would; give its msg_id."""
        message = self.session.msg(msg_type, content, parent=more.get("parent"))
        parts = self.session.serialize(message, b"client")
        self.link.send(channel, [*parts, *more.get("buffers", ())])
        return str(message["header"]["msg_id"])

    def execute(self, code: str, **content: Any) -> str:
        """Send an execute_request; give its msg_id."""
        return self.request("execute_request", {"code": code, "silent": False, **content})

    def decoded(self, channel: Channel) -> list[dict[str, Any]]:
        """Give all messages of a channel, with their signatures checked."""
        found = []
        for parts in self.messages[channel]:
            self.session.digest_history.clear()
            _, rest = self.session.feed_identities(parts)
            found.append(self.session.deserialize(rest))
        return found

    def reply(self, msg_id: str, channel: Channel = Channel.SHELL, timeout_s: float = 30) -> Any:
        """Wait for the reply to ``msg_id``."""
        return self.until(lambda: self.replies(msg_id, channel), timeout_s)[0]

    def replies(self, msg_id: str, channel: Channel) -> list[dict[str, Any]]:
        """Give what came on ``channel`` with ``msg_id`` as parent."""
        found = self.decoded(channel)
        return [message for message in found if message["parent_header"].get("msg_id") == msg_id]

    def idle(self, msg_id: str, timeout_s: float = 30) -> None:
        """Wait until iopub says that the request is done."""

        def done() -> bool:
            return any(
                message["content"].get("execution_state") == "idle"
                for message in self.replies(msg_id, Channel.IOPUB)
            )

        self.until(done, timeout_s)

    def run(self, code: str) -> dict[str, Any]:
        """Execute and give {"reply": content, "text": all stream text, "result": text/plain}."""
        msg_id = self.execute(code)
        reply = self.reply(msg_id)
        self.idle(msg_id)
        text, result = "", None
        for message in self.replies(msg_id, Channel.IOPUB):
            text += message["content"].get("text", "")
            if message["msg_type"] == "execute_result":
                result = message["content"]["data"]["text/plain"]
        return {"reply": reply["content"], "text": text, "result": result}

    def __enter__(self) -> Host:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        with contextlib.suppress(OSError):
            self.stream.close()
