"""Which kernel a person means, and what people see of snapshots."""

from __future__ import annotations

import pytest
from torpor.cli.sleep import chosen
from torpor.cli.snapshots import _text
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


def test_snapshots_as_a_table() -> None:
    one = {
        "kernel_id": "5e1f",
        "generation": 3,
        "name": "",
        "created_at": "2026-11-22T22:00:00+00:00",
        "template": "default",
        "kernel_name": "python3",
        "bytes": 50 << 20,
        "has_kernel": False,
    }
    text = _text([one])
    assert "5e1f (no kernel any more)  3" in text
    assert text.endswith("50.0 MiB in all")
    assert _text([]) == "no snapshots"
