"""The link: both ends of one resumable connection, without any I/O.

The host opens a session by flushing whatever a dead writer left half done (zero bytes), a fixed magic,
and HELLO. The guest answers the host's nonce, which nobody inside the sandbox could have guessed,
and its own HELLO. From then on DATA and ACK flow; every message is numbered per channel, kept by its
sender until acknowledged, and sent again from its start in the next session if the receiver has not
got it whole. So a reconnect loses nothing and repeats nothing, as long as one end remembers: the
guest always does, and a new host process resumes exactly from the numbers it kept (``handled``).
"""

from __future__ import annotations

import os
import struct
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from .errors import LinkProtocolError
from .frames import HEADER_BYTES, Frame, FrameReader, Kind, frame_header
from .hello import MAGIC, NONCE_BYTES, Hello, Standing, parse_hello
from .inbox import Inbox
from .outbox import Outbox
from .types import Buffer, Channel, Limits, LinkState, Message, Opened, Role

_ACK = struct.Struct(">QQ")
_UNKNOWN = (1 << 64) - 1
_BATCH_BUFFERS = 256  # writev takes at most 1024

# What a frame does to the state. Anything not listed breaks the protocol.
_NEXT: Mapping[tuple[LinkState, int], LinkState] = {
    (LinkState.OPENING, Kind.HELLO): LinkState.OPEN,
    (LinkState.OPEN, Kind.DATA): LinkState.OPEN,
    (LinkState.OPEN, Kind.ACK): LinkState.OPEN,
    (LinkState.OPEN, Kind.BYE): LinkState.CLOSED,
}


class Link:
    """One end of a link. Feed it what was read, write what it gives; it never blocks and never waits.

    Args:
        role: HOST opens sessions with ``connect``; GUEST waits for them.
        limits: every bound; the same at both ends.
        handled: HOST only: per channel the first message not yet handled, as an earlier process of
            this host last read it from ``handled_next``. None: unknown (or the first process), the guest's
            own memory of our acknowledgements decides.
        rng: source of the nonce.
    """

    def __init__(
        self,
        role: Role,
        *,
        limits: Limits | None = None,
        handled: Mapping[Channel, int] | None = None,
        rng: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._role = role
        self._limits = limits or Limits()
        self._remembered = handled
        self._rng = rng
        self._reader = FrameReader(self._limits.max_frame_bytes)
        self._out: deque[Buffer] = deque()
        self._events: deque[Opened | Message] = deque()
        self._inboxes = [Inbox(channel, self._limits) for channel in Channel]
        self._outboxes = [Outbox(channel, self._limits) for channel in Channel]
        self._nonce = rng(NONCE_BYTES)
        self._lived = False
        self._flush = False
        self.state = LinkState.IDLE
        if role is Role.GUEST:
            self.state = LinkState.OPENING
            self._reader.hunt(MAGIC)

    def connect(self) -> None:
        """Host: start a session, or start again, on a byte stream in any condition."""
        if self._role is not Role.HOST or self.state is LinkState.CLOSED:
            raise LinkProtocolError(f"{self._role.value} cannot connect when {self.state.value}")
        self._nonce = self._rng(NONCE_BYTES)
        self._reader = FrameReader(self._limits.max_frame_bytes)
        self._reader.hunt(self._nonce)
        self._out.clear()
        self._out.append(bytes(self._limits.max_frame_bytes + HEADER_BYTES) + MAGIC)
        for inbox in self._inboxes:
            inbox.restart()
        self._say_hello()
        self.state = LinkState.OPENING

    def receive_data(self, data: bytes) -> None:
        """Take bytes that were read.

        Raises:
            LinkProtocolError: the peer broke the protocol. A host has then failed until ``connect``; a
                guest never raises, it waits for the host to open the next session.
        """
        if self.state is LinkState.CLOSED:
            return
        if self.state is LinkState.FAILED and self._role is Role.HOST:
            raise LinkProtocolError("the link has failed")
        self._reader.feed(data)
        while self.state is not LinkState.CLOSED:
            try:
                frame = self._reader.next_frame()
                if frame is None:
                    return
                self._step(frame)
            except LinkProtocolError:
                self.state = LinkState.FAILED
                if self._role is Role.HOST:
                    raise
                self._reader.hunt(MAGIC)
                self._out.clear()

    def _step(self, frame: Frame) -> None:
        opening = self.state is LinkState.FAILED and self._role is Role.GUEST
        state = LinkState.OPENING if opening else self.state
        following = _NEXT.get((state, frame.kind))
        if following is None:
            raise LinkProtocolError(f"frame of kind {frame.kind} while {self.state.value}")
        if frame.kind == Kind.DATA:
            message = self._inbox(frame).receive(frame)
            if message is not None:
                self._events.append(message)
        elif frame.kind == Kind.ACK:
            if len(frame.payload) != _ACK.size:
                raise LinkProtocolError(f"ACK of {len(frame.payload)} bytes")
            self._inbox(frame)
            self._outboxes[frame.channel].acknowledged(*_ACK.unpack(frame.payload))
        elif frame.kind == Kind.HELLO:
            self._greet(frame)
        self.state = following

    def _inbox(self, frame: Frame) -> Inbox:
        if frame.channel >= len(self._inboxes):
            raise LinkProtocolError(f"no channel {frame.channel}")
        return self._inboxes[frame.channel]

    def _greet(self, frame: Frame) -> None:
        other = Role.GUEST if self._role is Role.HOST else Role.HOST
        hello = parse_hello(frame.payload, expected=other)
        if hello.max_frame_bytes != self._limits.max_frame_bytes:
            raise LinkProtocolError(f"the peer's frames have {hello.max_frame_bytes} bytes")
        if self._role is Role.HOST:
            self._settle_host(hello)
        else:
            self._settle_guest(hello)
        numbers = {row.recv_next for row in hello.channels.values()}
        resumed = self._lived or bool(numbers - {0, _UNKNOWN})
        self._events.append(Opened(resumed, hello.nonce))
        self._lived = True

    def _settle_host(self, hello: Hello) -> None:
        if hello.nonce != self._nonce:
            raise LinkProtocolError("the guest answered another session")
        for channel, row in hello.channels.items():
            inbox, outbox = self._inboxes[channel], self._outboxes[channel]
            if self._lived:
                outbox.restart(row.recv_next, row.window)
            else:
                outbox.adopt(row.recv_next, row.window)
                known = self._remembered[channel] if self._remembered else row.send_base
                inbox.restart(max(known, row.send_base))

    def _settle_guest(self, hello: Hello) -> None:
        for channel, row in hello.channels.items():
            received = None if row.recv_next == _UNKNOWN else row.recv_next
            inbox = self._inboxes[channel]
            if not hello.fresh and row.send_base > inbox.expected:
                raise LinkProtocolError(f"{channel.name}: the host forgot {inbox.expected}")
            self._outboxes[channel].restart(received, row.window)
            inbox.restart()
        self._nonce = hello.nonce
        self._out.clear()
        self._out.append(self._nonce)
        self._say_hello()

    def _say_hello(self) -> None:
        fresh = self._role is Role.HOST and not self._lived
        channels = {}
        for channel in Channel:
            inbox = self._inboxes[channel]
            received = inbox.expected
            if fresh:
                received = self._remembered[channel] if self._remembered else _UNKNOWN
            window = self._limits.window_bytes[channel]
            channels[channel] = Standing(received, self._outboxes[channel].base, window)
        hello = Hello(self._role, fresh, self._limits.max_frame_bytes, self._nonce, channels)
        payload = hello.pack()
        self._out.append(frame_header(Kind.HELLO, 0, 0, 0, (payload,), len(payload)) + payload)

    def next_event(self) -> Opened | Message | None:
        """Give the next thing that happened, oldest first, or None."""
        return self._events.popleft() if self._events else None

    def send(self, channel: Channel, parts: Sequence[Buffer]) -> None:
        """Queue a message; it goes when the session and the credit allow. Raises QueueFull."""
        self._outboxes[channel].push(parts)

    def can_send(self, channel: Channel, nbytes: int) -> bool:
        """Say whether ``send`` of ``nbytes`` would be taken."""
        return self._outboxes[channel].can_push(nbytes)

    def pending_bytes(self, channel: Channel) -> int:
        """Give the bytes of ``channel`` that the peer has not acknowledged."""
        return self._outboxes[channel].kept_bytes

    def acknowledge(self, message: Message) -> None:
        """The application has handled ``message``: its sender may forget it. Twice is fine."""
        self._inboxes[message.channel].handled(message.seq)

    def handled_next(self, channel: Channel) -> int:
        """Give the first message of ``channel`` not handled yet: what a next process must remember."""
        return self._inboxes[channel].handled_next

    @property
    def owes_acknowledgement(self) -> bool:
        """Whether ``flush`` would send something. Acknowledgements else ride along with data."""
        return self.state is LinkState.OPEN and any(inbox.owes for inbox in self._inboxes)

    def flush(self) -> None:
        """Let the next ``data_to_send`` carry every acknowledgement that is owed."""
        self._flush = True

    def data_to_send(self, max_bytes: int = 256 * 1024) -> Sequence[Buffer]:
        """Give what to write now, about ``max_bytes``, for ``os.writev``; then call ``sent``.

        The most urgent channel comes first, one frame at a time, so a control message waits for at most
        ``max_bytes`` that were promised to the writer before.
        """
        if not self._out and self.state is LinkState.OPEN:
            self._fill(max_bytes)
        return tuple(self._out)

    def _fill(self, max_bytes: int) -> None:
        out, size = self._out, 0
        while size < max_bytes and len(out) < _BATCH_BUFFERS:
            for outbox in self._outboxes:
                if outbox.ready:
                    buffers = outbox.next_frame()
                    out.extend(buffers)
                    size += sum(map(len, buffers))
                    break
            else:
                break
        riding = bool(out) or self._flush
        self._flush = False
        for channel, inbox in enumerate(self._inboxes):
            if inbox.urgent or (riding and inbox.owes):
                payload = _ACK.pack(*inbox.tell())
                header = frame_header(Kind.ACK, channel, 0, 0, (payload,), len(payload))
                out.appendleft(header + payload)

    def sent(self, nbytes: int) -> None:
        """The first ``nbytes`` of ``data_to_send`` were written."""
        out = self._out
        while nbytes:
            first = out[0]
            if len(first) > nbytes:
                out[0] = memoryview(first)[nbytes:]
                return
            nbytes -= len(first)
            out.popleft()

    def close(self) -> None:
        """Say BYE if a session is open; the link is over for good. Twice is fine."""
        if self.state is LinkState.OPEN:
            self._out.append(frame_header(Kind.BYE, 0, 0, 0, (), 0))
        self.state = LinkState.CLOSED
