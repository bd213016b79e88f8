"""What a hibernated kernel cannot keep is told after the wake, once, and not found by surprise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager

from tests.e2e.cells import run, tell, value
from tests.e2e.sleeping import do, events, own_kernel, sandbox_pids, state, wait_status
from tests.home import torpor_home

pytestmark = [pytest.mark.runsc, pytest.mark.timeout(120)]

Pair = tuple[KernelManager, BlockingKernelClient]
TEXT = "one\ntwo\nthree\n"
QUIET = '"freeze_after_s": 0, "hibernate_after_s": 0'
OPEN = "f = open('a.txt', 'r+'); f.readline(); f.fileno() and None"
MAP = "import mmap; g = open('a.txt', 'r+'); m = mmap.mmap(g.fileno(), 0); g.close(); m[0] and None"
STAND = "import os; os.makedirs('d'); os.chdir('d')"


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    with torpor_home(f'c.Torpor.templates = {{"default": {{{QUIET}}}}}\n') as folder:
        yield folder


@pytest.fixture
def ws(tmp_path: Path) -> Path:
    folder = tmp_path / "ws"
    folder.mkdir()
    (folder / "a.txt").write_text(TEXT)
    return folder


@pytest.fixture
def pair(home: Path, ws: Path) -> Iterator[Pair]:
    with own_kernel(home, ws) as started:
        yield started


def replace(ws: Path) -> None:
    (ws / "b").write_text(TEXT.upper())
    (ws / "b").rename(ws / "a.txt")


def cut(ws: Path) -> None:
    os.truncate(ws / "a.txt", 4)


def write(ws: Path) -> None:
    with (ws / "a.txt").open("a") as file:
        file.write("four\n")


def last_wake(home: Path) -> dict[str, object]:
    return events(home, "woken")[-1]


@pytest.mark.parametrize(
    ("hold", "harm", "reason"),
    [
        (OPEN, replace, "it was replaced"),
        pytest.param(OPEN, cut, "it was cut from 14 to 4 bytes", marks=pytest.mark.slow),
        pytest.param(OPEN, write, "it was written to", marks=pytest.mark.slow),
        pytest.param(MAP, replace, "it was replaced", marks=pytest.mark.slow),
    ],
)
def test_a_file_that_is_not_as_it_was(
    home: Path, pair: Pair, ws: Path, hold: str, harm: Callable[[Path], None], reason: str
) -> None:
    km, kc = pair
    tell(kc, hold)
    do(km, "hibernate")
    harm(ws)
    ran = run(kc, "1 + 1")
    [lost] = state(km)["sleep"]["lost"]
    assert lost["kind"] == "file"
    assert lost["what"] == str(ws / "a.txt")
    assert lost["reason"].startswith(reason)
    assert ran.result == "2"
    assert str(ws / "a.txt") in ran.stderr
    assert "hibernated for" in ran.stderr
    assert len(ran.of_type("stream")) == 1
    assert last_wake(home)["lost"] == [lost]
    assert run(kc, "1 + 1").stderr == "", "once"
    do(km, "hibernate")
    assert run(kc, "1 + 1").stderr == "", "and not after the next sleep"
    assert state(km)["sleep"]["lost"] == []


def test_nothing_is_told_when_nothing_was_lost(home: Path, pair: Pair, ws: Path) -> None:
    """Also a file that the kernel itself has written to, mapped, or removed, is as it was."""
    km, kc = pair
    (ws / "c.txt").write_text(TEXT)
    tell(kc, OPEN)
    tell(kc, MAP)
    tell(kc, "m[0:3] = b'ONE'; f.seek(0, 2); f.write('more'); f.flush(); log = open('log', 'a')")
    tell(kc, "log.write('x' * 100); log.flush(); c = open('c.txt')")
    tell(kc, "import os; gone = open('gone', 'w'); os.unlink('gone')")
    do(km, "hibernate")
    (ws / "untouched by the kernel").write_text("")
    ran = run(kc, "log.write('y'); log.flush(); c.read()")
    assert ran.stderr == ""
    assert state(km)["sleep"]["lost"] == []
    assert last_wake(home)["lost"] == []
    assert (ws / "log").read_text() == "x" * 100 + "y"


@pytest.mark.parametrize(
    ("hold", "name"),
    [
        (OPEN, "a.txt"),
        pytest.param(MAP, "a.txt", marks=pytest.mark.slow),
        pytest.param(STAND, "d", marks=pytest.mark.slow),
    ],
)
def test_a_file_that_is_gone(home: Path, pair: Pair, ws: Path, hold: str, name: str) -> None:
    """gVisor cannot restore that: the error says which, and putting it back is enough."""
    km, kc = pair
    tell(kc, f"x = 1\n{hold}")
    do(km, "hibernate")
    (ws / name).rename(ws / "away")
    ran = run(kc, "x += 1", timeout_s=20)
    assert f"{ws / name}" in ran.reply["evalue"]
    assert "is gone" in ran.reply["evalue"]
    assert "put it back" in ran.reply["evalue"]
    wait_status(km, "hibernated")  # the client is told a moment before
    (ws / "away").rename(ws / name)
    assert value(kc, "x") == "1"
    assert sandbox_pids(home)


@pytest.mark.slow
@pytest.mark.parametrize("link", [True, False])
def test_a_file_that_is_something_else_now(pair: Pair, ws: Path, link: bool) -> None:
    """gVisor itself fails at that without a word."""
    km, kc = pair
    tell(kc, f"x = 1\n{OPEN}")
    do(km, "hibernate")
    (ws / "a.txt").rename(ws / "away")
    (ws / "a.txt").symlink_to("away") if link else (ws / "a.txt").mkdir()
    said = run(kc, "x", timeout_s=20).reply["evalue"]
    assert "is no file any more" in said
    assert "put it back" in said
    (ws / "a.txt").unlink() if link else (ws / "a.txt").rmdir()
    (ws / "away").rename(ws / "a.txt")
    assert value(kc, "x, f.readline()") == "(1, 'two\\n')"


def test_one_that_is_woken_by_nobodys_cell_tells_the_next(pair: Pair, ws: Path) -> None:
    km, kc = pair
    tell(kc, OPEN)
    do(km, "hibernate")
    replace(ws)
    command = [sys.executable, "-m", "torpor", "wake", str(km.kernel_id)]
    said = subprocess.run(command, check=True, timeout=30, capture_output=True, text=True)
    assert f"not as before: file {ws / 'a.txt'}: it was replaced" in said.stderr
    listed = [sys.executable, "-m", "torpor", "kernels"]
    shown = subprocess.run(listed, check=True, timeout=30, capture_output=True, text=True)
    assert "woke with changes: file" in shown.stdout
    as_json = subprocess.run([*listed, "--json"], check=True, timeout=30, capture_output=True)
    [kernel] = [
        each for each in json.loads(as_json.stdout)["kernels"] if each["kernel_id"] == km.kernel_id
    ]
    assert [each["kind"] for each in kernel["sleep"]["lost"]] == ["file"]
    msg_id = kc.execute("silence = 1", silent=True)
    while kc.get_shell_msg(timeout=10)["parent_header"]["msg_id"] != msg_id:
        pass
    assert "it was replaced" in run(kc, "2").stderr
    assert run(kc, "3").stderr == ""


@pytest.mark.slow
def test_clocks_go_on_while_it_sleeps(pair: Pair) -> None:
    """Monotonic time counts the sleep, as on a laptop that was closed; what was due is due at once."""
    km, kc = pair
    tell(
        kc,
        "import signal, threading, time; at = time.monotonic(); wall = time.time(); fired = []\n"
        "note = lambda *_: fired.append(time.monotonic() - at)\n"
        "threading.Timer(5, note).start(); threading.Timer(3600, note).start()\n"
        "signal.signal(signal.SIGALRM, note); signal.setitimer(signal.ITIMER_REAL, 5)",
    )
    do(km, "hibernate")  # before they fire
    time.sleep(6)
    look = (
        "import asyncio\nfor _ in range(200):\n    if len(fired) < 2: await asyncio.sleep(0.05)\n"
        "(time.monotonic() - at, time.time() - wall, fired)"
    )
    mono, real, fired = eval(value(kc, look))
    assert abs(mono - real) < 0.5
    assert mono > 6
    assert len(fired) == 2
    assert all(6 < each < mono for each in fired)
    tell(kc, "[each.cancel() for each in threading.enumerate() if hasattr(each, 'cancel')]")


@pytest.mark.slow
def test_what_never_was_outside_is_kept(pair: Pair, ws: Path) -> None:
    """Sockets and FIFOs in the workspace are the sandbox's own, locks between its processes, too."""
    km, kc = pair
    tell(
        kc,
        "import fcntl, os, socket\n"
        "os.mkfifo('p'); p = os.open('p', os.O_RDWR | os.O_NONBLOCK); os.write(p, b'hello')\n"
        "s = socket.socket(socket.AF_UNIX); s.bind('s'); s.listen()\n"
        f"{OPEN}; fcntl.flock(f, fcntl.LOCK_EX)",
    )
    assert sorted(each.name for each in ws.iterdir()) == ["a.txt"]
    do(km, "hibernate")
    ran = run(
        kc,
        "c = socket.socket(socket.AF_UNIX); c.connect('s')\n"
        "try: fcntl.flock(open('a.txt'), fcntl.LOCK_EX | fcntl.LOCK_NB); held = False\n"
        "except BlockingIOError: held = True\n"
        "os.read(p, 9), held",
    )
    assert ran.result == "(b'hello', True)"
    assert ran.stderr == ""
