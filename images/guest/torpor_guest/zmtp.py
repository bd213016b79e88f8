"""ZMTP 3.0 without I/O: the client side of one DEALER, SUB or REQ connection, mechanism NULL.

Instead of pyzmq because libzmq brings two threads (each message would wake one of them first, and
each is one more thing for a checkpoint to carry), 80 ms of import in a sandbox and 8 MiB, and
because an environment without pyzmq (R, Julia, xeus) can then hold a kernel too. Wire format
(https://rfc.zeromq.org/spec/23)::

    greeting  ff 00*8 7f | 03 00 | "NULL" 00*16 | 00 | 00*31                          64 bytes, each
    way frame     flags(1: MORE=1 LONG=2 COMMAND=4) size(1, or 8 if LONG; big endian) body
    command   name length(1) name data;  READY's data: (name length(1) name value length(4) value)*
    SUB       subscribes with the message 01 prefix
"""

Part = bytes | bytearray | memoryview

_MORE, _LONG, _COMMAND = 1, 2, 4
_GREETING_BYTES = 64
_ROOM_BYTES = 65536
# A frame above this gets its own buffer and is read straight into it; below, frames are cut out of
# the room.
_LARGE_BYTES = 16384
# Below this a copy into one buffer is cheaper than one more entry in a scatter list.
_JOIN_BYTES = 4096
_MAX_PARTS = 4096


class ZmtpError(Exception):
    """The peer does not speak ZMTP 3 as expected; the connection must be closed."""


def encode(parts: list[Part]) -> list[Part]:
    """Give the buffers of one multipart message; large parts are passed through, not copied."""
    buffers: list[Part] = []
    small: list[Part] = []
    last = len(parts) - 1
    for index, part in enumerate(parts):
        size = len(part)
        more = _MORE if index < last else 0
        if size < 256:
            small.append(bytes((more, size)))
        else:
            small.append(bytes((more | _LONG,)) + size.to_bytes(8, "big"))
        if size < _JOIN_BYTES:
            small.append(part)
        else:
            buffers += (b"".join(small), part)
            small = []
    if small:
        buffers.append(b"".join(small))
    return buffers


class Zmtp:
    """One connection: bytes into ``room()``, messages from ``received``; ``answers`` must be sent.

    ``up`` turns true when the handshake is done; messages may be sent from then on. After a
    ZmtpError the object is of no further use.
    """

    __slots__ = (
        "_end", "_filled", "_flags", "_greeted", "_large", "_limit", "_parts", "_ready", "_room",
        "_size", "_view", "answers", "up",
    )  # fmt: skip

    def __init__(self, socket_type: bytes, identity: bytes, max_message_bytes: int) -> None:
        self._limit = max_message_bytes
        self._room = bytearray(_ROOM_BYTES)
        self._view = memoryview(self._room)
        self._end = 0
        self._large: bytearray | None = None  # a frame that is read straight into its own buffer
        self._filled = 0
        self._flags = 0
        self._parts: list[Part] = []
        self._size = 0
        self._greeted = False
        self._ready = _ready(socket_type, identity)
        self.up = False
        self.answers: list[bytes] = [b"\xff\0\0\0\0\0\0\0\0\x7f\x03\0NULL".ljust(64, b"\0")]

    def room(self) -> memoryview:
        """Give where the next received bytes must be put (never empty)."""
        if self._large is not None:
            return memoryview(self._large)[self._filled :]
        return self._view[self._end :]

    def received(self, count: int) -> list[list[Part]]:
        """Take ``count`` bytes that were put into ``room()``; give the messages they complete.

        Raises:
            ZmtpError: a byte that ZMTP 3 does not allow here, or a message above the limit.
        """
        out: list[list[Part]] = []
        if self._large is not None:
            self._filled += count
            if self._filled == len(self._large):
                large, self._large = self._large, None
                self._take(self._flags, memoryview(large), out)
            return out
        self._end += count
        used = 0
        if not self._greeted:
            if self._end < _GREETING_BYTES:
                return out
            self._greet()
            used = _GREETING_BYTES
        used = self._cut(used, out)
        if used:
            left = self._end - used
            self._view[:left] = self._view[used : self._end]
            self._end = left
        return out

    def _greet(self) -> None:
        room = self._room
        if room[0] != 0xFF or room[9] != 0x7F or room[10] < 3:
            raise ZmtpError("the peer does not greet with ZMTP 3")
        if bytes(room[12:32]).rstrip(b"\0") != b"NULL":
            raise ZmtpError("the peer wants another security mechanism than NULL")
        self._greeted = True
        self.answers.append(self._ready)

    def _cut(self, start: int, out: list[list[Part]]) -> int:
        """Take the complete frames from ``start`` on; give where the rest begins."""
        room, view, end = self._room, self._view, self._end
        while end - start >= 2:
            flags = room[start]
            if flags & _LONG:
                if end - start < 9:
                    break
                body, size = start + 9, int.from_bytes(view[start + 1 : start + 9], "big")
            else:
                body, size = start + 2, room[start + 1]
            if flags > 7 or size > self._limit - self._size:
                raise ZmtpError(f"frame of {size} bytes with flags {flags} is not acceptable")
            if body + size <= end:
                start = body + size
                self._take(flags, bytes(view[body:start]), out)
            elif size > _LARGE_BYTES:
                self._large, self._filled, self._flags = bytearray(size), end - body, flags
                self._large[: end - body] = view[body:end]
                return end
            else:
                break
        return start

    def _take(self, flags: int, body: Part, out: list[list[Part]]) -> None:
        if flags & _COMMAND:
            self._command(bytes(body))
            return
        if not self.up or len(self._parts) >= _MAX_PARTS:
            raise ZmtpError("message before READY" if not self.up else "message of too many parts")
        self._parts.append(body)
        self._size += len(body)
        if not flags & _MORE:
            out.append(self._parts)
            self._parts, self._size = [], 0

    def _command(self, body: bytes) -> None:
        name = body[1 : 1 + body[0]] if body else b""
        if name == b"READY" and not self.up:
            self.up = True
        elif name == b"ERROR":
            raise ZmtpError(f"the peer refused the handshake: {body[7:]!r:.200}")
        elif name == b"PING" and self.up:
            self.answers.append(_command(b"PONG", body[7:23]))
        elif not self.up:
            raise ZmtpError(f"command {name!r:.40} before READY")


def _command(name: bytes, body: bytes) -> bytes:
    size = 1 + len(name) + len(body)
    return bytes((_COMMAND, size, len(name))) + name + body


def _ready(socket_type: bytes, identity: bytes) -> bytes:
    fields = b""
    for name, value in ((b"Socket-Type", socket_type), (b"Identity", identity)):
        fields += bytes((len(name),)) + name + len(value).to_bytes(4, "big") + value
    return _command(b"READY", fields)
