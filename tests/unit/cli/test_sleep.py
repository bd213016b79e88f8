"""Which kernel a person means, and what people see of snapshots."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from torpor.cli.restore import kernel_of, number_or_name
from torpor.cli.sleep import chosen
from torpor.cli.snapshots import _text
from torpor.cli.transfers import transfer_text, with_progress
from torpor.errors import SandboxGone

KNOWN = ["5e1f-aa", "5e1f-ab", "77"]


@pytest.mark.parametrize(("wanted", "found"), [("77", "77"), ("7", "77"), ("5e1f-aa", "5e1f-aa")])
def test_an_id_or_how_it_begins(wanted: str, found: str) -> None:
    assert chosen(wanted, KNOWN) == found


def test_a_whole_id_that_another_begins_with() -> None:
    assert chosen("5e", ["5e", "5e1f"]) == "5e"


@pytest.mark.parametrize(
    ("wanted", "said"), [("9", "no kernel '9'"), ("5e1f", "2 kernels"), ("", "no kernel ")]
)
def test_nobody_or_more_than_one(wanted: str, said: str) -> None:
    with pytest.raises(SandboxGone, match=said):
        chosen(wanted, KNOWN)


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
    with pytest.raises(SandboxGone, match="no kernels that begin with '9'"):
        kernel_of([ONE], "9")
    with pytest.raises(SandboxGone, match="2 kernels"):
        kernel_of([ONE, ONE | {"kernel_id": "5e2"}], "5")


class Busy:
    """A client whose daemon moves one snapshot."""

    async def transfers(self) -> list[dict[str, Any]]:
        more = {"done_bytes": 1 << 20, "total_bytes": 4 << 20}
        return [{"kernel_id": "5e1f", "generation": 3, "direction": "push", **more}]


@pytest.mark.parametrize("shown", [True, False])
async def test_progress_of_what_takes_its_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shown: bool
) -> None:
    monkeypatch.setattr("torpor.cli.transfers._EVERY_S", 0.01)
    work = asyncio.sleep(0.1, "done")
    assert await with_progress(Busy(), work, shown=shown) == "done"  # type: ignore[arg-type]
    said = capsys.readouterr().err
    assert ("pushing 5e1f 3: 1.0 MiB of 4.0 MiB" in said) == shown


async def test_work_that_fails_or_is_cancelled() -> None:
    async def fail() -> None:
        raise SandboxGone("it is gone")

    with pytest.raises(SandboxGone):
        await with_progress(Busy(), fail(), shown=True)  # type: ignore[arg-type]
    ended = asyncio.Event()

    async def last() -> None:
        try:
            await asyncio.sleep(9)
        finally:
            ended.set()

    waiting = asyncio.create_task(with_progress(Busy(), last(), shown=True))  # type: ignore[arg-type]
    await asyncio.sleep(0.05)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert ended.is_set()
