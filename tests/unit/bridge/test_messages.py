"""What has the shape of a Jupyter message and what has not; nothing else may come out but Malformed."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jupyter_client.session import Session
from torpor.bridge.messages import (
    DELIMITER,
    Malformed,
    iso_time,
    message_type,
    parse_object,
    split_message,
    welcome_message,
)
from torpor.bridge.signing import Signer

BODY = [b'{"msg_id": "1", "msg_type": "t"}', b"{}", b"{}", b"{}"]


@given(st.lists(st.one_of(st.just(DELIMITER), st.binary(max_size=300)), max_size=20))
def test_split_finds_the_first_delimiter_or_nothing(parts: list[bytes]) -> None:
    try:
        cut = split_message(parts)
    except Malformed:
        return
    assert cut == parts.index(DELIMITER)
    assert cut <= 8
    assert len(parts) >= cut + 6
    assert all(len(part) <= 255 for part in parts[:cut])


def test_split_accepts_views() -> None:
    parts = [memoryview(part) for part in (b"id", DELIMITER, b"", *BODY)]
    assert split_message(parts) == 1


@given(st.binary(max_size=200))
def test_parse_object_gives_an_object_or_malformed(text: bytes) -> None:
    try:
        found = parse_object(text, 100)
    except Malformed:
        return
    assert found == json.loads(text)
    assert len(text) <= 100


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner),
    max_leaves=10,
)


@settings(max_examples=40, deadline=None)
@given(json_values)
def test_parse_object_agrees_with_json(value: object) -> None:
    text = json.dumps(value).encode()
    if isinstance(value, dict):
        assert parse_object(text, 10_000) == value
        assert parse_object(memoryview(text + b" \n"), 10_000) == value
    else:
        with pytest.raises(Malformed):
            parse_object(text, 10_000)


@pytest.mark.parametrize(
    "text", [b"{" * 5_000, b'{"a":' * 5_000, b"{" + b" " * 9_000, b'{"a": 1' + b"0" * 9_000 + b"}"]
)
def test_parse_object_of_hostile_text(text: bytes) -> None:
    with contextlib.suppress(Malformed):
        parse_object(text, 100_000)


@given(st.lists(st.binary(max_size=100), min_size=4, max_size=4))
def test_message_type_of_anything(body: list[bytes]) -> None:
    with pytest.raises(Malformed):
        message_type(body)


def test_message_type() -> None:
    assert message_type(BODY) == "t"
    assert message_type([memoryview(part) for part in BODY]) == "t"
    assert (
        message_type([b' {"msg_id": "1", "msg_type": "t"}\n', b" {}", b"{} ", b"\n{\n}\n"]) == "t"
    )
    for index in (1, 2, 3):
        for bad in (b"", b"{", b"}", b"[]", b"  ", b"1"):
            with pytest.raises(Malformed, match="not_an_object"):
                message_type([*BODY[:index], bad, *BODY[index + 1 :]])


def test_welcome_is_what_ipykernel_sends() -> None:
    session = Session(key=b"k")
    plain = welcome_message(b"", "s", Signer(b"k"), 1_700_000_000.5)
    assert plain[0] == DELIMITER
    message = session.deserialize(plain[1:])
    assert message["msg_type"] == "iopub_welcome"
    assert message["content"] == {"subscription": ""}
    assert (message["parent_header"], message["metadata"]) == ({}, {})
    assert set(message["header"]) == set(session.msg_header("x"))
    topical = welcome_message("é".encode(), "s", Signer(b"k"), 0.0)
    assert topical[0] == "é".encode()
    assert session.deserialize(topical[2:])["content"] == {"subscription": "é"}
    assert plain[2] != welcome_message(b"", "s", Signer(b"k"), 1_700_000_000.5)[2]
    with pytest.raises(Malformed):
        welcome_message(b"\xff", "s", Signer(b"k"), 0.0)


def test_iso_time() -> None:
    assert iso_time(0.5) == "1970-01-01T00:00:00.500000Z"
