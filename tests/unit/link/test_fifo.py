"""The link over real FIFOs, between real processes, some of which are killed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from torpor.link import Channel, Link, Message, Role
from torpor.link.fifo import FifoStream

from tests.unit.link import carrier as programs
from tests.unit.link.carrier import Carrier, handled_lines, until

SHELL, IOPUB = Channel.SHELL, Channel.IOPUB


@pytest.fixture
def fifos(tmp_path: Path) -> Path:
    """A directory with the two FIFOs of a kernel."""
    for name in ("to_guest", "from_guest"):
        os.mkfifo(tmp_path / name, 0o600)
    return tmp_path


@contextlib.contextmanager
def process(role: str, fifos: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``carrier.py`` in a process of its own, and kill it at the end."""
    argv = [sys.executable, programs.__file__, role, str(fifos)]
    with subprocess.Popen(argv) as child:
        try:
            yield child
        finally:
            child.kill()


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_what_one_writes_the_other_reads(fifos: Path) -> None:
    before = open_fds()
    host = FifoStream.open(fifos / "from_guest", fifos / "to_guest")
    guest = FifoStream.open(str(fifos / "to_guest"), str(fifos / "from_guest"))
    assert host.read() == b""
    assert host.write([b"abc", memoryview(b"def"), bytearray(b"g")]) == 7
    assert guest.read(2) == b"ab"
    assert guest.read() == b"cdefg"
    assert guest.write([]) == 0
    for stream in (host, guest):
        stream.close()
        stream.close()
        assert (stream.read_fileno(), stream.write_fileno()) == (-1, -1)
    assert open_fds() == before


def test_a_full_fifo_takes_what_fits_and_then_nothing(fifos: Path) -> None:
    stream = FifoStream.open(fifos / "from_guest", fifos / "to_guest")
    with contextlib.closing(stream):
        room = fcntl.fcntl(stream.write_fileno(), fcntl.F_GETPIPE_SZ)
        assert stream.write([b"x" * 1000] * 5000) == 1_024_000  # no more buffers than writev takes
        assert stream.write([b"x" * room]) == room - 1_024_000 > 0
        assert stream.write([b"x"]) == 0


def test_descriptors_do_not_leak_into_children(fifos: Path) -> None:
    stream = FifoStream.open(fifos / "from_guest", fifos / "to_guest")
    with contextlib.closing(stream):
        for fd in (stream.read_fileno(), stream.write_fileno()):
            assert not os.get_inheritable(fd)
            assert not os.get_blocking(fd)


@pytest.mark.parametrize("missing", ["to_guest", "from_guest"])
def test_a_fifo_that_is_missing_or_a_file_leaves_nothing_open(fifos: Path, missing: str) -> None:
    before = open_fds()
    (fifos / missing).unlink()
    with pytest.raises(FileNotFoundError):
        FifoStream.open(fifos / "from_guest", fifos / "to_guest")
    (fifos / missing).write_bytes(b"")
    with pytest.raises(OSError, match="is not a FIFO"):
        FifoStream.open(fifos / "from_guest", fifos / "to_guest")
    assert open_fds() == before


def test_one_descriptor_for_both_directions_and_the_end_of_it() -> None:
    """Such as a socket: the pipe size does not apply, and closing is noticed."""
    ours, theirs = socket.socketpair()
    stream = FifoStream(fd := ours.detach(), fd)
    theirs.send(b"hello")
    assert stream.read() == b"hello"
    assert stream.read() == b""
    assert stream.write([b"hi"]) == 2
    assert theirs.recv(9) == b"hi"
    theirs.close()
    with pytest.raises(EOFError):
        stream.read()
    stream.close()
    stream.close()


def test_100_mb_both_ways(fifos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = random.Random(1).randbytes(1 << 20) * 100
    with process("echo", fifos):
        host = Carrier(Role.HOST, Link(Role.HOST), fifos)
        host.link.send(SHELL, [b"warm up"])
        got: list[Message] = []
        until(lambda: host.turn(got.append, 0.1) and bool(got), 20)
        began = time.perf_counter()
        host.link.send(SHELL, [b"head", body])
        while len(got) < 2:
            host.turn(got.append, 1.0)
        took_s = time.perf_counter() - began
    assert got[1].parts[0] == b"head"
    assert got[1].parts[1] == body
    rate = 2 * len(body) / took_s / 1e6
    with capsys.disabled():
        print(f"\n100 MiB there and back over FIFOs: {took_s:.2f} s, {rate:.0f} MB/s")
    assert took_s < 20
    host.stream.close()


class TalkativeGuest:
    """Sends numbered messages as long as they are taken, and notes what it hears."""

    def __init__(self, fifos: Path) -> None:
        self.carrier = Carrier(Role.GUEST, Link(Role.GUEST), fifos)
        self.heard: list[tuple[int, int]] = []
        self.sent = 0

    def hear(self, message: Message) -> None:
        name, body = message.parts
        pid, number = map(int, bytes(name).split())
        assert len(body) == number % 7 * 40_000
        assert bytes(body) == b"s" * len(body)
        self.heard.append((pid, number))
        self.carrier.link.acknowledge(message)

    def live(self, turns: int) -> None:
        link = self.carrier.link
        for _ in range(turns):
            while link.pending_bytes(IOPUB) < 1 << 20:
                link.send(IOPUB, [b"%d" % self.sent, b"g" * (self.sent % 5 * 50_000)])
                self.sent += 1
            self.carrier.turn(self.hear, 0.002)

    def hears(self, pid: int) -> bool:
        self.live(1)
        return bool(self.heard) and self.heard[-1][0] == pid

    def is_done(self, fifos: Path) -> bool:
        self.carrier.turn(self.hear, 0.01)
        return len(handled_lines(fifos)) >= self.sent


@pytest.mark.parametrize("seed", range(4))
def test_host_processes_killed_in_the_middle_of_everything(fifos: Path, seed: int) -> None:
    """The next process goes on: nothing from the guest lost or repeated, nothing of a host torn."""
    dice = random.Random(seed)
    guest = TalkativeGuest(fifos)
    pids = []
    for _ in range(4):
        with process("collector", fifos) as child:
            pids.append(child.pid)
            until(lambda: guest.hears(pids[-1]), 20)
            guest.live(dice.randrange(60))
            child.send_signal(signal.SIGKILL)
        guest.live(dice.randrange(20))  # it does not know, and writes until the FIFO is full
    with process("collector", fifos):
        until(lambda: guest.is_done(fifos), 20)
    assert handled_lines(fifos) == [str(number) for number in range(guest.sent)]
    for pid in pids:
        numbers = [number for process, number in guest.heard if process == pid]
        assert numbers == list(range(len(numbers)))
        assert numbers
    guest.carrier.stream.close()
