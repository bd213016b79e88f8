"""The section that sends iopub messages: interrupts wait for its end, forks do not lock the child."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from torpor_guest import quick_ipykernel
from torpor_guest.quick_ipykernel import Section

FILE = Path(quick_ipykernel.__file__)


def test_an_interrupt_waits_until_the_message_is_out() -> None:
    section = Section()
    before = signal.signal(signal.SIGINT, section.interrupt)
    done = []

    def send() -> None:
        with section, section:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
            done.append("first frame")
            done.append("last frame")

    try:
        with pytest.raises(KeyboardInterrupt):
            send()
        assert done == ["first frame", "last frame"]
        with section:
            pass  # the interrupt was delivered once
        with pytest.raises(KeyboardInterrupt) as caught:
            os.kill(os.getpid(), signal.SIGINT)
        assert [Path(entry.path).name for entry in caught.traceback] == [Path(__file__).name]
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_interrupt_does_not_wait_for_another_thread() -> None:
    section = Section()
    before = signal.signal(signal.SIGINT, section.interrupt)
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with section:
            held.set()
            release.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(10)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        release.set()
        thread.join()
        signal.signal(signal.SIGINT, before)


FORK = """
import os, sys, threading, time
sys.path.insert(0, {folder!r})
from quick_ipykernel import Section
section = Section()
stop = []
def busy():
    while not stop:
        with section:
            time.sleep(0.001)
threads = [threading.Thread(target=busy, daemon=True) for _ in range(3)]
for t in threads: t.start()
for _ in range(30):
    pid = os.fork()
    if pid == 0:
        with section:
            os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    with section:
        pass
stop.append(1)
print("fine")
"""


def test_a_fork_while_another_thread_sends_leaves_the_child_free() -> None:
    code = FORK.format(folder=str(FILE.parent))
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert ran.stdout == "fine\n", ran.stderr


def test_another_ipykernel_is_started_unchanged(tmp_path: Path) -> None:
    package = tmp_path / "ipykernel"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "_version.py").write_text("__version__ = '6.31.0'\n")
    for name in ("iostream", "kernelapp", "kernelbase"):
        (package / f"{name}.py").write_text("")
    launcher = "import sys; print('launched', sys.argv[1:], __name__, repr(sys.path[0]))\n"
    (tmp_path / "ipykernel_launcher.py").write_text(launcher)
    ran = subprocess.run(
        [sys.executable, str(FILE), "-f", "file"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.stdout == "launched ['-f', 'file'] __main__ ''\n"
    assert "started unchanged" in ran.stderr
