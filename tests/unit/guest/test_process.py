"""Starting and ending processes, their last lines, the loop, and when a kernel counts as ready."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from torpor.link import Channel
from torpor_guest.loop import READ, Loop
from torpor_guest.output import Output
from torpor_guest.probe import Probe
from torpor_guest.spawn import SpawnError, kill_session, spawn
from torpor_guest.zmtp import Part

ENV = {"PATH": "/usr/bin:/bin"}


@pytest.fixture(autouse=True)
def _same_folder() -> Any:
    """The guest holds no folder open; the test process wants its own back."""
    before = Path.cwd()
    yield
    os.chdir(before)


def output_of(argv: tuple[str, ...], **env: str) -> tuple[str, int]:
    spawned = spawn(argv, {**ENV, **env}, "/tmp")
    _, status = os.waitpid(spawned.pid, 0)
    with os.fdopen(spawned.output_fd, "rb") as file:
        return file.read().decode(), os.waitstatus_to_exitcode(status)


def test_spawned_process_is_alone_with_what_it_was_given() -> None:
    code = (
        "import os, sys\n"
        "print(os.getcwd(), sorted(dict(os.environ).keys() - {'LC_CTYPE'}), flush=True)\n"
        "print(os.getsid(0) == os.getpgid(0) == os.getpid(), sys.stdin.read() == '', flush=True)\n"
        "print('err', file=sys.stderr)\n"
        "sys.exit(7)"
    )
    text, exit_code = output_of((sys.executable, "-I", "-S", "-c", code), ONE="1")
    assert exit_code == 7
    assert text == "/tmp ['ONE', 'PATH']\nTrue True\nerr\n"


def test_ignored_signals_are_not_inherited() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        text, _ = output_of(("/bin/sh", "-c", "grep SigIgn /proc/self/status"))
    finally:
        signal.signal(signal.SIGINT, before)
    assert int(text.split()[1], 16) & (1 << (signal.SIGINT - 1) | 1 << (signal.SIGPIPE - 1)) == 0


def test_program_is_found_on_the_path_of_its_own_env(tmp_path: Path) -> None:
    program = tmp_path / "only-here"
    program.write_text("#!/bin/sh\necho found\n")
    program.chmod(0o755)
    assert output_of(("only-here",), PATH=f"/nowhere:{tmp_path}:/usr/bin:/bin")[0] == "found\n"


@pytest.mark.parametrize(
    ("argv", "cwd", "message"),
    [
        (("no-such",), "/", "cannot execute 'no-such': No such file"),
        (("/etc/passwd",), "/", "cannot execute '/etc/passwd': Permission denied"),
        (("/bin/sh",), "/no/such", "cannot enter the kernel's folder '/no/such': No such file"),
    ],
)
def test_what_cannot_start_says_why_and_leaves_nothing(
    argv: tuple[str, ...], cwd: str, message: str
) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(SpawnError, match=message):
        spawn(argv, ENV, cwd)
    assert set(os.listdir("/proc/self/fd")) == before


def test_kill_session_ends_all_groups_of_it() -> None:
    code = (
        "import subprocess,time,os\n"
        "print(subprocess.Popen(['sleep','60'],process_group=0).pid, flush=True); time.sleep(60)"
    )
    spawned = spawn((sys.executable, "-c", code), ENV, "/")
    os.set_blocking(spawned.output_fd, True)
    child = int(os.read(spawned.output_fd, 100))
    assert kill_session(spawned.pid) == {spawned.pid, child}
    os.waitpid(spawned.pid, 0)
    os.close(spawned.output_fd)
    end_s = time.monotonic() + 10
    while kill_session(spawned.pid) != set():  # it dies when the kernel of the host gets to it
        assert time.monotonic() < end_s


def filled(limit: int, *chunks: bytes) -> str:
    loop = Loop()
    read_fd, write_fd = os.pipe2(os.O_NONBLOCK)
    output = Output(loop, read_fd, limit)
    for chunk in chunks:
        os.write(write_fd, chunk)
        output.tail()
    os.close(write_fd)
    text = output.tail()
    loop.close()
    return text


def test_tail_keeps_the_last_whole_lines() -> None:
    assert filled(100, b"one\ntwo\n") == "one\ntwo\n"
    assert filled(8, b"first\n", b"two\nthree\n") == "three\n"
    assert filled(10, b"first\n", b"two\nthree\n") == "two\nthree\n"
    assert filled(4, b"abcdefgh") == "efgh"
    assert filled(10, b"x" * 60000, b"\xff\n") == "xxxxxxxx�\n"


def test_timers_run_in_time_and_can_be_cancelled() -> None:
    loop = Loop()
    seen: list[str] = []
    loop.after(0.01, lambda: seen.append("first"))
    loop.after(0.01, lambda: seen.append("never")).cancel()
    loop.after(0.02, lambda: (seen.append("last"), loop.stop())[0])
    start_s = time.monotonic()
    loop.run()
    loop.close()
    assert seen == ["first", "last"]
    assert time.monotonic() - start_s < 10


def test_a_forgotten_descriptor_is_silent() -> None:
    loop = Loop()
    fds = [os.pipe() for _ in range(2)]
    seen: list[int] = []

    def ready(index: int) -> None:
        seen.append(index)
        for read_fd, _ in fds:
            loop.forget(read_fd)
        loop.stop()

    for index, (read_fd, write_fd) in enumerate(fds):
        loop.watch(read_fd, READ, lambda _events, index=index: ready(index))
        os.write(write_fd, b"x")
    loop.run()
    loop.close()
    assert len(seen) == 1
    for pair in fds:
        for fd in pair:
            os.close(fd)


class Asked:
    """A probe with everything it does written down; it is its own connections."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.sent = 0
        self.ready: list[tuple[dict[str, Any], bool]] = []
        self.probe = Probe(self.loop, "key", self)  # type: ignore[arg-type]
        self.probe.wire_up()
        assert self.sent == 0
        self.probe.arm(lambda *seen: self.ready.append(seen))
        self.probe.wire_up()

    all_up = True

    @property
    def by_channel(self) -> dict[Channel, Asked]:
        return {Channel.SHELL: self}

    def send(self, parts: list[Part]) -> None:
        assert parts[0] == b"<IDS|MSG>"
        self.sent += 1

    def reply(self, kind: bytes = b"kernel_info_reply", content: bytes = b'{"a": 1}') -> None:
        header = b'{"msg_type": "' + kind + b'"}'
        self.probe.replied([b"<IDS|MSG>", b"sig", header, b"{}", b"{}", content])

    def run_for(self, delay_s: float) -> None:
        self.loop.after(delay_s, self.loop.stop)
        self.loop.run()
        self.loop.close()


def test_ready_needs_answer_and_iopub_in_either_order() -> None:
    one, two = Asked(), Asked()
    one.reply()
    assert one.ready == []
    one.probe.heard(welcome=False)
    two.probe.heard(welcome=True)
    assert two.ready == []
    two.reply()
    two.reply()
    assert (one.ready, two.ready) == ([({"a": 1}, False)], [({"a": 1}, True)])


def test_asks_again_while_iopub_is_silent() -> None:
    asked = Asked()
    asked.reply()
    asked.run_for(0.25)
    assert asked.sent in (2, 3)
    assert asked.ready == []


def test_other_and_broken_replies_do_not_count() -> None:
    asked = Asked()
    asked.probe.heard(welcome=True)
    asked.reply(kind=b"execute_reply")
    asked.reply(content=b"{")
    asked.probe.replied([b"<IDS|MSG>"])
    assert asked.ready == []
    asked.probe.disarm()
    asked.reply()
    assert asked.ready == []
