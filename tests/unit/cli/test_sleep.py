"""Which kernel a person means, and what people see of kernels that sleep and of snapshots."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from torpor.cli import confirm
from torpor.cli.confirm import is_sure
from torpor.cli.daemon import left_text
from torpor.cli.ids import one_of
from torpor.cli.kernels import _text as kernels_text
from torpor.cli.sleep import FreezeCommand, HibernateCommand, PinCommand, SleepCommand, WakeCommand
from torpor.cli.snapshots_text import overview_text as _text
from torpor.cli.snapshots_text import removal_question
from torpor.cli.transfers import transfer_text, with_progress
from torpor.cli.which import kernel_of, meant, number_or_name, wanted
from torpor.errors import ConfigError, SandboxGone

KNOWN = ["5e1f-aa", "5e1f-ab", "77"]


@pytest.mark.parametrize(("given", "found"), [("77", "77"), ("7", "77"), ("5e1f-aa", "5e1f-aa")])
def test_an_id_or_how_it_begins(given: str, found: str) -> None:
    assert one_of(given, KNOWN) == found


def test_a_whole_id_that_another_begins_with() -> None:
    assert one_of("5e", ["5e", "5e1f"]) == "5e"


@pytest.mark.parametrize("given", ["9", ""])
def test_nobody(given: str) -> None:
    with pytest.raises(SandboxGone, match=f"no kernel '{given}'"):
        one_of(given, KNOWN)


def test_more_than_one_are_named() -> None:
    with pytest.raises(ConfigError, match="beginning of 2 ids") as caught:
        one_of("5e1f", KNOWN)
    assert caught.value.hint == "one of 5e1f-aa, 5e1f-ab"
    with pytest.raises(ConfigError) as caught:
        one_of("k", [f"k{number}" for number in range(30)])
    assert caught.value.hint.endswith("and 22 more")


def slept(tier: str, **changes: Any) -> dict[str, Any]:
    return {"kernel_id": "5e1f", "status": "running", "sleep": {"tier": tier}} | changes


@pytest.mark.parametrize(
    ("command", "tier", "said"),
    [
        (HibernateCommand, "asleep", "is hibernated"),
        (FreezeCommand, "frozen", "is frozen"),
        (FreezeCommand, "asleep", "is hibernated already, which is deeper than frozen"),
        (FreezeCommand, "awake", "is awake"),
        (WakeCommand, "awake", "is awake"),
        (WakeCommand, "frozen", "is frozen"),
        (PinCommand, "awake", "is not put to sleep by itself"),
        (PinCommand, "asleep", "stays hibernated until somebody asks"),
    ],
)
def test_what_is_said_is_so(command: type[SleepCommand], tier: str, said: str) -> None:
    assert said in command().said(slept(tier))


@pytest.mark.parametrize(
    ("status", "more", "said"),
    [
        ("exited", {"exit_code": 3}, "kernel 5e1f has exited with code 3"),
        ("gone", {"reason": "runsc died"}, "kernel 5e1f has lost its sandbox: runsc died"),
    ],
)
def test_a_kernel_that_has_ended_is_not_said_to_be_awake(
    status: str, more: dict[str, Any], said: str
) -> None:
    with pytest.raises(SandboxGone) as caught:
        WakeCommand().require(slept("awake", status=status, **more))
    assert caught.value.message == said
    assert "torpor shutdown 5e1f" in caught.value.hint
    WakeCommand().require(slept("asleep", status="hibernated"))


def test_what_becomes_of_kernels_of_a_daemon_that_has_stopped() -> None:
    assert left_text([]) == []
    ended = slept("awake", status="exited")
    assert left_text([ended]) == []
    lines = left_text([slept("awake"), slept("asleep"), slept("frozen"), ended])
    assert lines[0] == "  kernels that are awake and go on: 1"
    assert lines[1] == "  kernels that sleep, and that nobody wakes until torpord runs: 2"
    assert "torpor kernels" in lines[2]


def test_kernels_are_no_wider_than_a_terminal() -> None:
    why = "no golden was made yet, because " + "the reason is long and " * 7
    kernel = {
        "kernel_id": "5e1f0000-1111-2222-3333-444455556666",
        "kernel_name": "python3-torpor-of-a-long-name",
        "template": "default",
        "status": "hibernated",
        "reason": "what it was " * 12,
        "execution_state": "unknown",
        "start": {"how": "created", "why": why},
        "sleep": {"outlook": "asleep: kept for ever"},
        "workspace": {"path": "/home/ada/work", "mode": "rw"},
    }
    text = kernels_text([kernel, kernel | {"kernel_id": "77", "reason": None}])
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0].split()[0] == "KERNEL"
    assert lines[1].startswith("5e1f0000-1111-2222-3333-444455556666  python3-torpor")
    assert "…  default   hibernated  -" in lines[1]
    assert lines[2] == "  name: python3-torpor-of-a-long-name"
    assert lines[3].startswith("  hibernated: what it was")
    joined = " ".join(line.strip() for line in lines)
    assert f"start: created: {why.strip()}" in joined
    assert "  sleep: asleep: kept for ever" in lines
    assert "  workspace: /home/ada/work (rw)" in lines
    assert [line.split()[0] for line in lines if not line.startswith(" ")][1:] == [
        "5e1f0000-1111-2222-3333-444455556666",
        "77",
    ]


ONE: dict[str, Any] = {
    "kernel_id": "5e1f",
    "generation": 3,
    "name": "",
    "created_at": "2026-11-22T22:00:00+00:00",
    "template": "default",
    "kernel_name": "python3",
    "bytes": 50 << 20,
    "has_kernel": False,
    "on": ["disk"],
    "stored_bytes": None,
    "trouble": "",
}


def test_snapshots_as_a_table() -> None:
    text = _text([ONE], None)
    assert "5e1f (no kernel any more)  3" in text
    assert text.endswith("50.0 MiB on this disk")
    assert _text([], None) == "no snapshots"


def test_where_snapshots_are() -> None:
    there = ONE | {"on": ["store"], "stored_bytes": 10 << 20, "has_kernel": True}
    both = there | {"on": ["disk", "store"], "generation": 4, "trouble": "sealed with another key"}
    store = {"url": "s3://b/x", "encrypted": True, "local": "keep", "note": "it did not answer"}
    lines = _text([there, both], store).splitlines()
    assert lines[0].split() == [
        "KERNEL",
        "GENERATION",
        "NAME",
        "KIND",
        "TEMPLATE",
        "SIZE",
        "WHERE",
        "STORED",
        "MADE",
    ]
    assert "50.0 MiB  store  " in lines[1]
    assert "10.0 MiB" in lines[1]
    assert "disk + store" in lines[2]
    assert lines[3] == "50.0 MiB on this disk"
    assert lines[4] == "5e1f 4: sealed with another key"
    assert lines[5] == "store s3://b/x (encrypted): 20.0 MiB"
    assert lines[6] == "  it did not answer"


def test_how_far_a_transfer_is() -> None:
    one = {"kernel_id": "5e1f", "generation": 3, "direction": "fetch", "done_bytes": 1 << 20}
    assert transfer_text(one | {"total_bytes": 4 << 20}) == "fetching 5e1f 3: 1.0 MiB of 4.0 MiB"
    assert transfer_text(one | {"total_bytes": 0}) == "fetching 5e1f 3: just begun"


@pytest.mark.parametrize(("which", "meant"), [("3", 3), ("before", "before"), ("", None)])
def test_which_snapshot(which: str, meant: int | str | None) -> None:
    assert number_or_name(which) == meant


def test_snapshots_of_which_kernel() -> None:
    assert kernel_of([ONE, ONE | {"generation": 4}], "5e") == "5e1f"
    assert kernel_of([ONE, ONE | {"kernel_id": "5e"}], "5e") == "5e"
    with pytest.raises(SandboxGone, match="no snapshot of a kernel '9'"):
        kernel_of([ONE], "9")
    with pytest.raises(ConfigError, match="2 ids") as caught:
        kernel_of([ONE, ONE | {"kernel_id": "5e2"}], "5")
    assert "5e1f, 5e2" in caught.value.hint


def test_one_snapshot_by_generation_or_name() -> None:
    rows = [ONE, ONE | {"generation": 4, "name": "before"}, ONE | {"kernel_id": "5e"}]
    assert wanted(rows, "5e1", "before") == ("5e1f", 4)
    assert wanted(rows, "5e", "3") == ("5e", 3), "a whole id comes before beginnings"
    assert wanted(rows[:2], "5", "3") == ("5e1f", 3)
    with pytest.raises(SandboxGone, match="kernel 5e has no snapshot 'before'"):
        wanted(rows, "5e", "before")
    with pytest.raises(SandboxGone, match="no snapshot 'nosuch' of a kernel '5e1'"):
        wanted(rows, "5e1", "nosuch")
    with pytest.raises(ConfigError) as caught:
        wanted([ONE, ONE | {"kernel_id": "5e2"}], "5", "3")
    assert "5e1f, 5e2" in caught.value.hint
    again = [ONE | {"name": "before"}, rows[1]]
    with pytest.raises(ConfigError) as caught:
        wanted(again, "5e1f", "before")
    assert "one of 3, 4" in caught.value.hint


def test_which_row_is_meant() -> None:
    rows = [ONE, ONE | {"generation": 10, "name": "before"}, ONE | {"kernel_id": "77"}]
    assert meant(rows, "5e1f", "") == rows[1]
    assert meant(rows, "5e1f", "3") == ONE
    assert meant(rows, "5e1f", "before") == rows[1]
    assert meant(rows, "5e1f", "nosuch") is None


def test_what_would_be_removed() -> None:
    mine = ONE | {"has_kernel": True}
    assert removal_question([mine], "disk") == (
        "Remove 1 snapshot(s) of 1 kernel(s), 50.0 MiB, from this disk for good?"
    )
    theirs = ONE | {"on": ["disk", "store"], "name": "before"}
    question = removal_question([mine, theirs], "")
    assert question.startswith("Checkpoints among them: before. A kernel of another machine")


def test_nobody_is_there_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_sure("remove it?", yes=True)
    monkeypatch.setattr(confirm.sys.stdin, "isatty", lambda: False, raising=False)
    with pytest.raises(ConfigError, match="remove it") as caught:
        is_sure("remove it?", yes=False)
    assert "--yes" in caught.value.hint


@pytest.mark.parametrize(
    ("typed", "sure"), [("y\n", True), ("Yes\n", True), ("\n", False), ("", False)]
)
def test_somebody_is_asked(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    typed: str,
    sure: bool,
) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

        def readline(self) -> str:
            return typed

    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert is_sure("remove it?", yes=False) == sure
    assert "remove it? [y/N]" in capsys.readouterr().err


class Busy:
    """A client whose daemon moves one snapshot."""

    def __init__(self) -> None:
        self.asked = 0

    async def transfers(self) -> list[dict[str, Any]]:
        self.asked += 1
        more = {"done_bytes": 1 << 20, "total_bytes": 4 << 20}
        return [{"kernel_id": "5e1f", "generation": 3, "direction": "push", **more}]


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize(
    ("kernel_id", "line"),
    [("5e1f", "pushing 5e1f 3: 1.0 MiB of 4.0 MiB"), ("77", "hibernating 77")],
)
async def test_progress_of_what_takes_its_time(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    shown: bool,
    kernel_id: str,
    line: str,
) -> None:
    monkeypatch.setattr("torpor.cli.transfers._EVERY_S", 0.01)
    client = Busy()

    async def work() -> str:
        # Whoever asks a second time has said what it was told first.
        while shown and client.asked < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        return "done"

    given = await with_progress(client, work(), "hibernating", kernel_id, shown=shown)  # type: ignore[arg-type]
    said = capsys.readouterr().err
    assert given == "done"
    assert bool(re.search(rf"{re.escape(line)}, \d+ s", said)) == shown
    assert (said == "") == (not shown)
    assert said.endswith("\r\x1b[K") == shown, "the line goes when the work is done"


async def test_what_is_quick_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    work = asyncio.sleep(0.01, "done")
    assert await with_progress(Busy(), work, "waking", "5e1f", shown=True) == "done"  # type: ignore[arg-type]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("terminal", "as_json"), [(True, False), (True, True), (False, False)])
def test_progress_is_for_people(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, as_json: bool
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    assert WakeCommand(json=as_json).shows_progress == (terminal and not as_json)


@pytest.mark.parametrize("shown", [True, False])
async def test_work_that_fails_or_is_cancelled(shown: bool) -> None:
    async def fail() -> None:
        raise SandboxGone("it is gone")

    with pytest.raises(SandboxGone):
        await with_progress(Busy(), fail(), "waking", "5e1f", shown=shown)  # type: ignore[arg-type]
    ended = asyncio.Event()

    async def last() -> None:
        try:
            await asyncio.sleep(9)
        finally:
            ended.set()

    waiting = asyncio.create_task(
        with_progress(Busy(), last(), "waking", "5e1f", shown=shown)  # type: ignore[arg-type]
    )
    await asyncio.sleep(0.05)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert ended.is_set()
