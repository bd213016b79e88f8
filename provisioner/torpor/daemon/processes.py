"""Which process is meant: a pid is reused, a pid together with its start time is not."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SO_PEERPIDFD = 77  # linux/include/uapi/asm-generic/socket.h, Linux 6.5


@dataclass(frozen=True, slots=True)
class Process:
    """One process for all time on this boot of the machine."""

    pid: int
    start_ticks: int
    """Clock ticks after boot, field 22 of ``/proc/PID/stat``."""
    boot_id: str

    def to_json(self) -> dict[str, Any]:
        return {"pid": self.pid, "start_ticks": self.start_ticks, "boot_id": self.boot_id}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Process:
        return cls(int(body["pid"]), int(body["start_ticks"]), str(body["boot_id"]))

    def alive(self) -> bool:
        """Whether this very process still runs; one that was not yet reaped does not."""
        return self.boot_id == boot_id() and start_ticks(self.pid) == self.start_ticks


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of a Unix socket, as the kernel recorded it at ``connect``."""

    pid: int
    uid: int


def boot_id() -> str:
    """Give the identity of this boot of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_ticks(pid: int) -> int | None:
    """Give when ``pid`` started, in clock ticks after boot; None when it does not run."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The name in parentheses may itself hold spaces and parentheses.
    fields = stat[stat.rindex(b")") + 2 :].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def process_of(pid: int) -> Process | None:
    """Give the process that has ``pid`` now; None when there is none."""
    ticks = start_ticks(pid)
    return None if ticks is None else Process(pid, ticks, boot_id())


def peer_of(sock: socket.socket) -> Peer:
    """Give the process at the other end of a connected Unix socket."""
    size = struct.calcsize("3i")
    pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return Peer(pid=pid, uid=uid)


def peer_process(sock: socket.socket) -> Process | None:
    """Give the connecting process of ``sock``; None when it has gone or cannot be seen from here.

    Where the kernel hands out a pidfd for the peer the answer cannot be a later process with the
    same pid.
    """
    peer = peer_of(sock)
    if peer.pid <= 0:
        return None
    process = process_of(peer.pid)
    if process is None:
        return None
    with contextlib.suppress(OSError):
        pidfd = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
        try:
            return None if _has_exited(pidfd) else process
        finally:
            os.close(pidfd)
    return process


class ExitWatch:
    """Calls ``on_exit`` once, from the event loop, when a process has exited. ``close`` ends it."""

    def __init__(self, process: Process, on_exit: Callable[[], None]) -> None:
        """Start watching; an already dead process is reported in the next turn of the loop."""
        self._loop = asyncio.get_running_loop()
        self._on_exit = on_exit
        self._pidfd: int | None = None
        self._soon: asyncio.Handle | None = None
        try:
            self._pidfd = os.pidfd_open(process.pid)
        except OSError:
            self._soon = self._loop.call_soon(self._fire)
            return
        if not process.alive():  # the pid belongs to somebody else now
            self._soon = self._loop.call_soon(self._fire)
            return
        self._loop.add_reader(self._pidfd, self._fire)

    def _fire(self) -> None:
        self.close()
        self._on_exit()

    def close(self) -> None:
        """Stop watching. Twice is fine."""
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None


class ExitWatches:
    """Watches processes with one descriptor each, however many are interested in the same one."""

    def __init__(self) -> None:
        self._watched: dict[Process, tuple[ExitWatch, list[Interest]]] = {}

    def watch(self, process: Process, on_exit: Callable[[], None]) -> Interest:
        """Have ``on_exit`` called once, from the event loop, when ``process`` has exited."""
        interest = Interest(self, process, on_exit)
        if process in self._watched:
            self._watched[process][1].append(interest)
        else:
            watch = ExitWatch(process, lambda: self._exited(process))
            self._watched[process] = (watch, [interest])
        return interest

    def forget(self, interest: Interest) -> None:
        """Call it no more; the last one closes the descriptor. Twice is fine."""
        watch, interested = self._watched.get(interest.process, (None, []))
        if watch is not None and interest in interested:
            interested.remove(interest)
            if not interested:
                del self._watched[interest.process]
                watch.close()

    def _exited(self, process: Process) -> None:
        _, interested = self._watched.pop(process)
        for each in interested:
            each.on_exit()


@dataclass(frozen=True, slots=True, eq=False)
class Interest:
    """One who wants to hear of an exit, until ``close``."""

    watches: ExitWatches
    process: Process
    on_exit: Callable[[], None]

    def close(self) -> None:
        """Stop. Twice is fine."""
        self.watches.forget(self)


def _has_exited(pidfd: int) -> bool:
    import select

    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))
