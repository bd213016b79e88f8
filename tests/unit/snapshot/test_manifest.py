from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torpor.errors import SandboxError
from torpor.golden.fingerprint import take
from torpor.golden.manifest import ImageFile, sealed
from torpor.snapshot.errors import NoRoom, SnapshotUnusable
from torpor.snapshot.manifest import (
    HIGHEST_GENERATION,
    Ancestor,
    SnapshotManifest,
    check_name,
    is_kernel_id,
    parse_snapshot,
    snapshot_bytes,
)
from torpor.snapshot.outside import Outside
from torpor.template import WorkspaceMode

from tests.unit.snapshot.making import KERNEL, a_manifest

OWNER = os.geteuid()
FULL = a_manifest(
    name="before training",
    generation=7,
    parent=Ancestor(KERNEL, 3),
    files={"pages.img": ImageFile(12, "0" * 64), "checkpoint.img": ImageFile(3, "1" * 64)},
    environment=take([__file__], ["/usr"]),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
)


def parse(**changes: Any) -> SnapshotManifest:
    return parse_snapshot(sealed(FULL.to_json() | changes), owner_uid=OWNER)


@pytest.mark.parametrize(
    "manifest",
    [
        FULL,
        a_manifest(),
        a_manifest(workspace=None, workspace_mode=WorkspaceMode.NONE),
        a_manifest(parent=Ancestor("another", 900)),
        a_manifest(generation=HIGHEST_GENERATION),
    ],
)
def test_the_round_trip(manifest: SnapshotManifest) -> None:
    assert parse_snapshot(snapshot_bytes(manifest), owner_uid=OWNER) == manifest


def test_its_size_and_its_age() -> None:
    assert FULL.size_bytes == 15
    assert a_manifest(created_at="1970-01-01T01:00:00+01:00").created_s == 0
    assert a_manifest(created_at="1970-01-01T00:01:00").created_s == 60


def test_fields_of_a_later_torpor_are_left_out() -> None:
    assert parse(later=1) == FULL


def test_the_key_of_the_guest_is_not_shown() -> None:
    assert FULL.guest_key not in repr(FULL)


def test_they_are_errors_of_torpor() -> None:
    assert issubclass(SnapshotUnusable, SandboxError)
    assert NoRoom("full").to_json()["error"]["code"] == "no_room"


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "Expecting value"),
        (b"\xff\xfe\xfa", "decode"),
        (b"[" * 100_000, "recursion"),
        (b"[]", "no JSON object"),
        (b"{}", "no version"),
        (b'{"version": true}', "no version"),
        (b'{"version": 1}', "not what was written"),
        (b'{"version": 1, "x": NaN}', "JSON compliant"),
        (b'{"version": ' + b"1" * 5000 + b"}", "digits"),
        (snapshot_bytes(FULL) + b"\n", "not what was written"),
    ],
)
def test_damaged(raw: bytes, words: str) -> None:
    with pytest.raises(SnapshotUnusable, match=words) as caught:
        parse_snapshot(raw, owner_uid=OWNER)
    assert "backup" in caught.value.hint


def test_of_a_later_version() -> None:
    with pytest.raises(SnapshotUnusable, match="of version 3, this Torpor knows version 2") as got:
        parse(version=3)
    assert "restore it with the Torpor that made it" in got.value.hint


def test_of_somebody_else() -> None:
    with pytest.raises(SnapshotUnusable, match=f"to user {OWNER}, not to user {OWNER + 1}"):
        parse_snapshot(snapshot_bytes(FULL), owner_uid=OWNER + 1)


def test_every_cut_and_every_flipped_bit() -> None:
    raw = snapshot_bytes(FULL)
    for at in range(len(raw)):
        flipped = bytearray(raw)
        flipped[at] ^= 1 << at % 8
        for wrong in (raw[:at], bytes(flipped)):
            with pytest.raises(SnapshotUnusable):
                parse_snapshot(wrong, owner_uid=OWNER)


@pytest.mark.parametrize("name", sorted(FULL.to_json().keys() - {"version"}))
def test_a_field_of_a_wrong_type(name: str) -> None:
    right = FULL.to_json()[name]
    for wrong in (None, 7.5, [7], "secret-7", {"secret-7": 7.5}):
        if type(wrong) is type(right) or (name in ("parent", "workspace") and wrong is None):
            continue
        with pytest.raises(SnapshotUnusable) as caught:
            parse(**{name: wrong})
        assert "secret-7" not in str(caught.value)
    body = FULL.to_json()
    del body[name]
    later = {"outside": Outside(), "template_fields": {}}
    if name in later:  # manifests from before there was such a field
        assert getattr(parse_snapshot(sealed(body), owner_uid=OWNER), name) == later[name]
        return
    with pytest.raises(SnapshotUnusable):
        parse_snapshot(sealed(body), owner_uid=OWNER)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kernel_id": "../../etc"}, "not the id of a kernel"),
        ({"name": "7"}, "not usable as the name"),
        ({"generation": 0}, "0 is not a generation"),
        ({"generation": HIGHEST_GENERATION + 1}, "is not a generation"),
        ({"generation": True}, "generation is not a count"),
        ({"parent": {"kernel_id": KERNEL, "generation": 7}}, "7 cannot come from 7"),
        ({"parent": {"kernel_id": "..", "generation": 1}}, "not the id of a kernel"),
        ({"parent": {"kernel_id": KERNEL}}, "generation is not a count"),
        ({"parent": {"kernel_id": KERNEL, "generation": 0}}, "0 is not a generation"),
        ({"created_at": "yesterday"}, "created_at is not a date"),
        ({"owner_uid": -1}, "owner_uid is not a count"),
        ({"workspace_mode": "most"}, "workspace_mode is none of the modes"),
        ({"environment": {"files": []}}, "environment is damaged"),
        ({"files": {"../x": {"bytes": 1, "sha256": "0" * 64}}}, "entry of the file"),
        ({"files": {"x": {"bytes": 1, "sha256": "0"}}}, "sum of the file"),
        ({"size_bytes": 16}, "not the sum of its files"),
    ],
)
def test_a_value_that_cannot_be(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SnapshotUnusable, match=words):
        parse(**changes)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1, 2}])
def test_what_json_cannot_hold(value: object) -> None:
    with pytest.raises(SnapshotUnusable, match="cannot be written"):
        snapshot_bytes(a_manifest(memory={"c": value}))


@pytest.mark.parametrize(
    ("kernel_id", "usable"),
    [
        ("5e1f0c3a-8a7e-4a57-9d8e-0a4f6f0b2f3c", True),
        ("...", True),
        (".lock", True),
        (".draft-1", True),
        ("-", True),
        ("a" * 128, True),
        ("a" * 129, False),
        ("", False),
        (".", False),
        ("..", False),
        ("a/b", False),
        ("a\n", False),
        (".\n", False),
        ("+drafts", False),
        ("é", False),
        ("a\0", False),
    ],
)
def test_the_id_of_a_kernel(kernel_id: str, usable: bool) -> None:
    assert is_kernel_id(kernel_id) == usable


@pytest.mark.parametrize("name", ["", " x", "x ", "12", "a\nb", "a\0", "x" * 101, "\ud800"])
def test_a_name_that_cannot_be(name: str) -> None:
    with pytest.raises(SnapshotUnusable, match="not usable as the name"):
        check_name(name)


@pytest.mark.parametrize("name", ["before training", "v1.2", "12a", "été", "x" * 100, "a/b"])
def test_a_name_that_can_be(name: str) -> None:
    assert check_name(name) == name


@settings(deadline=None)
@given(st.binary())
def test_nothing_but_snapshot_unusable(raw: bytes) -> None:
    with pytest.raises(SnapshotUnusable):
        parse_snapshot(raw, owner_uid=OWNER)


@settings(deadline=None)
@given(st.sampled_from(sorted(FULL.to_json())), JSON)
def test_nothing_but_snapshot_unusable_for_a_field(name: str, value: object) -> None:
    with suppress(ValueError, SnapshotUnusable):  # NaN, infinity
        manifest = parse(**{name: value})
        assert parse_snapshot(snapshot_bytes(manifest), owner_uid=OWNER) == manifest
