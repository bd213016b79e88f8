"""A link over real FIFOs, driven; and the processes that a test lets die.

As a program: ``carrier.py ROLE DIRECTORY`` with ROLE ``echo`` (a guest that sends every message back)
or ``collector`` (a host that writes down, in ``DIRECTORY/handled``, the text of each message it has
handled before it acknowledges it, asks for more without end, and resumes from what it finds there).
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
from collections.abc import Callable
from pathlib import Path

from torpor.link import Channel, Link, LinkProtocolError, Message, QueueFull, Role
from torpor.link.fifo import FifoStream

READ_BYTES = 1 << 18


class Carrier:
    """Moves bytes between a link and its FIFOs, and hands on messages."""

    def __init__(self, role: Role, link: Link, directory: Path) -> None:
        paths = [directory / "to_guest", directory / "from_guest"]
        if role is Role.HOST:
            paths.reverse()
        self.role = role
        self.link = link
        self.stream = FifoStream.open(*paths)
        if role is Role.HOST:
            link.connect()

    def turn(self, on_message: Callable[[Message], None], wait_s: float = 0.0) -> bool:
        """Write and read what is possible now, or soon; say whether a byte moved."""
        buffers = self.link.data_to_send()
        written = self.stream.write(buffers) if buffers else 0
        self.link.sent(written)
        writers = [self.stream.write_fileno()] if buffers and not written else []
        if not written:
            select.select([self.stream.read_fileno()], writers, [], wait_s)
        received = self.stream.read(READ_BYTES)
        with contextlib.suppress(*[LinkProtocolError] if self.role is Role.GUEST else []):
            self.link.receive_data(received)
        while (event := self.link.next_event()) is not None:
            if isinstance(event, Message):
                on_message(event)
        if not received:
            self.link.flush()
        return bool(received) or bool(written)


def echo(directory: Path) -> None:
    """Be a guest that sends back what it gets, for ever."""
    link = Link(Role.GUEST)
    carrier = Carrier(Role.GUEST, link, directory)

    def back(message: Message) -> None:
        link.send(message.channel, message.parts)
        link.acknowledge(message)

    while os.getppid() != 1:
        carrier.turn(back, 0.5)


def handled_lines(directory: Path) -> list[str]:
    """Give what the collectors have written down: whole lines only."""
    with contextlib.suppress(FileNotFoundError):
        return (directory / "handled").read_text().splitlines()
    return []


def collector(directory: Path) -> None:
    """Be a host that writes down what it handles, one line at a time, and talks all the while."""
    count = len(handled_lines(directory))
    link = Link(Role.HOST, handled={Channel.IOPUB: count})
    carrier = Carrier(Role.HOST, link, directory)
    log = os.open(directory / "handled", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def handle(message: Message) -> None:
        os.write(log, bytes(message.parts[0]) + b"\n")  # one system call: it is there or not
        link.acknowledge(message)

    number = 0
    while os.getppid() != 1:
        with contextlib.suppress(QueueFull):
            while link.pending_bytes(Channel.SHELL) < 4 << 20:
                name = b"%d %d" % (os.getpid(), number)
                link.send(Channel.SHELL, [name, b"s" * (number % 7 * 40_000)])
                number += 1
        carrier.turn(handle, 0.05)


def until(done: Callable[[], bool], within_s: float) -> None:
    """Check ``done`` until it is true."""
    end = time.monotonic() + within_s
    while not done():
        assert time.monotonic() < end, f"not within {within_s} s"


if __name__ == "__main__":
    {"echo": echo, "collector": collector}[sys.argv[1]](Path(sys.argv[2]))
