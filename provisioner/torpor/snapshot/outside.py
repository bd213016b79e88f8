"""What of a hibernated kernel is not in its snapshot: files of its workspace, connections to peers.

gVisor opens files again by their path. One that is gone, or is no longer of its kind, lets the restore
fail; one that was replaced or written to does not, and the kernel goes on with what is there now.

The guest names the paths and may name anything. So only what lies in the workspace is looked at, through
no symbolic link, and never opened for reading; numbers and lengths are bounded.
"""

from __future__ import annotations

import ipaddress
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torpor.python_prefix import within

MOST_FILES = 1_000
MOST_PEERS = 100
_MOST_PATH_BYTES = 4_096
_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A file or folder of the workspace as it was; ``path`` is relative to it, "" itself."""

    path: str
    kind: str
    """``file`` or ``folder``."""
    inode: int
    size_bytes: int
    mtime_ns: int

    def to_json(self) -> list[Any]:
        return [self.path, self.kind, self.inode, self.size_bytes, self.mtime_ns]


@dataclass(frozen=True, slots=True)
class Outside:
    """All of it, as it was when the kernel was saved."""

    files: tuple[OpenFile, ...] = ()
    peers: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Give what ``parse_outside`` reads."""
        return {"files": [each.to_json() for each in self.files], "peers": list(self.peers)}


@dataclass(frozen=True, slots=True)
class Lost:
    """One thing that the kernel had and has no more, or not as it was."""

    kind: str
    """``file``, ``folder`` or ``connection``."""
    what: str
    reason: str
    fatal: bool = field(default=False, compare=False)
    """gVisor cannot restore a kernel like this."""

    def to_json(self) -> dict[str, str]:
        return {"kind": self.kind, "what": self.what, "reason": self.reason}


def parse_outside(body: object) -> Outside:
    """Read what ``to_json`` gave; None is an older manifest, which has nothing. Raises ValueError."""
    if body is None:
        return Outside()
    if not isinstance(body, Mapping):
        raise ValueError("outside is not an object")
    files, peers = body.get("files", []), body.get("peers", [])
    if not isinstance(files, list) or not isinstance(peers, list):
        raise ValueError("outside holds no lists")
    if not all(isinstance(each, str) for each in peers):
        raise ValueError("outside.peers is not a list of texts")
    return Outside(tuple(_file(row) for row in files), tuple(peers))


def _file(row: object) -> OpenFile:
    match row:
        case [str(path), "file" | "folder" as kind, int(inode), int(size), int(mtime)]:
            return OpenFile(path, kind, inode, size, mtime)
    raise ValueError("outside.files has a row that is none")


def take(workspace: str | None, paths: Iterable[object], peers: Iterable[object]) -> Outside:
    """Give what there is now of what a guest says that its processes hold. Blocks a little."""
    found: dict[str, OpenFile] = {}
    for path in paths:
        if workspace is None or len(found) >= MOST_FILES:
            break
        relative = _relative(path, workspace)
        if relative is not None and relative not in found:
            seen = look(workspace, relative)
            if seen is not None:
                found[relative] = seen
    known = {peer for each in peers if (peer := _peer(each))}
    return Outside(tuple(found[each] for each in sorted(found)), tuple(sorted(known)[:MOST_PEERS]))


def look(workspace: str, relative: str) -> OpenFile | None:
    """Give how a file or folder is now; None: it is gone, or something else, or not ours to see."""
    try:
        fd = os.open(workspace, _LOOK | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        for name in relative.split("/") if relative else ():
            inner = os.open(name, _LOOK, dir_fd=fd)
            os.close(fd)
            fd = inner
        seen = os.fstat(fd)
    except OSError:
        return None
    finally:
        os.close(fd)
    if stat.S_ISREG(seen.st_mode):
        return OpenFile(relative, "file", seen.st_ino, seen.st_size, seen.st_mtime_ns)
    return OpenFile(relative, "folder", seen.st_ino, 0, 0) if stat.S_ISDIR(seen.st_mode) else None


def lost(workspace: str | None, outside: Outside) -> list[Lost]:
    """Compare what a kernel had with what there is now; all of it is something to tell. Blocks."""
    files = [_compared(workspace, each) for each in outside.files] if workspace else []
    gone = "connections outside the sandbox do not last through a sleep"
    return [
        *(each for each in files if each),
        *(Lost("connection", peer, gone) for peer in outside.peers),
    ]


def _compared(workspace: str, was: OpenFile) -> Lost | None:
    what, now = os.path.join(workspace, was.path).rstrip("/"), look(workspace, was.path)
    if now is None or now.kind != was.kind:
        there = "is gone" if not os.path.lexists(what) else f"is no {was.kind} any more"
        return Lost(was.kind, what, f"it {there}; the kernel has it open", fatal=True)
    if now.inode != was.inode:
        reason = "it was replaced: what is open now is the new one"
    elif now.kind == "folder":
        return None
    elif now.size_bytes < was.size_bytes:
        reason = f"it was cut from {was.size_bytes} to {now.size_bytes} bytes"
    elif (now.size_bytes, now.mtime_ns) != (was.size_bytes, was.mtime_ns):
        reason = "it was written to"
    else:
        return None
    return Lost(was.kind, what, reason)


def why_not_restored(found: Iterable[Lost]) -> str | None:
    """Give what to put back before a restore can succeed; None if it is not for want of a file."""
    fatal = [each for each in found if each.fatal]
    if not fatal:
        return None
    first = fatal[0]
    more = f" (and {len(fatal) - 1} more)" if len(fatal) > 1 else ""
    return f"{first.kind} {first.what}{more}: {first.reason}; put it back, then ask again"


def words(found: Iterable[Mapping[str, Any]]) -> list[str]:
    """Give one line for each thing that was lost, as its JSON tells of it."""
    return [f"{each.get('kind')} {each.get('what')}: {each.get('reason')}" for each in found]


def _relative(path: object, workspace: str) -> str | None:
    if not isinstance(path, str) or "\0" in path or not within(path, workspace):
        return None
    relative = path[len(workspace.rstrip("/")) :].strip("/")
    try:
        too_long = len(os.fsencode(relative)) > _MOST_PATH_BYTES
    except UnicodeError:
        return None
    parts = relative.split("/") if relative else []
    return None if too_long or any(part in ("", ".", "..") for part in parts) else relative


def _peer(said: object) -> str:
    """Give ``tcp 192.0.2.7:443`` back if it is one; "" otherwise."""
    if not isinstance(said, str) or len(said) > 80:
        return ""
    protocol, _, rest = said.partition(" ")
    address, _, port = rest.rpartition(":")
    try:
        ip = ipaddress.ip_address(address.removeprefix("[").removesuffix("]"))
    except ValueError:
        return ""
    plain = protocol in ("tcp", "udp") and port.isascii() and port.isdigit() and len(port) <= 5
    return said if plain and not ip.is_loopback else ""
