"""What a sandbox is asked without a runsc between, with a thread that stands in for its sentry."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import re
import socket
import stat
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from torpor.runsc.launcher.control import control, restore

WITHIN_S = 5.0
DONE = b'{"success":true,"err":"","result":{}}'
REASON = "task {7: {epoll}} holds }"
REFUSED = b'{"success":false,"err":"%s","result":null}' % REASON.encode()
PAUSE = b'{"method":"containerManager.Pause","arg":null}'
RESUME = b'{"method":"containerManager.Resume","arg":null}'


@dataclass(frozen=True, slots=True)
class Asked:
    """A request; ``noted``: it was written down that the sandbox is paused when it came."""

    request: bytes
    files: int
    noted: bool


@contextmanager
def sentry(
    state: Path, *answers: Sequence[bytes], hangs_up: bool = False, writes: bool = True
) -> Iterator[list[Asked]]:
    """Stand in for a sandbox that gives these answers, in these pieces; give what it is asked.

    It ``writes`` its number into each file that it gets. Unless it ``hangs_up`` after the last answer it
    wants the caller to, and to ask nothing more.
    """
    asked: list[Asked] = []
    with socket.socket(socket.AF_UNIX) as listener, ThreadPoolExecutor(1) as pool:
        listener.settimeout(WITHIN_S)
        listener.bind(str(state / "runsc-s1.sock"))
        listener.listen()
        serving = pool.submit(serve, listener, state, answers, asked, hangs_up, writes)
        yield asked
        serving.result()


def serve(
    listener: socket.socket,
    state: Path,
    answers: Sequence[Sequence[bytes]],
    asked: list[Asked],
    hangs_up: bool,
    writes: bool,
) -> None:
    with listener.accept()[0] as peer:
        peer.settimeout(WITHIN_S)
        for pieces in answers:
            request, fds, _, _ = socket.recv_fds(
                peer, 1, 8
            )  # gVisor, too, wants them beside one byte
            while not is_whole(request):
                more = peer.recv(4096)
                assert more, request
                request += more
            asked.append(Asked(request, len(fds), is_noted(state)))
            for number, fd in enumerate(fds):
                if writes:
                    os.write(fd, b"%d" % number)
                else:
                    with pytest.raises(OSError, match="Bad file descriptor"):
                        os.write(fd, b"it is ours")
                os.close(fd)
            with suppress(ConnectionError):  # the caller has heard enough
                for piece in pieces:
                    peer.sendall(piece)
                    wait_until_read(peer)
        assert hangs_up or peer.recv(1) == b""


def is_whole(request: bytes) -> bool:
    try:
        json.loads(request)
    except ValueError:
        return False
    return True


def wait_until_read(peer: socket.socket) -> None:
    """What is sent next is a piece of its own for the reader."""
    while struct.unpack("i", fcntl.ioctl(peer, termios.TIOCOUTQ, bytes(4)))[0]:
        time.sleep(0.001)


def is_noted(state: Path) -> bool:
    return (state / "torpor-paused").exists()


@pytest.fixture(autouse=True)
def no_descriptor_left() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "saved"


def save(state: Path, folder: Path) -> int:
    return control(["save", "s1", str(folder)], state=str(state))


@pytest.fixture
def image(folder: Path) -> Path:
    folder.mkdir()
    for name in ("checkpoint.img", "pages_meta.img", "pages.img"):
        (folder / name).write_bytes(b"")
        (folder / name).chmod(0o600)
    return folder


def test_restored_it_is_told_its_network_first(tmp_path: Path, image: Path) -> None:
    with sentry(tmp_path, [DONE], [DONE], writes=False) as asked:
        restore("s1", str(image), state=str(tmp_path))
    network, restored = asked
    assert (network.files, restored.files) == (0, 3)
    told = json.loads(network.request)
    assert told["method"] == "containerManager.SetNetworkArgs"
    [lo] = told["arg"].pop("LoopbackLinks")
    assert told["arg"] == {"IsRestore": True}
    addresses = [f"{each['Address']}/{each['PrefixLen']}" for each in lo["Addresses"]]
    assert addresses == ["127.0.0.1/8", "::1/128"]
    routes = [each["Destination"] for each in lo["Routes"]]
    assert [(each["IP"], base64.b64decode(each["Mask"])) for each in routes] == [
        ("127.0.0.0", b"\xff\0\0\0"),
        ("::1", b"\xff" * 16),
    ]
    assert json.loads(restored.request) == {
        "method": "containerManager.Restore",
        "arg": {"HavePagesFile": True},
    }
    assert not is_noted(tmp_path)


@pytest.mark.parametrize("answers", [([REFUSED],), ([DONE], [REFUSED])])
def test_refused_it_is_not_restored(
    tmp_path: Path, image: Path, answers: tuple[list[bytes], ...]
) -> None:
    with (
        sentry(tmp_path, *answers, writes=False) as asked,
        pytest.raises(OSError, match=f"it was not restored: {re.escape(REASON)}"),
    ):
        restore("s1", str(image), state=str(tmp_path))
    assert len(asked) == len(answers)


def test_a_sandbox_that_ends_is_not_restored(tmp_path: Path, image: Path) -> None:
    with (
        sentry(tmp_path, [DONE], [], hangs_up=True, writes=False),
        pytest.raises(OSError, match="the sandbox broke off"),
    ):
        restore("s1", str(image), state=str(tmp_path))


@pytest.mark.parametrize("name", ["checkpoint.img", "pages_meta.img", "pages.img"])
def test_without_all_of_the_image_nothing_is_asked(tmp_path: Path, image: Path, name: str) -> None:
    (image / name).unlink()
    with sentry(tmp_path, writes=False) as asked, pytest.raises(FileNotFoundError, match=name):
        restore("s1", str(image), state=str(tmp_path))
    assert asked == []


def test_without_a_sandbox_there_is_nobody_to_ask(tmp_path: Path, image: Path) -> None:
    with pytest.raises(FileNotFoundError):
        restore("s1", str(image), state=str(tmp_path))


def test_saved_it_is_paused_first(tmp_path: Path, folder: Path) -> None:
    with sentry(tmp_path, [DONE], [DONE]) as asked:
        assert save(tmp_path, folder) == 0
    pause, checkpoint = asked
    assert pause == Asked(PAUSE, files=0, noted=False)
    assert (checkpoint.files, checkpoint.noted) == (3, True)
    assert json.loads(checkpoint.request) == {
        "method": "containerManager.Checkpoint",
        "arg": {"metadata": {"compression": "none"}, "have_pages_file": True, "Resume": True},
    }
    assert is_noted(tmp_path)


def test_files_are_handed_over_in_order(tmp_path: Path, folder: Path) -> None:
    with sentry(tmp_path, [DONE], [DONE]):
        save(tmp_path, folder)
    written = {file.name: file.read_text() for file in folder.iterdir()}
    assert written == {"checkpoint.img": "0", "pages_meta.img": "1", "pages.img": "2"}
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_not_paused(tmp_path: Path, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with sentry(tmp_path, [REFUSED]) as asked:
        assert save(tmp_path, folder) == 1
    assert [each.request for each in asked] == [PAUSE]
    assert capfd.readouterr().err == f"save: {REASON}\n"
    assert not is_noted(tmp_path)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    "pieces",
    [
        [REFUSED],
        [REFUSED[:9], REFUSED[9:]],
        [piece + b"}" for piece in REFUSED.split(b"}")[:-1]],
        [bytes([each]) for each in REFUSED],
    ],
)
def test_paused_but_not_saved(
    tmp_path: Path, folder: Path, capfd: pytest.CaptureFixture[str], pieces: list[bytes]
) -> None:
    assert b"".join(pieces) == REFUSED
    with sentry(tmp_path, [DONE], pieces):
        assert save(tmp_path, folder) == 1
    assert capfd.readouterr().err == f"save: {REASON}\n"
    assert is_noted(tmp_path)


def test_an_answer_may_come_in_pieces(tmp_path: Path, folder: Path) -> None:
    with sentry(tmp_path, [DONE[:5], DONE[5:]], [DONE[:15], DONE[15:]]):
        assert save(tmp_path, folder) == 0


def test_refused_without_a_reason(
    tmp_path: Path, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with sentry(tmp_path, [b'{"success":false,"err":"","result":null}']):
        assert save(tmp_path, folder) == 1
    assert capfd.readouterr().err == "save: no reason given\n"


@pytest.mark.parametrize(
    ("answers", "paused"),
    [
        ([[]], False),
        ([[DONE[:9]]], False),
        ([[DONE], []], True),
        ([[DONE], [REFUSED[:-1]]], True),
        ([[DONE], [b"{}}"]], True),
    ],
)
def test_hung_up_on(
    tmp_path: Path,
    folder: Path,
    capfd: pytest.CaptureFixture[str],
    answers: list[list[bytes]],
    paused: bool,
) -> None:
    with sentry(tmp_path, *answers, hangs_up=True):
        assert save(tmp_path, folder) == 1
    heard = b"".join(answers[-1])
    assert capfd.readouterr().err == f"save: the sandbox broke off: {heard!r}\n"
    assert is_noted(tmp_path) is paused


def test_an_answer_without_end(
    tmp_path: Path, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with sentry(tmp_path, [b'{"success":false,"err":"' + b"}" * (1 << 20)]):
        assert save(tmp_path, folder) == 1
    assert len(capfd.readouterr().err) < 300


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path, folder: Path) -> None:
    folder.mkdir()
    with sentry(tmp_path) as asked, pytest.raises(FileExistsError):
        save(tmp_path, folder)
    assert asked == []
    assert list(folder.iterdir()) == []
    assert not is_noted(tmp_path)


@pytest.mark.parametrize("verb", ["save", "resume"])
def test_one_that_cannot_be_reached(tmp_path: Path, folder: Path, verb: str) -> None:
    noted = verb == "resume"
    if noted:
        (tmp_path / "torpor-paused").touch()
    with pytest.raises(FileNotFoundError):
        control([verb, "s1", str(folder)], state=str(tmp_path))
    assert not folder.exists()
    assert is_noted(tmp_path) is noted


@pytest.mark.parametrize(("answer", "code"), [(DONE, 0), (REFUSED, 1)])
def test_what_was_paused_goes_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], answer: bytes, code: int
) -> None:
    """It is forgotten with that: to be told twice would end the sandbox. One that did not may again."""
    (tmp_path / "torpor-paused").touch()
    with sentry(tmp_path, [answer]) as asked:
        assert control(["resume", "s1", "/bin/false"], state=str(tmp_path)) == code
    assert asked == [Asked(RESUME, files=0, noted=True)]
    assert is_noted(tmp_path) is bool(code)
    assert capfd.readouterr().err == (f"resume: {REASON}\n" if code else "")


def test_what_is_paused_is_not_paused_once_more(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "torpor-paused").touch()
    with sentry(tmp_path, [DONE]) as asked:
        assert save(tmp_path, folder) == 0
    assert [(each.files, each.noted) for each in asked] == [(3, True)]


CHILD = """
import os, signal, sys, time
from torpor.runsc.launcher import syscalls
from torpor.runsc.launcher.control import control
child = os.fork()
if child == 0:
    syscalls.die_with_parent()
    os._exit(control(["save", "s1", sys.argv[2]], state=sys.argv[1]))
print(child, flush=True)
os.waitpid(child, 0)
"""


def test_killed_while_it_pauses_it_is_known_to_be_paused(tmp_path: Path, folder: Path) -> None:
    """Who started it is killed; it ends as soon as file and sandbox say the same, and saves nothing."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.settimeout(WITHIN_S)
        listener.bind(str(tmp_path / "runsc-s1.sock"))
        listener.listen()
        argv = [sys.executable, "-c", CHILD, str(tmp_path), str(folder)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as parent:
            assert parent.stdout is not None
            child = int(parent.stdout.readline())
            with listener.accept()[0] as peer:
                peer.settimeout(WITHIN_S)
                assert peer.recv(4096) == PAUSE
                parent.kill()
                parent.wait()
                time.sleep(0.05)
                assert Path(f"/proc/{child}").exists()
                peer.sendall(DONE)
                assert peer.recv(4096) == b""
    assert is_noted(tmp_path)
    assert list(folder.iterdir()) == []


def test_of_any_other_the_program_knows(tmp_path: Path) -> None:
    script = "import sys; from torpor.runsc.launcher.control import control; "
    call = "control(['resume', 's1', *sys.argv[2:]], state=sys.argv[1])"
    program = ["/bin/sh", "-c", 'echo "$0 in $HOME"; exit 3', "word"]
    argv = [sys.executable, "-c", script + call, str(tmp_path), *program]
    ran = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (3, "word in /\n", "")
