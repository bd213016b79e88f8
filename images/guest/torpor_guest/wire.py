"""One permanent connection to one port of the kernel: in order, never blocking, self-healing."""

from __future__ import annotations

import _socket
import os
from collections import deque

from torpor_guest.loop import READ, WRITE, Loop, Timer
from torpor_guest.zmtp import Part, Zmtp, ZmtpError, encode

TYPE_CHECKING = False  # as mypy knows it; typing itself takes 20 ms to import
if TYPE_CHECKING:
    from collections.abc import Callable


_IOV_MAX = 1000
# Loopback refuses at once, so asking often is cheap, and what is waited for here is a person's
# kernel.
_EINPROGRESS = 115
_EAGER_TRIES, _EAGER_S, _PATIENT_S = 1000, 0.005, 0.05
_DRAIN_BYTES = 64 << 20
# A publisher drops what its subscriber is slow to read. On a busy machine we may not run for some 100 ms.
_BACKLOG_BYTES = 4 << 20


class _Outgoing:
    """A message on its way; ``parts`` is kept so that a broken connection can start it again."""

    __slots__ = ("buffers", "done", "parts")

    def __init__(self, parts: list[Part], done: Callable[[], None] | None) -> None:
        self.parts = parts
        self.done = done
        self.buffers: list[Part] = []


class Wire:
    """A DEALER, SUB or REQ connection to 127.0.0.1.

    A message is handed to ``send`` with a callback that is called once it is wholly with the
    kernel's system buffer (or dropped by ``drop_unsent``). Messages sent while the connection is
    down wait for it.
    """

    def __init__(
        self,
        loop: Loop,
        socket_type: bytes,
        identity: bytes,
        max_message_bytes: int,
        on_message: Callable[[list[Part]], None],
        on_up: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._socket_type = socket_type
        self._identity = identity
        self._limit = max_message_bytes
        self._on_message = on_message
        self._on_up = on_up
        self._port = 0
        self._tries = 0
        self._socket: _socket.socket | None = None
        self._connected = False
        self._codec = Zmtp(socket_type, identity, max_message_bytes)
        self._queue: deque[_Outgoing] = deque()
        self._retry: Timer | None = None
        self._paused = False
        self._blocked = False

    @property
    def up(self) -> bool:
        """Whether the handshake with the kernel is done."""
        return self._codec.up

    def open(self, port: int) -> None:
        """Connect to ``port``, and again whenever that fails, until ``close``."""
        self.close()
        self._port = port
        self._tries = 0
        self._connect()

    def close(self) -> None:
        """Close the connection and stop trying; what is unsent stays queued. Twice is fine."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._socket is not None:
            self._loop.forget(self._socket.fileno())
            self._socket.close()
            self._socket = None
            for item in self._queue:
                item.buffers = []
        self._connected = False
        self._codec = Zmtp(self._socket_type, self._identity, self._limit)
        self._blocked = False

    def send(self, parts: list[Part], done: Callable[[], None] | None = None) -> None:
        """Queue one message; ``done`` is called when it is written or dropped, maybe at once."""
        self._queue.append(_Outgoing(parts, done))
        if self._codec.up and not self._blocked:
            self._flush()

    def drop_unsent(self) -> tuple[int, int]:
        """Forget every message not yet written; give how many and how many bytes."""
        dropped, self._queue = self._queue, deque()
        for item in dropped:
            if item.done is not None:
                item.done()
        return len(dropped), sum(len(part) for item in dropped for part in item.parts)

    def pause(self, paused: bool) -> None:
        """Stop (or go on) reading: the kernel's own queue then holds what it sends."""
        self._paused = paused
        self._mark()

    def drain(self) -> None:
        """Deliver what a kernel that has ended left in the connection."""
        left = _DRAIN_BYTES
        while self._connected and left > 0:
            got = self._read()
            if got <= 0:
                return
            left -= got

    def _connect(self) -> None:
        self._tries += 1
        self._retry = None
        self._socket = _new_socket(
            backlog_bytes=_BACKLOG_BYTES if self._socket_type == b"SUB" else 0
        )
        error = self._socket.connect_ex(("127.0.0.1", self._port))
        if error in (0, _EINPROGRESS):
            self._loop.watch(self._socket.fileno(), READ | WRITE, self._ready)
        else:
            self._again()

    def _again(self) -> None:
        tries, port = self._tries, self._port
        self.close()
        self._tries, self._port = tries, port
        delay_s = _EAGER_S if tries < _EAGER_TRIES else _PATIENT_S
        self._retry = self._loop.after(delay_s, self._connect)

    def _ready(self, events: int) -> None:
        if not self._connected:
            assert self._socket is not None
            if self._socket.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR) != 0:
                self._again()
                return
            self._connected = True
            self._answer(first=True)
            self._mark()
            return
        if events & WRITE and self._blocked:
            self._blocked = False
            self._flush()
        if events & ~WRITE and not self._paused:
            self._read()

    def _read(self) -> int:
        """Read once and deliver; give the bytes read, or 0 if the connection ended or had none."""
        assert self._socket is not None
        was_up = self._codec.up
        try:
            count = self._socket.recv_into(self._codec.room())
            if count == 0:
                raise ConnectionResetError
            messages = self._codec.received(count)
        except BlockingIOError:
            return 0
        except (OSError, ZmtpError):
            self._again()
            return 0
        if self._codec.answers:
            self._answer(first=not was_up)
        if self._codec.up and not was_up:
            self._come_up()
        for message in messages:
            self._on_message(message)
        return count

    def _come_up(self) -> None:
        self._tries = 0
        if self._socket_type == b"SUB":
            self._queue.appendleft(_Outgoing([b"\x01"], None))
        self._flush()
        self._on_up()

    def _answer(self, *, first: bool) -> None:
        """Send what the codec has to say: before any message during the handshake, later in turn."""
        answers, self._codec.answers = self._codec.answers, []
        raw = _Outgoing([], None)
        raw.buffers = list(answers)
        if first:
            self._queue.appendleft(raw)
        else:
            self._queue.append(raw)
        self._flush()

    def _flush(self) -> None:
        while self._queue and self._socket is not None:
            item = self._queue[0]
            if not item.buffers:
                if not self._codec.up:
                    break
                item.buffers = encode(item.parts)
            try:
                sent = self._socket.sendmsg(item.buffers[:_IOV_MAX])
            except BlockingIOError:
                self._blocked = True
                break
            except OSError:
                break  # the read side sees the end of the connection and starts again
            item.buffers = _rest(item.buffers, sent)
            if not item.buffers:
                self._queue.popleft()
                if item.done is not None:
                    item.done()
        self._mark()

    def _mark(self) -> None:
        if self._socket is not None and self._connected:
            wanted = (0 if self._paused else READ) | (WRITE if self._blocked else 0)
            self._loop.change(self._socket.fileno(), wanted)


def _new_socket(*, backlog_bytes: int) -> _socket.socket:
    """Give an unconnected socket that the system lets us leave unread for ``backlog_bytes``, if it does."""
    made = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK)
    made.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
    if backlog_bytes:
        made.setsockopt(_socket.SOL_SOCKET, _socket.SO_RCVBUF, backlog_bytes)
        if made.getsockopt(_socket.SOL_SOCKET, _socket.SO_RCVBUF) < backlog_bytes:
            made.close()  # a smaller fixed size would be worse than the system's own, which grows
            return _new_socket(backlog_bytes=0)
    return made


def _rest(buffers: list[Part], sent: int) -> list[Part]:
    for index, buffer in enumerate(buffers):
        if sent < len(buffer):
            return [memoryview(buffer)[sent:], *buffers[index + 1 :]]
        sent -= len(buffer)
    return []


def random_identity() -> bytes:
    """Give a ZMQ identity that nobody else in the sandbox will use by accident."""
    return b"torpor-" + os.urandom(8).hex().encode()
