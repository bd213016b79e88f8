"""A guest that a test holds in its hand: ``EchoGuest`` in a thread, with every message it got."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from pathlib import Path
from typing import Any

import zmq
from torpor.link import Channel, Message
from torpor.link.fifo import FifoStream

from tests.integration.bridge.echo_guest import EchoGuest
from tests.integration.bridge.harness import FIFOS


class Standin:
    """Runs until ``close``. With ``deaf`` set to a channel, it receives there but never handles."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.fifos = {field: str(folder / name) for field, name in FIFOS.items()}
        for path in self.fifos.values():
            os.mkfifo(path)
        self.guest = EchoGuest(FifoStream.open(self.fifos["fifo_in"], self.fifos["fifo_out"]))
        self.guest.answer = self._answer
        self.received: list[Message] = []
        self.echo = True
        self._lock = threading.Lock()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="stand-in guest")
        self._thread.start()

    def publish(self, *messages: list[bytes]) -> None:
        """Send output messages, in order."""
        for message in messages:
            self.send(Channel.IOPUB, message)

    def send(self, channel: Channel, parts: list[bytes]) -> None:
        """Send any parts on any channel, however wrong they are."""
        with self._lock:
            self.guest.link.send(channel, parts)

    def event(self, **body: Any) -> None:
        """Send a guest event."""
        self.send(Channel.RPC, [json.dumps(body).encode()])

    def ready(self, *, welcome: bool = True) -> None:
        """Say that the kernel is ready."""
        self.event(event="ready", generation=1, pid=1, kernel_info={}, iopub_welcome=welcome)

    async def ready_for(self, *listeners: zmq.Socket[bytes]) -> None:
        """Be ready, and wait until each of them gets what is published: it is welcomed."""
        self.ready(welcome=True)
        for listener in listeners:
            await asyncio.to_thread(listener.recv_multipart)

    def scribble(self, garbage: bytes) -> None:
        """Write bytes that are no frame into the link."""
        with self._lock:
            os.write(self.guest.stream.write_fileno(), garbage)

    def close(self) -> None:
        """End the thread; the FIFOs stay."""
        self._stopped = True
        self._thread.join()
        self.guest.stream.close()

    kill = close

    def _answer(self, message: Message) -> Any:
        self.received.append(message)
        return message.parts if self.echo else None

    def _run(self) -> None:
        while not self._stopped:
            with self._lock:
                self.guest.step(0.001)
            threading.Event().wait(0.0005)
