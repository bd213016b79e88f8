"""What processes here hold of the world outside: files of one folder, and connections to peers.

Looked at before the sandbox is saved, because none of it is in its memory. Bounded: a kernel may have
thousands of files open.
"""

from __future__ import annotations

import os

_MOST_FILES = 500
_MOST_PEERS = 100
_MOST_BYTES = 64 * 1024
_TABLES = ("tcp", "tcp6", "udp", "udp6")
_GONE = frozenset({"06", "07", "0A"})  # TIME_WAIT, CLOSE, LISTEN: nobody talks there


def open_files(folder: str) -> list[str]:
    """Give the paths in ``folder`` that any process has open, or stands in, and that still exist."""
    found: set[str] = set()
    top = folder.rstrip("/") + "/"
    size = 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        for link in _links(f"/proc/{pid}"):
            try:
                path = os.readlink(link)
            except OSError:  # closed meanwhile
                continue
            if not (path == folder or path.startswith(top)) or path in found:
                continue
            size += len(os.fsencode(path))
            if len(found) >= _MOST_FILES or size > _MOST_BYTES:
                return sorted(found)
            found.add(path)
    return sorted(found)


def _links(process: str) -> list[str]:
    try:
        return [f"{process}/cwd", *(f"{process}/fd/{fd}" for fd in os.listdir(f"{process}/fd"))]
    except OSError:  # it has ended meanwhile
        return []


def peers() -> list[str]:
    """Give who processes here are connected with, other than each other: ``tcp 192.0.2.7:443``."""
    found: set[str] = set()
    for name in _TABLES:
        try:
            with open(f"/proc/net/{name}", encoding="ascii", errors="replace") as table:
                found.update(peers_in(table.read(), name[:3]))
        except OSError:  # no network at all
            continue
    return sorted(found)[:_MOST_PEERS]


def peers_in(table: str, name: str) -> list[str]:
    """Give the peers in the text of ``/proc/net/tcp`` or one like it, without loopback."""
    found = []
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 4 or (name == "tcp" and fields[3] in _GONE):
            continue
        address, _, port = fields[2].partition(":")
        try:
            raw = bytes.fromhex(address)
            number = int(port, 16)
        except ValueError:
            continue
        if len(raw) not in (4, 16) or not number:
            continue
        # The kernel prints words of four bytes in its own order, which is little-endian here.
        packed = b"".join(raw[at : at + 4][::-1] for at in range(0, len(raw), 4))
        if packed[:12] == b"\0" * 10 + b"\xff\xff":
            packed = packed[12:]
        if not any(packed) or _is_loopback(packed):
            continue
        import _socket  # the socket module builds enums for milliseconds, and this is rare

        family = _socket.AF_INET if len(packed) == 4 else _socket.AF_INET6
        text = _socket.inet_ntop(family, packed)
        found.append(f"{name} {text}:{number}" if len(packed) == 4 else f"{name} [{text}]:{number}")
    return found


def _is_loopback(packed: bytes) -> bool:
    return packed[0] == 127 if len(packed) == 4 else packed == b"\0" * 15 + b"\1"
