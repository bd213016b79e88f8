"""A guest of a few lines, as a program: ``echo_guest.py TO_GUEST FROM_GUEST [flood N BYTES]``.

It speaks the link like the real one and has no kernel: every message on shell, control and stdin
comes back as it is; with ``flood`` it first publishes N output messages. For measurements and for
tests that need a guest which does exactly what it is told.
"""

from __future__ import annotations

import contextlib
import json
import select
import sys
from collections.abc import Callable, Sequence

from torpor.link import Channel, Link, LinkProtocolError, Message, Opened, QueueFull, Role
from torpor.link.fifo import FifoStream

HEADER = {"msg_id": "x", "msg_type": "stream", "username": "", "session": "s", "version": "5.3"}


def output(number: int, size: int) -> list[bytes]:
    """Give one iopub message with ``number`` in it, about ``size`` bytes long."""
    header = json.dumps(HEADER | {"msg_id": f"m{number}"}).encode()
    content = json.dumps({"name": "stdout", "text": f"{number}".ljust(size, ".")}).encode()
    return [b"stream", b"<IDS|MSG>", b"0" * 64, header, b"{}", b"{}", content]


class EchoGuest:
    """The loop. ``answer`` may replace what happens to a message."""

    def __init__(self, stream: FifoStream) -> None:
        self.stream = stream
        self.link = Link(Role.GUEST)
        self.answer: Callable[[Message], Sequence[object] | None] = lambda message: message.parts
        self.to_publish: list[list[bytes]] = []
        self.opened = 0

    def step(self, timeout_s: float | None = None) -> bool:
        """Wait for something to do and do it; False after ``timeout_s`` of nothing."""
        write = [self.stream.write_fileno()] if self.link.data_to_send() else []
        ready = select.select([self.stream.read_fileno()], write, [], timeout_s)
        if self.stream.read_fileno() in ready[0]:
            with contextlib.suppress(LinkProtocolError):  # until the host begins again
                self.link.receive_data(self.stream.read())
            while (event := self.link.next_event()) is not None:
                self._handle(event)
        self._publish()
        while buffers := self.link.data_to_send():
            written = self.stream.write(buffers)
            self.link.sent(written)
            if not written:
                break
        return bool(ready[0] or ready[1])

    def _handle(self, event: Opened | Message) -> None:
        if isinstance(event, Opened):
            self.opened += 1
            return
        if event.channel is Channel.RPC:
            request = json.loads(bytes(event.parts[0]))
            result = {"state": "ready", "generation": 1, "exit_code": None}
            reply = json.dumps({"id": request["id"], "result": result}).encode()
            self.link.send(Channel.RPC, [reply])
        else:
            parts = self.answer(event)
            if parts is not None:
                self.link.send(event.channel, list(parts))  # type: ignore[arg-type]
        self.link.acknowledge(event)

    def _publish(self) -> None:
        while self.to_publish:
            try:
                self.link.send(Channel.IOPUB, self.to_publish[-1])
            except QueueFull:
                return
            self.to_publish.pop()


def main() -> None:
    guest = EchoGuest(FifoStream.open(sys.argv[1], sys.argv[2]))
    if sys.argv[3:4] == ["flood"]:
        count, size = int(sys.argv[4]), int(sys.argv[5])
        guest.to_publish = [output(number, size) for number in reversed(range(count))]
    while True:
        guest.step()


if __name__ == "__main__":
    main()
