"""What the guest says of open files and of connections, from the kernel's own tables."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from torpor_guest.outside import open_files, peers_in

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def row(remote: str, state: str = "01") -> str:
    return (
        f" 126: 0100007F:5947 {remote} {state} 00000000:00000000 00:00000000 00000000  0 0 127 1\n"
    )


@pytest.mark.parametrize(
    ("name", "line", "found"),
    [
        ("tcp", row("0100007F:2F9D"), []),
        ("tcp", row("070200C0:01BB"), ["tcp 192.0.2.7:443"]),
        ("tcp", row("070200C0:01BB", "02"), ["tcp 192.0.2.7:443"]),
        ("tcp", row("070200C0:01BB", "06"), []),
        ("tcp", row("00000000:0000", "0A"), []),
        ("udp", row("070200C0:0035", "07"), ["udp 192.0.2.7:53"]),
        ("udp", row("00000000:0000", "07"), []),
        ("tcp", row("B80D0120000000000000000001000000:01BB"), ["tcp [2001:db8::1]:443"]),
        ("tcp", row("00000000000000000000000001000000:01BB"), []),
        ("tcp", row("0000000000000000FFFF0000070200C0:01BB"), ["tcp 192.0.2.7:443"]),
        ("tcp", row("0000000000000000FFFF00000100007F:01BB"), []),
        ("tcp", "nonsense\n", []),
        ("tcp", row("zz:01BB"), []),
        ("tcp", row("0702:01BB"), []),
    ],
)
def test_peers(name: str, line: str, found: list[str]) -> None:
    assert peers_in(HEAD + line, name) == found


def test_open_files(tmp_path: Path) -> None:
    """Of this process, and so of every other."""
    inside, outside = tmp_path / "ws", tmp_path / "ws2"
    inside.mkdir()
    outside.mkdir()
    with (inside / "a").open("w"), (outside / "b").open("w"), (inside / "c").open("w"):
        os.unlink(inside / "c")
        fd = os.open(inside, os.O_RDONLY)
        try:
            found = open_files(str(inside))
        finally:
            os.close(fd)
    assert [each for each in found if "(deleted)" not in each] == [str(inside), f"{inside}/a"]
    assert open_files(str(inside)) == []
