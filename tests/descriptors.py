"""What the descriptors of torpord and the bridge are, by kind, from /proc."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from tests.world import processes_of

KINDS = ("listening", "mailboxes", "clients", "other")


def descriptors(home: Path) -> Counter[str]:
    """Count them: ``listening`` TCP sockets, ``clients``' connections to those, ``mailboxes``, ``other``.

    A mailbox is the eventfd that libzmq needs for each socket. Also counts ``threads`` and ``rss`` bytes,
    and names each other descriptor as ``other: what it is``.
    """
    found: Counter[str] = Counter()
    tcp = _tcp_states()
    for pid in processes_of(home):
        folder = Path(f"/proc/{pid}")
        try:
            fds, threads = os.listdir(folder / "fd"), len(os.listdir(folder / "task"))
            _, _, memory = (folder / "status").read_text().partition("VmRSS:")
        except OSError:  # it has ended meanwhile
            continue
        if not memory:  # it is ending: its memory has gone already
            continue
        for fd in fds:
            try:
                target = os.readlink(folder / "fd" / fd)
            except OSError:  # closed meanwhile
                continue
            found.update(_kind(target, tcp))
        found["threads"] += threads
        found["rss"] += int(memory.split()[0]) * 1024
    return found


def _kind(target: str, tcp: dict[str, str]) -> tuple[str, ...]:
    if target == "anon_inode:[eventfd]":
        return ("mailboxes",)
    state = tcp.get(target.removeprefix("socket:[").removesuffix("]"))
    if state is not None:
        return ("listening" if state == "0A" else "clients",)
    return "other", f"other: {target}"


def _tcp_states() -> dict[str, str]:
    states = {}
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            states[fields[9]] = fields[3]
    return states
