"""A claim makes a copy of a process a kernel of its own, and nothing but the guest can ask for it.

Run as a file this is the process that is copied. A copy that ``os.fork`` makes is not one of a checkpoint:
its pid is another one, and C libraries are told. So the copies here are made by the bare system call, and
each is process 1 of its own pid namespace, as the process that they are copied from is.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FOLDER = str(Path(__file__).parents[3] / "images" / "guest" / "torpor_guest")
CLONES = 50
NO_NAMESPACES = 77
SYS_CLONE = {"x86_64": 56, "aarch64": 220}.get(platform.machine())
CLONE_NEWPID = 0x20000000
PR_SET_PDEATHSIG = 1
# How a kernel process is driven by a test: a line of Python in, a line of JSON out.
KERNEL = f"""
import json, os, sys, threading, time
sys.path.insert(0, {FOLDER!r})
import kernel_claim
fd = int(sys.argv[1])
kernel_claim.listen(fd)
sys.path.pop(0)
for line in sys.stdin:
    result = None
    exec(json.loads(line))
    print(json.dumps(result), flush=True)
"""


class Kernel:
    """A process that listens, with the guest's end of its line."""

    def __init__(self, process: subprocess.Popen[str], guest: socket.socket, fd: int) -> None:
        self.process = process
        self.guest = guest
        self.fd = fd
        self._answers = guest.makefile("rb")

    def ask_bytes(self, request: bytes) -> dict[str, Any]:
        self.guest.sendall(request)
        answer = json.loads(self._answers.readline())
        assert isinstance(answer, dict)
        return answer

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        return self.ask_bytes(json.dumps({"do": do, **fields}).encode() + b"\n")

    def hang_up(self) -> None:
        self._answers.close()
        self.guest.close()

    def run(self, code: str) -> Any:
        """Run code in the main thread and give what it leaves in ``result``."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(code) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def threads(self) -> list[str]:
        names = self.run("result = [thread.name for thread in threading.enumerate()]")
        assert isinstance(names, list)
        return names

    def has_fd(self) -> bool:
        return os.path.lexists(f"/proc/{self.process.pid}/fd/{self.fd}")


@contextmanager
def running_kernel(python: str = sys.executable) -> Iterator[Kernel]:
    ours, theirs = socket.socketpair()
    ours.settimeout(30)
    with ours, theirs:
        argv = [python, "-c", KERNEL, str(theirs.fileno())]
        pipe = subprocess.PIPE
        with subprocess.Popen(
            argv, stdin=pipe, stdout=pipe, text=True, pass_fds=[theirs.fileno()]
        ) as process:
            theirs.close()
            kernel = Kernel(process, ours, int(argv[-1]))
            try:
                yield kernel
            finally:
                kernel.hang_up()
                process.kill()


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    with running_kernel() as kernel:
        yield kernel


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


# What a claim does to the process


def test_a_claim_sets_the_environment_and_the_working_folder(
    kernel: Kernel, tmp_path: Path
) -> None:
    kernel.run("os.environ.update(OLD='1', PAGER='cat'); import tempfile")
    kernel.run("tempfile.gettempdir()")
    (tmp_path / "tmp").mkdir()
    env = {"NEW": "a b\nä=", "TZ": "Asia/Tokyo", "TMPDIR": str(tmp_path / "tmp"), "PAGER": "less"}
    answer = kernel.ask("claim", env=env, unset=["OLD", "NEVER_SET"], cwd=str(tmp_path))
    assert answer["ok"], answer
    assert 0 < answer["seconds"] < 5
    assert {"random", "tempfile"} <= set(answer["reseeded"])
    assert kernel.run("result = [os.environ.get('OLD'), os.environ['NEW']]") == [None, "a b\nä="]
    assert kernel.run("result = os.environ['PAGER']") == "cat"  # it has set that for itself
    assert kernel.run("result = [os.getcwd(), time.timezone, tempfile.gettempdir()]") == [
        str(tmp_path),
        -9 * 3600,
        str(tmp_path / "tmp"),
    ]
    kernel.run("import subprocess")
    shown = kernel.run("result = subprocess.run('env', stdout=-1, text=True).stdout")
    assert "OLD=" not in shown
    assert "NEW=a b\nä=" in shown


@pytest.mark.parametrize(
    "wrong",
    [
        {"cwd": "/nowhere/at/all"},
        {"cwd": "relative"},
        {"cwd": "/a\0b"},
        {"cwd": None},
        {"env": ["A"]},
        {"env": {"A": 1}},
        {"env": {"A=B": ""}},
        {"env": {"": ""}},
        {"env": {"A": "secret\0"}},
        {"env": {"A": "secret\ud800"}},
        {"unset": "NEW"},
        {"unset": [3]},
        {"last": 1},
    ],
)
def test_a_claim_that_cannot_be_done_changes_nothing(
    kernel: Kernel, tmp_path: Path, wrong: dict[str, Any]
) -> None:
    look = "import random; result = [dict(os.environ), os.getcwd(), str(random.getstate())]"
    before = kernel.run(look)
    fields = {"env": {"NEW": "1"}, "unset": ["PATH"], "cwd": str(tmp_path), "last": False}
    answer = kernel.ask("claim", **{**fields, **wrong})
    assert answer["ok"] is False
    assert "secret" not in answer["error"]
    assert kernel.run(look) == before
    assert kernel.ask("claim", **fields)["ok"]
    assert kernel.run(look) != before


def test_a_claim_without_a_seal_finds_the_generators_itself(kernel: Kernel) -> None:
    kernel.run("import random; mine = random.Random(1); system = random.SystemRandom()")
    assert "random" in kernel.ask("claim", cwd="/")["reseeded"]
    assert kernel.run("result = mine.random() != random.Random(1).random()")


def test_what_cannot_be_renewed_is_an_error_at_the_seal_and_at_the_claim(kernel: Kernel) -> None:
    kernel.run("import random")
    assert kernel.ask("seal")["ok"]
    kernel.run("class Bad(random.Random):\n  def seed(self, *args): 1 / zero")
    kernel.run("zero = 1; bad = Bad(); zero = 0")
    for _ in range(2):
        answer = kernel.ask("seal")
        assert answer["ok"] is False
        assert "random" in answer["error"]
        assert "ZeroDivisionError" in answer["error"]
    answer = kernel.ask("claim", cwd="/", last=True)
    assert answer["ok"] is False
    assert kernel.ask("ping") == {"ok": True}  # not the last after all
    kernel.run("del bad")  # generators that are gone are not kept
    assert kernel.ask("claim", cwd="/")["ok"]


def test_nothing_is_loaded_that_was_not(kernel: Kernel) -> None:
    assert kernel.ask("seal")["ok"]
    names = ["numpy", "ssl", "torch", "uuid", "multiprocessing", "tempfile", "sqlite3"]
    kernel.ask("claim", cwd="/")
    assert kernel.run(f"result = [name for name in {names} if name in sys.modules]") == []


def test_numbers_with_a_chosen_seed_stay_as_numpy_says(kernel: Kernel) -> None:
    kernel.run(
        "import numpy as np; mine = np.random.default_rng(7); old = np.random.RandomState(7)"
    )
    kernel.run("chance = np.random.RandomState()")
    assert kernel.ask("seal")["ok"]
    kernel.run("chance.randn(); before = chance.get_state()")
    assert "numpy" in kernel.ask("claim", cwd="/")["reseeded"]
    assert kernel.run("result = mine.random() == np.random.default_rng(7).random()")
    assert kernel.run("result = old.rand() == np.random.RandomState(7).rand()")
    assert kernel.run("result = [before[3], chance.get_state()[3]]") == [1, 0]


def test_torch_is_seeded_with_its_cards_if_they_are_in_use(kernel: Kernel) -> None:
    kernel.run("from types import SimpleNamespace as Names; seeds = []; cards = []; used = False")
    kernel.run(
        "sys.modules['torch'] = Names(default_generator=Names(manual_seed=seeds.append),"
        "cuda=Names(is_initialized=lambda: used, manual_seed_all=cards.append))"
    )
    assert "torch" in kernel.ask("claim", cwd="/")["reseeded"]
    assert kernel.run("result = [len(set(seeds)), cards]") == [2, []]  # rehearsed once
    kernel.run("used = True")
    kernel.ask("claim", cwd="/")
    assert kernel.run("result = [len(set(seeds)), len(cards)]") == [3, 1]
    kernel.run("sys.modules['torch'] = Names()")
    assert "torch" not in kernel.ask("claim", cwd="/")["reseeded"]


# The line to the guest


def test_bad_requests_are_answered(kernel: Kernel) -> None:
    for request in (
        b"nonsense\n",
        b"[]\n",
        b'{"do":"dance"}\n',
        b'{"do":["ping"]}\n',
        b"\xff\n",
        b"\n",
    ):
        answer = kernel.ask_bytes(request)
        assert answer["ok"] is False
        assert answer["error"]
    kernel.guest.sendall(b'{"do":')
    assert kernel.ask_bytes(b'"ping"}\n{"do":"ping"}\n') == {"ok": True}
    assert json.loads(kernel._answers.readline()) == {"ok": True}


def test_the_line_ends_with_the_guest(kernel: Kernel) -> None:
    assert kernel.has_fd()
    assert "torpor-claim" in kernel.threads()
    kernel.hang_up()
    wait_for(lambda: kernel.threads() == ["MainThread"])
    assert not kernel.has_fd()
    # its number may be someone else's by now, and a fork leaves it alone
    assert kernel.run("result = os.dup2(0, fd)") == kernel.fd
    kernel.run(
        "pid = os.fork()\nif not pid:\n os._exit(int(not os.path.sameopenfile(0, fd)))\n"
        "result = os.waitpid(pid, 0)[1]"
    )
    assert kernel.run("result = os.path.sameopenfile(0, fd)")


def test_the_line_ends_with_the_last_claim(kernel: Kernel) -> None:
    assert kernel.ask("claim", cwd="/")["ok"]
    assert kernel.ask("claim", cwd="/", last=True)["ok"]
    assert kernel._answers.read() == b""
    wait_for(lambda: kernel.threads() == ["MainThread"])
    assert not kernel.has_fd()


def test_what_user_code_starts_has_no_line(kernel: Kernel) -> None:
    mine = kernel.run("import subprocess; result = os.readlink(f'/proc/self/fd/{fd}')")
    assert mine.startswith("socket:")
    shown = kernel.run(
        "result = subprocess.run(['ls', '-l', '/proc/self/fd'], close_fds=False,"
        " stdout=subprocess.PIPE, text=True).stdout"
    )
    assert "pipe:" in shown
    assert mine not in shown
    forked = kernel.run(
        "ours, theirs = os.pipe()\npid = os.fork()\nif not pid:\n"
        "  try: os.fstat(fd)\n  except OSError as error: os.write(theirs, error.strerror.encode())\n"
        "  os._exit(0)\n"
        "os.close(theirs); result = os.read(ours, 99).decode(); os.close(ours); os.waitpid(pid, 0)"
    )
    assert forked == os.strerror(9)
    assert kernel.ask("ping") == {"ok": True}


def test_signals_are_for_the_main_thread(kernel: Kernel) -> None:
    masks = kernel.run(
        "result = {task: [line for line in open(f'/proc/self/task/{task}/status')"
        " if line.startswith('SigBlk')][0].split()[1] for task in os.listdir('/proc/self/task')}"
    )
    main = masks.pop(str(kernel.process.pid))
    (thread,) = masks.values()
    bits = [1 << number - 1 for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)]
    assert not any(int(main, 16) & bit for bit in bits)
    assert all(int(thread, 16) & bit for bit in bits)
    assert not int(thread, 16) & 1 << signal.SIGSEGV - 1


def test_seen_tells_the_files_and_folders(kernel: Kernel, tmp_path: Path) -> None:
    archive = tmp_path / "modules.zip"
    archive.write_bytes(b"PK\5\6" + bytes(18))
    kernel.run(
        f"sys.path += ['', 'relative', {str(tmp_path)!r}, {str(archive)!r}, None, '/nowhere']"
    )
    kernel.run("import types; lazy = types.ModuleType('lazy'); lazy.__file__ = ['x']")
    kernel.run("sys.modules.update(lazy=lazy, number=3)")
    before = set(kernel.ask("seen")["files"])
    kernel.run("import numpy, mmap; result = None")
    seen = kernel.ask("seen")
    files, folders = seen["files"], seen["folders"]
    assert files == sorted(set(files))
    assert folders == sorted(set(folders))
    assert any("_multiarray_umath" in name and name.endswith(".so") for name in files)
    assert any("numpy" in name and name.endswith("__init__.py") for name in files)
    assert any("numpy" in name and name.endswith(".pyc") for name in files)
    assert any("libc.so" in name for name in files)
    assert not any("_multiarray_umath" in name for name in before)
    assert str(archive) in before
    assert f"{FOLDER}/kernel_claim.py" in before
    assert str(tmp_path) in folders
    assert all(os.path.isabs(name) and os.path.isfile(name) for name in files)
    assert all(os.path.isabs(name) and os.path.isdir(name) for name in folders)
