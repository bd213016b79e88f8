from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torpor.errors import SandboxError
from torpor.golden.fingerprint import take
from torpor.golden.manifest import GoldenUnusable, ImageFile, Manifest, parse_manifest, sealed

from tests.unit.golden.making import KEY, a_manifest

FULL = a_manifest(
    files={"pages.img": ImageFile(12, "0" * 64)}, environment=take([__file__], ["/usr"])
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
)


def parse(**changes: Any) -> Manifest:
    return parse_manifest(sealed(FULL.to_json() | changes))


def test_the_round_trip() -> None:
    assert parse_manifest(sealed(FULL.to_json())) == FULL


def test_fields_of_a_later_torpor_are_left_out() -> None:
    assert parse(later=1) == FULL


def test_the_key_of_the_guests_is_not_shown() -> None:
    assert FULL.guest_key not in repr(FULL)


def test_it_is_an_error_of_torpor() -> None:
    assert issubclass(GoldenUnusable, SandboxError)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "Expecting value"),
        (b"\xff\xfe\xfa", "decode"),
        (b"[" * 100_000, "recursion"),
        (b"[]", "no JSON object"),
        (b"{}", "not of version 1"),
        (b'{"version": true}', "not of version 1"),
        (b'{"version": 2}', "not of version 1"),
        (b'{"version": 1}', "not what was written"),
        (b'{"version": 1, "x": NaN}', "JSON compliant"),
        (b'{"version": 1, "x": 1e999}', "JSON compliant"),
        (b'{"version": ' + b"1" * 5000 + b"}", "digits"),
    ],
)
def test_damaged(raw: bytes, words: str) -> None:
    with pytest.raises(GoldenUnusable, match=words):
        parse_manifest(raw)


def test_every_cut_and_every_flipped_bit() -> None:
    raw = sealed(FULL.to_json())
    for at in range(len(raw)):
        with pytest.raises(GoldenUnusable):
            parse_manifest(raw[:at])
        flipped = bytearray(raw)
        flipped[at] ^= 1 << at % 8
        with suppress(GoldenUnusable):  # \u00e9 is \u00E9
            assert parse_manifest(bytes(flipped)) == FULL


@pytest.mark.parametrize("name", sorted(FULL.to_json().keys() - {"version"}))
def test_a_field_of_a_wrong_type(name: str) -> None:
    right = FULL.to_json()[name]
    for wrong in (
        value for value in (None, 7.5, [7], "secret-7") if type(value) is not type(right)
    ):
        with pytest.raises(GoldenUnusable) as caught:
            parse(**{name: wrong})
        assert "secret-7" not in str(caught.value)
    body = FULL.to_json()
    del body[name]
    with pytest.raises(GoldenUnusable):
        parse_manifest(sealed(body))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"key": "../../etc"}, "not the key of a golden"),
        ({"key": KEY.upper()}, "not the key of a golden"),
        ({"build": "."}, "not the name of a build"),
        ({"build": "a/b"}, "not the name of a build"),
        ({"created_at": "yesterday"}, "created_at is not a date"),
        ({"build_seconds": -1}, "build_seconds is not"),
        ({"build_seconds": True}, "build_seconds is not"),
        ({"build_seconds": 10**400}, "build_seconds is not"),
        ({"warm_up_failed": {"x": 1}}, "warm_up_failed has a value"),
        ({"argv": ["python", 3]}, "argv is not"),
        ({"environment": {"files": []}}, "environment is damaged"),
        ({"files": {"../x": {"bytes": 1, "sha256": "0" * 64}}}, "entry of the file"),
        ({"files": {"x": 1}}, "entry of the file"),
        ({"files": {"x": {"bytes": -1, "sha256": "0" * 64}}}, "bytes is not"),
        ({"files": {"x": {"bytes": True, "sha256": "0" * 64}}}, "bytes is not"),
        ({"files": {"x": {"bytes": 1, "sha256": "0"}}}, "sum of the file"),
        ({"files": {"x": {"bytes": 1, "sha256": None}}}, "sha256 is not"),
    ],
)
def test_a_value_that_cannot_be(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(GoldenUnusable, match=words):
        parse(**changes)


@settings(deadline=None)
@given(st.binary() | st.text() | JSON.map(json.dumps))
def test_nothing_but_golden_unusable(raw: bytes | str) -> None:
    with pytest.raises(GoldenUnusable):
        parse_manifest(raw)


@settings(deadline=None)
@given(st.sampled_from(sorted(FULL.to_json())), JSON)
def test_nothing_but_golden_unusable_for_a_field(name: str, value: object) -> None:
    try:
        raw = sealed(FULL.to_json() | {name: value})
    except ValueError:  # NaN, infinity
        return
    try:
        manifest = parse_manifest(raw)
    except GoldenUnusable:
        return
    assert parse_manifest(sealed(manifest.to_json())) == manifest
