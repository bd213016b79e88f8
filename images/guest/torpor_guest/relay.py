"""Between link and kernel: what comes from one goes to the other, bounded, in order, at most once.

Host to kernel: a message is acknowledged when the kernel's system buffer has it, so the link's
credit bounds what waits here. Kernel to host: replies stop being read while the link's queue is
full (the kernel's own queue then holds them). iopub is always read, because a kernel drops what is
not: when the queue is full, display output is dropped here, counted and reported; a reserve keeps
room for status and everything else.
"""

from __future__ import annotations

from collections import deque

from torpor.link import Channel, Link, LinkProtocolError, Message, Opened, QueueFull
from torpor.link.fifo import FifoStream

from torpor_guest.lean_json import dumps, loads
from torpor_guest.loop import READ, WRITE, Loop
from torpor_guest.probe import DELIMITER
from torpor_guest.wires import Wires
from torpor_guest.zmtp import Part

TYPE_CHECKING = False  # as mypy knows it; typing itself takes 20 ms to import
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


_READ_BYTES = 1 << 18
_WRITES_PER_ROUND = 16
_REPORT_S = 0.25
_OWE_S = 0.05
_REPORT_QUEUE_BYTES = 65536
_DISPLAY = frozenset(
    ("stream", "display_data", "update_display_data", "execute_result", "clear_output")
)


class Relay:
    """Serves the link's stream and moves the data channels; ``on_rpc`` gets every RPC body.

    ``on_own_reply`` gets replies without a client identity, ``on_heard`` a call for every iopub
    message (true for the ``iopub_welcome``, which is meant for us alone and goes no further), and
    ``takes`` says whether a message from the host is wanted now.
    """

    def __init__(
        self,
        loop: Loop,
        link: Link,
        stream: FifoStream,
        iopub_bytes: int,
        on_rpc: Callable[[bytes], None],
        on_own_reply: Callable[[list[Part]], None],
        on_heard: Callable[[bool], None],
        takes: Callable[[Channel], bool],
        on_hangup: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._link = link
        self._stream = stream
        self._soft_bytes = iopub_bytes - iopub_bytes // 16
        self._on_rpc = on_rpc
        self._on_own_reply = on_own_reply
        self._on_heard = on_heard
        self._takes = takes
        self._on_hangup = on_hangup
        self._held: dict[Channel, deque[list[Part]]] = {}
        self._dropped: dict[Channel, tuple[int, int]] = {}
        self._report_due = False
        self._writing = False
        self._owing = False
        self._complained = False
        self.wires: Wires | None = None
        loop.watch(stream.read_fileno(), READ, self._readable)

    def emit(self, body: dict[str, Any]) -> None:
        """Send one RPC body (event or answer) to the host; lost only if it reads no RPC at all."""
        try:
            self._link.send(Channel.RPC, [dumps(body)])
        except QueueFull:
            self._count(Channel.RPC, 1, 0)

    def from_kernel(self, channel: Channel, parts: list[Part]) -> None:
        """Take one message that the kernel sent."""
        if channel is Channel.IOPUB:
            self._publish(parts)
        elif parts[0] == DELIMITER:  # no client identity: the answer to our own request
            self._on_own_reply(parts)
        elif self._held.get(channel) or not self._try(channel, parts):
            self._held.setdefault(channel, deque()).append(parts)
            self._wire(channel).pause(True)

    def count_dropped(self, channel: Channel, messages: int, size: int) -> None:
        """Report messages that were given up elsewhere."""
        self._count(channel, messages, size)

    def flush(self) -> None:
        """Write what the link has to send; called after every round of the loop."""
        if not self._owing and self._link.owes_acknowledgement:
            self._owing = True
            self._loop.after(_OWE_S, self._settle)
        if self._writing:
            return
        for _ in range(_WRITES_PER_ROUND):
            buffers = self._link.data_to_send()
            if not buffers:
                return
            try:
                sent = self._stream.write(buffers)
            except OSError:
                self._on_hangup()
                return
            if sent == 0:
                break
            self._link.sent(sent)
        self._writing = True
        self._loop.watch(self._stream.write_fileno(), WRITE, self._writable)

    @property
    def drained(self) -> bool:
        """Whether the host has acknowledged every event and answer."""
        return self._link.pending_bytes(Channel.RPC) == 0

    def _settle(self) -> None:
        """Acknowledge what had no data to ride on: a host that dies now must not be told it again."""
        self._owing = False
        self._link.flush()

    def _writable(self, _events: int) -> None:
        self._writing = False
        self._loop.forget(self._stream.write_fileno())

    def _readable(self, _events: int) -> None:
        try:
            received = self._stream.read(_READ_BYTES)
        except (EOFError, OSError):
            self._on_hangup()
            return
        if received:
            try:
                self._link.receive_data(received)
            except LinkProtocolError as exc:
                self._complain(exc)
        while (event := self._link.next_event()) is not None:
            if isinstance(event, Opened):
                self._complained = False
            else:
                self._from_host(event)
        if self._held:
            self._retry()

    def _complain(self, exc: LinkProtocolError) -> None:
        if not self._complained:  # once per session: what follows until the next one is noise
            self._complained = True
            print(f"torpor guest: link failed: {exc}", flush=True, file=_stderr())

    def _from_host(self, message: Message) -> None:
        channel = message.channel
        if channel is Channel.RPC:
            self._on_rpc(b"".join(message.parts))
            self._link.acknowledge(message)
        elif channel is Channel.IOPUB or not message.parts or not self._takes(channel):
            self._link.acknowledge(message)
            self._count(channel, 1, sum(map(len, message.parts)))
        else:
            self._wire(channel).send(list(message.parts), lambda: self._link.acknowledge(message))

    def _publish(self, parts: list[Part]) -> None:
        size = sum(map(len, parts))
        # ipykernel sends it with no topic at all, others may with the (empty) subscription as
        # topic.
        if parts[0] in (DELIMITER, b"") and _message_type(parts) == "iopub_welcome":
            self._on_heard(True)
            return
        pressed = self._link.pending_bytes(Channel.IOPUB) + size > self._soft_bytes
        if (pressed and _message_type(parts) in _DISPLAY) or not self._try(Channel.IOPUB, parts):
            self._count(Channel.IOPUB, 1, size)
        self._on_heard(False)

    def _try(self, channel: Channel, parts: list[Part]) -> bool:
        try:
            self._link.send(channel, parts)
        except QueueFull:
            return False
        return True

    def _retry(self) -> None:
        for channel, held in list(self._held.items()):
            while held and self._fits(channel, held[0]):
                held.popleft()
            if not held:
                del self._held[channel]
                self._wire(channel).pause(False)

    def _fits(self, channel: Channel, parts: list[Part]) -> bool:
        """Send, or give up a message that would not even fit an empty queue."""
        if self._try(channel, parts):
            return True
        if self._link.pending_bytes(channel) == 0:
            self._count(channel, 1, sum(map(len, parts)))
            return True
        return False

    def _count(self, channel: Channel, messages: int, size: int) -> None:
        before = self._dropped.get(channel, (0, 0))
        self._dropped[channel] = (before[0] + messages, before[1] + size)
        if not self._report_due:
            self._report_due = True
            self._loop.after(_REPORT_S, self._report)

    def _report(self) -> None:
        self._report_due = False
        if self._link.pending_bytes(Channel.RPC) > _REPORT_QUEUE_BYTES:
            self._report_due = (
                True  # nobody reads: keep counting, so that reports cannot pile up either
            )
            self._loop.after(_REPORT_S, self._report)
            return
        dropped, self._dropped = self._dropped, {}
        for channel, (messages, size) in dropped.items():
            event = {"event": "dropped", "channel": int(channel), "messages": messages}
            self.emit({**event, "bytes": size})

    def _wire(self, channel: Channel) -> Any:
        assert self.wires is not None
        return self.wires.by_channel[channel]


def _message_type(parts: list[Part]) -> str:
    try:
        return str(_header(parts)["msg_type"])
    except (ValueError, IndexError, KeyError, TypeError):
        return ""


def _header(parts: list[Part]) -> Any:
    return loads(bytes(parts[parts.index(DELIMITER) + 2]))


def _stderr() -> Any:
    import sys

    return sys.stderr
