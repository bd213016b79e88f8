"""The link to one guest, driven: bytes between a pair of FIFOs and the sans-IO ``Link``.

The guest decides every byte that comes in. ``Link`` checks them; what is added here is a bound on
the work of one turn, so that a guest that floods cannot keep the other kernels waiting, and the
rule that a link that failed stays down until the daemon replaces the sandbox.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torpor.bridge.protocol import Fifos
from torpor.bridge.reactor import READ, WRITE, Owner, Reactor
from torpor.bridge.signing import Part
from torpor.errors import LinkProtocolError
from torpor.link import Channel, Limits, Link, LinkState, Message, Opened, Role
from torpor.link.fifo import FifoStream

READ_BYTES = 262_144
WRITE_BYTES = 524_288
WRITE_BUFFERS = 1_024  # what ``data_to_send`` gives and ``os.writev`` takes at most
MESSAGES_PER_TURN = 128
SOFT_QUEUE_BYTES = 8 << 20  # beyond it no further message is taken from clients
STDERR_KEPT_BYTES = 16_384
STDERR_BURST_BYTES = 65_536  # after so much from a guest that floods its stderr, it has to wait
STDERR_REST_S = 1.0
QUIET_S = 0.1  # owed acknowledgements go after so long, if no data took them along

LIMITS = Limits()

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LineEvents:
    """Who is told what happens on a line. ``has_room``: at most once per turn, things moved."""

    opened: Callable[[Opened], None]
    message: Callable[[Message], None]
    failed: Callable[[str], None]
    has_room: Callable[[], None]


class Line:
    """One link over one pair of FIFOs, until it fails or is closed."""

    def __init__(
        self,
        reactor: Reactor,
        owner: Owner,
        events: LineEvents,
        fifos: Fifos,
        handled: Mapping[Channel, int] | None,
    ) -> None:
        """Open the FIFOs and start a session; ``handled`` is what ``Link`` resumes from.

        Raises:
            OSError: a FIFO is missing or not ours. Nothing stays open.
        """
        self._reactor = reactor
        self._owner = owner
        self._events = events
        self._link = Link(Role.HOST, limits=LIMITS, handled=handled)
        self._blocked = False
        self._backlog = False
        self._delivering = False
        self._flush_is_due = False
        self._quiet_is_due = False
        self.closed = False
        self._stderr_tail = b""
        self._stderr_allowance = STDERR_BURST_BYTES
        with contextlib.ExitStack() as undo:
            self._stderr_fd = _open_stderr(fifos.guest_stderr)
            undo.callback(self._close_stderr)
            self._stream = FifoStream.open(fifos.from_guest, fifos.to_guest)
            undo.callback(self._stream.close)
            self._link.connect()
            reactor.watch(self._stream.read_fileno(), READ, owner, self._readable)
            if self._stderr_fd >= 0:
                reactor.watch(self._stderr_fd, READ, owner, self._stderr_readable)
            undo.pop_all()
        reactor.soon(owner, self.flush)

    @property
    def stderr_tail(self) -> str:
        """The last bytes the guest wrote to its stderr, as text."""
        return self._stderr_tail.decode(errors="replace")

    def accepts(self, channel: Channel) -> bool:
        """Say whether another message should be taken from a client for ``channel``."""
        return self._link.pending_bytes(channel) < SOFT_QUEUE_BYTES

    @property
    def open(self) -> bool:
        """Whether the guest has answered and the link works."""
        return not self.closed and self._link.state is LinkState.OPEN

    @property
    def quiet(self) -> bool:
        """Whether both sides have acknowledged everything, as far as is known here, in writing."""
        waits = self._blocked or self._backlog or self._flush_is_due
        if waits or self._link.owes_acknowledgement:
            return False
        return not any(self._link.pending_bytes(channel) for channel in Channel)

    def settle(self) -> None:
        """Write every acknowledgement that is owed, now."""
        if not self.closed:
            self._link.flush()
            self.flush()

    def send(self, channel: Channel, parts: Sequence[Part]) -> None:
        """Queue a message; ``flush`` writes it.

        Raises:
            MessageTooLarge: no link can take it. Nothing was queued.
            QueueFull: it does not fit now. Nothing was queued.
        """
        self._link.send(channel, parts)

    def acknowledge(self, message: Message) -> int:
        """Let the guest forget ``message``, once ``Link`` finds it worth a frame.

        Gives the number of the channel's first message that is not handled yet.
        """
        self._link.acknowledge(message)
        if not self._delivering and not self._flush_is_due:
            self._flush_is_due = True
            self._reactor.soon(self._owner, self.flush)
        return self._link.handled_next(message.channel)

    def flush(self) -> None:
        """Write what there is, as far as the FIFO takes it."""
        self._flush_is_due = False
        if self.closed or self._blocked:
            return
        while buffers := self._link.data_to_send(WRITE_BYTES):
            nbytes = sum(map(len, buffers))
            written = self._stream.write(buffers)
            self._link.sent(written)
            if written < nbytes:
                self._blocked = True
                fd = self._stream.write_fileno()
                self._reactor.watch(fd, WRITE, self._owner, self._writable)
                return
            if nbytes < WRITE_BYTES and len(buffers) < WRITE_BUFFERS:
                return  # that was all there is

    def close(self) -> None:
        """Release the FIFOs; idempotent, and the stderr tail can still be read."""
        if self.closed:
            return
        self.closed = True
        for fd in (self._stream.read_fileno(), self._stream.write_fileno()):
            self._reactor.unwatch(fd)
        self._stream.close()
        self._close_stderr()

    def _readable(self) -> None:
        if self.closed or self._backlog:
            return
        chunk = self._stream.read(READ_BYTES)
        if not chunk:
            return
        try:
            self._link.receive_data(chunk)
        except LinkProtocolError as exc:
            self._fail(str(exc))
            return
        self._deliver()

    def _deliver(self) -> None:
        """Pass on what is complete, at most ``MESSAGES_PER_TURN``, then read on in a later turn."""
        self._backlog = False
        self._delivering = True
        for _ in range(MESSAGES_PER_TURN):
            event = self._link.next_event()
            if event is None:
                break
            if isinstance(event, Message):
                self._events.message(event)
            else:
                self._events.opened(event)
            if self.closed:
                return
        else:
            self._backlog = True
            self._reactor.unwatch(self._stream.read_fileno())
            self._reactor.soon(self._owner, self._deliver_more)
        self._events.has_room()
        self._delivering = False
        self.flush()
        if self._link.owes_acknowledgement and not self._quiet_is_due:
            self._quiet_is_due = True
            self._reactor.later(QUIET_S, self._owner, self._acknowledge_when_quiet)

    def _acknowledge_when_quiet(self) -> None:
        """Let the guest forget what was delivered, once nothing else carries the word to it.

        Not after each message: every frame costs the guest a wake-up.
        """
        self._quiet_is_due = False
        if not self.closed and self._link.owes_acknowledgement:
            self._link.flush()
            self.flush()

    def _deliver_more(self) -> None:
        if self.closed:
            return
        self._deliver()
        if not self._backlog and not self.closed:
            self._reactor.watch(self._stream.read_fileno(), READ, self._owner, self._readable)

    def _writable(self) -> None:
        self._reactor.unwatch(self._stream.write_fileno())
        self._blocked = False
        self.flush()
        self._events.has_room()

    def _fail(self, reason: str) -> None:
        self.close()
        self._events.failed(reason)

    def _stderr_readable(self) -> None:
        chunk = os.read(self._stderr_fd, self._stderr_allowance)
        self._stderr_tail = (self._stderr_tail + chunk)[-STDERR_KEPT_BYTES:]
        self._stderr_allowance -= len(chunk)
        if not self._stderr_allowance:
            self._reactor.unwatch(self._stderr_fd)
            self._reactor.later(STDERR_REST_S, self._owner, self._watch_stderr_again)

    def _watch_stderr_again(self) -> None:
        self._stderr_allowance = STDERR_BURST_BYTES
        if self._stderr_fd >= 0:
            self._reactor.watch(self._stderr_fd, READ, self._owner, self._stderr_readable)

    def _close_stderr(self) -> None:
        if self._stderr_fd >= 0:
            self._reactor.unwatch(self._stderr_fd)
            with contextlib.suppress(OSError):
                os.close(self._stderr_fd)
            self._stderr_fd = -1


def _open_stderr(path: Path | None) -> int:
    if path is None:
        return -1
    return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
