"""The guest of a golden: its line into the kernel, its silent requests, and moving the workspace."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torpor.link import Channel
from torpor.runsc.plan import WORKSPACE_AT
from torpor_guest import places
from torpor_guest.kernel_line import KernelLine, line_pair
from torpor_guest.lean_json import dumps
from torpor_guest.loop import Loop
from torpor_guest.probe import DELIMITER
from torpor_guest.signing import sign
from torpor_guest.silent import Silent, execute_content

GUEST = Path(__file__).parents[3] / "images/guest"


class Line:
    """A line and the kernel's end of it."""

    def __init__(self) -> None:
        ours, self.theirs = line_pair()
        os.set_blocking(self.theirs, False)
        self.loop = Loop()
        self.line = KernelLine(self.loop, ours)
        self.answers: list[dict[str, Any]] = []

    def ask(self, **request: Any) -> None:
        self.line.ask(request, self.answers.append)

    def heard(self) -> list[Any]:
        try:
            return [json.loads(each) for each in os.read(self.theirs, 1 << 20).splitlines()]
        except BlockingIOError:
            return []

    def say(self, content: bytes) -> None:
        os.write(self.theirs, content)
        self.turn()

    def turn(self) -> None:
        """Let the loop serve what there is, and no more."""
        self.loop.after(0, self.loop.stop)
        self.loop._stopped = False
        self.loop.run()

    def hang_up(self) -> None:
        if self.theirs >= 0:
            os.close(self.theirs)
            self.theirs = -1

    def close(self) -> None:
        self.line.close()
        self.hang_up()
        self.loop.close()


@pytest.fixture
def line() -> Iterator[Line]:
    found = Line()
    yield found
    found.close()


def test_answers_come_in_the_order_of_requests(line: Line) -> None:
    line.ask(do="first")
    line.ask(do="second")
    assert line.heard() == [{"do": "first"}, {"do": "second"}]
    line.say(b'{"n": 1}\n{"n"')
    assert line.answers == [{"n": 1}]
    line.say(b": 2}\n")
    assert line.answers == [{"n": 1}, {"n": 2}]


@given(st.lists(st.dictionaries(st.text(), st.integers() | st.text(), max_size=3), max_size=5))
@settings(max_examples=30)
def test_however_the_bytes_arrive(bodies: list[dict[str, Any]]) -> None:
    line = Line()
    try:
        for _ in bodies:
            line.ask(do="x")
        said = b"".join(dumps(body) + b"\n" for body in bodies)
        for at in range(0, len(said), 7):
            line.say(said[at : at + 7])
        assert line.answers == bodies
    finally:
        line.close()


@pytest.mark.parametrize(
    "said",
    [
        b"garbage\n",
        b"\xff\xfe\n",
        b"\n",
        b"5\n",
        b"null\n",
        b'["ok"]\n',
        b'"ok"\n',
        b"{}{}\n",
        b"[" * 100_000 + b"\n",
        b'{"a": ' * 100_000 + b"\n",
    ],
    ids=["word", "bytes", "empty", "number", "null", "list", "text", "two", "deep", "deeper"],
)
def test_what_is_no_object_ends_the_line(line: Line, said: bytes) -> None:
    line.ask(do="claim")
    line.ask(do="seen")
    for at in range(0, len(said), 1 << 16):
        line.say(said[at : at + (1 << 16)])
    why = {"ok": False, "error": "the kernel said what nobody asked for"}
    assert line.answers == [why, why]
    line.ask(do="late")
    assert line.answers[2:] == [why]


def test_what_nobody_asked_for_ends_the_line(line: Line) -> None:
    line.say(b'{"ok": true}\n')
    line.ask(do="claim")
    assert line.answers == [{"ok": False, "error": "the kernel said what nobody asked for"}]


def test_an_answer_too_many_comes_after_the_right_one(line: Line) -> None:
    line.ask(do="claim")
    line.say(b'{"ok": true}\n{"ok": true}\n')
    assert line.answers == [{"ok": True}]
    line.ask(do="late")
    assert line.answers[1]["ok"] is False


def test_a_kernel_that_hangs_up(line: Line) -> None:
    line.ask(do="claim")
    line.hang_up()
    line.turn()
    assert line.answers == [{"ok": False, "error": "the kernel has closed its line"}]
    line.ask(do="late")
    assert line.answers[1]["ok"] is False


def test_a_kernel_that_has_hung_up_before(line: Line) -> None:
    line.hang_up()
    line.ask(do="claim")
    line.turn()
    assert [each["ok"] for each in line.answers] == [False]


def test_a_line_that_never_ends(line: Line) -> None:
    line.ask(do="claim")
    for _ in range(270):
        line.say(b"x" * (1 << 16))
        if line.answers:
            break
    assert line.answers == [{"ok": False, "error": "the kernel said too much"}]


def test_closing_answers_whoever_waits_and_twice_is_fine(line: Line) -> None:
    before = len(os.listdir("/proc/self/fd"))
    line.ask(do="claim")
    line.line.close()
    line.line.close()
    assert line.answers == [{"ok": False, "error": "the line was closed"}]
    assert len(os.listdir("/proc/self/fd")) == before - 1


def test_the_ends_are_not_inherited() -> None:
    ends = line_pair()
    try:
        assert [os.get_inheritable(fd) for fd in ends] == [False, False]
    finally:
        for fd in ends:
            os.close(fd)


class Shell:
    """The shell wire of a kernel: what was sent to it."""

    def __init__(self) -> None:
        self.sent: list[list[bytes]] = []
        self.by_channel = {Channel.SHELL: self}

    def send(self, parts: list[bytes]) -> None:
        self.sent.append(parts)


class Asked:
    """``Silent`` with a kernel that the test plays."""

    def __init__(self) -> None:
        self.loop, self.shell = Loop(), Shell()
        self.silent = Silent(self.loop, "key", self.shell)  # type: ignore[arg-type]
        self.answers: list[dict[str, Any]] = []

    def ask(self, timeout_s: float = 60.0) -> str:
        self.silent.ask("execute_request", execute_content("1"), timeout_s, self.answers.append)
        return str(json.loads(self.shell.sent[-1][2])["msg_id"])

    def reply(self, parent: Any, content: Any) -> None:
        parts = [DELIMITER, b"sig", b"{}", dumps(parent), b"{}", dumps(content)]
        self.silent.replied(parts)


@pytest.fixture
def asked() -> Iterator[Asked]:
    found = Asked()
    yield found
    found.loop.close()


def test_a_silent_request_is_signed_and_leaves_no_trace(asked: Asked) -> None:
    asked.ask()
    delimiter, signature, *body = asked.shell.sent[0]
    assert delimiter == DELIMITER
    assert signature == sign(b"key", body)
    content = json.loads(body[3])
    assert (content["silent"], content["store_history"], content["allow_stdin"]) == (
        True,
        False,
        False,
    )


def test_its_reply_and_no_other_is_the_answer(asked: Asked) -> None:
    msg_id = asked.ask()
    assert asked.silent.busy
    asked.reply({"msg_id": "torpor-silent-99"}, {"status": "ok"})
    asked.reply({}, {"status": "ok"})
    assert asked.answers == []
    asked.reply({"msg_id": msg_id}, {"status": "ok", "n": 1})
    assert asked.answers == [{"status": "ok", "n": 1}]
    assert not asked.silent.busy
    asked.reply({"msg_id": msg_id}, {"status": "ok", "n": 2})
    assert len(asked.answers) == 1


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [DELIMITER, b"sig", b"{}"],
        [DELIMITER, b"sig", b"{}", b"garbage", b"{}", b"{}"],
        [DELIMITER, b"sig", b"{}", b"[]", b"{}", b"{}"],
        [DELIMITER, b"sig", b"{}", b"5", b"{}", b"{}"],
        [DELIMITER, b"sig", b"{}", b'{"msg_id": "torpor-silent-1"}', b"{}", b"garbage"],
        [DELIMITER, b"sig", b"{}", b'{"msg_id": "torpor-silent-1"}', b"{}", b"[]"],
        [DELIMITER, b"sig", b"{}", b'{"msg_id": "torpor-silent-1"}', b"{}", b"[" * 100_000],
        [DELIMITER, b"sig", b"{}", b"[" * 100_000, b"{}", b"{}"],
    ],
)
def test_a_reply_that_cannot_be_read_is_none(asked: Asked, parts: list[bytes]) -> None:
    asked.ask()
    asked.silent.replied(parts)  # type: ignore[arg-type]
    assert asked.answers == []
    assert asked.silent.busy


def test_a_request_has_a_limit(asked: Asked) -> None:
    msg_id = asked.ask(timeout_s=0.0)
    asked.loop.after(0.01, asked.loop.stop)
    asked.loop.run()
    assert asked.answers == [{"status": "timeout"}]
    asked.reply({"msg_id": msg_id}, {"status": "ok"})
    assert len(asked.answers) == 1
    other = asked.ask()
    asked.reply({"msg_id": msg_id}, {"status": "late"})
    assert len(asked.answers) == 1
    asked.reply({"msg_id": other}, {"status": "ok"})
    assert asked.answers[1:] == [{"status": "ok"}]


class Mounts:
    """The mount calls that ``places`` makes, of which the ``fails_at``-th fails; nothing is mounted."""

    def __init__(self, fails_at: int = -1) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._fails_at = fails_at

    def _done(self, *call: Any) -> int:
        self.calls.append(call)
        if len(self.calls) - 1 == self._fails_at:
            ctypes.set_errno(errno.EPERM)
            return -1
        return 0

    def mount(self, source: bytes, at: bytes, *_rest: Any) -> int:
        return self._done("bind", source.decode(), at.decode())

    def umount2(self, at: bytes, _flags: int) -> int:
        return self._done("unmount", at.decode())


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(places, "_KEPT", str(tmp_path / "kept"))
    return str(tmp_path / "kept")


def test_both_sides_mean_the_same_place() -> None:
    assert places.WORKSPACE == WORKSPACE_AT


def test_a_workspace_is_bound_to_its_own_path(
    tmp_path: Path, kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts, path = Mounts(), str(tmp_path / "a/b")
    monkeypatch.setattr(places, "_libc", mounts)
    places.show_workspace(path, [])
    assert mounts.calls == [("bind", places.WORKSPACE, path)]
    assert os.path.isdir(path)
    assert not os.path.exists(kept)


def test_what_is_kept_is_set_aside_and_put_back(
    tmp_path: Path, kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts, path = Mounts(), str(tmp_path)
    monkeypatch.setattr(places, "_libc", mounts)
    places.show_workspace(path, [f"{path}/v1", f"{path}/v2"])
    assert mounts.calls == [
        ("bind", f"{path}/v1", f"{kept}/0"),
        ("bind", f"{path}/v2", f"{kept}/1"),
        ("bind", places.WORKSPACE, path),
        ("bind", f"{kept}/0", f"{path}/v1"),
        ("unmount", f"{kept}/0"),
        ("bind", f"{kept}/1", f"{path}/v2"),
        ("unmount", f"{kept}/1"),
    ]
    assert not os.path.exists(kept)


@pytest.mark.parametrize("fails_at", range(4))
def test_a_mount_that_is_refused_is_told(
    tmp_path: Path, kept: str, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    mounts = Mounts(fails_at)
    monkeypatch.setattr(places, "_libc", mounts)
    with pytest.raises(OSError, match="mount") as caught:
        places.show_workspace(str(tmp_path), [str(tmp_path / "v")])
    assert caught.value.errno == errno.EPERM
    assert len(mounts.calls) == fails_at + 1, "nothing is done after a failure"


def test_a_path_that_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts, file = Mounts(), tmp_path / "file"
    monkeypatch.setattr(places, "_libc", mounts)
    file.touch()
    with pytest.raises(FileExistsError):
        places.show_workspace(str(file), [])
    assert mounts.calls == []


def test_dropped_rights_are_gone_for_good() -> None:
    code = (
        "from torpor_guest import places; places.drop_rights(); places.drop_rights()\n"
        "import os; print([l.split()[1] for l in open('/proc/self/status') if l[:6] in "
        "('CapEff', 'CapPrm', 'CapInh')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": f"{GUEST}:{GUEST.parents[1] / 'provisioner'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == f"{['0' * 16] * 3}\n", done.stderr
