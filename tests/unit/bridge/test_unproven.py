"""What is kept of messages that were passed to a kernel which has not shown yet that it works."""

from __future__ import annotations

import json

import pytest
from torpor.bridge.inflight import message_cost
from torpor.bridge.messages import DELIMITER, MAX_HEADER_BYTES
from torpor.bridge.signing import Part
from torpor.bridge.unproven import Unproven
from torpor.bridge.waiting import LIMIT_BYTES, LIMIT_MESSAGES
from torpor.link import Channel


def request(
    ident: object, *, first: tuple[bytes, ...] = (b"me",), content: bytes = b"{}"
) -> tuple[list[Part], int]:
    """Give an admitted message, and where it is cut."""
    header = json.dumps({"msg_id": ident, "msg_type": "execute_request"}).encode()
    return [*first, DELIMITER, b"signature", header, b"{}", b"{}", content], len(first)


def test_messages_come_back_in_the_order_in_which_they_were_passed() -> None:
    unproven = Unproven()
    entries = [request(f"{number}", first=(b"a", b"b")[: number % 2 + 1]) for number in range(20)]
    for entry in entries:
        unproven.passed(Channel.SHELL, *entry)
    assert unproven.take_all() == [(Channel.SHELL, entry) for entry in entries]


def test_only_a_status_about_one_of_them_is_a_proof() -> None:
    unproven = Unproven()
    assert not unproven.proved_by("one")
    assert not unproven.proved_by("")
    for ident in ("one", "two"):
        unproven.passed(Channel.SHELL, *request(ident))
    assert unproven.proved_by("one")
    assert unproven.proved_by("two")
    for other in ("", "on", "one ", "three", "torpor-bridge_1", "execute_request"):
        assert not unproven.proved_by(other), other


def test_a_status_about_what_has_odd_ids() -> None:
    """What clients choose is anything; what cannot be a header's text proves nothing."""
    unproven = Unproven()
    header = '{"username": "é", "msg_id"  :  "é-1"}'.encode()
    unproven.passed(Channel.SHELL, [DELIMITER, b"", memoryview(header), b"{}", b"{}", b"{}"], 0)
    assert unproven.proved_by("é-1")
    assert not unproven.proved_by("\ud800")


@pytest.mark.parametrize(
    "header",
    [
        b"{}",
        b'{"msg_id": 7}',
        b'{"msg_id": null, "msg_type": "x"}',
        b'{"username": "' + b"x" * MAX_HEADER_BYTES + b'", "msg_id": "late"}',
        b"no JSON at all",
    ],
    ids=["none", "number", "null", "late", "nonsense"],
)
def test_a_message_without_an_id_is_kept_and_proves_nothing(header: bytes) -> None:
    unproven = Unproven()
    entry: tuple[list[Part], int] = [b"me", DELIMITER, b"", header, b"{}", b"{}", b"{}"], 1
    unproven.passed(Channel.SHELL, *entry)
    for ident in ("", "7", "None", "null", "late", "x"):
        assert not unproven.proved_by(ident)
    assert unproven.take_all() == [(Channel.SHELL, entry)]


def test_an_id_is_looked_for_in_the_header_only() -> None:
    unproven = Unproven()
    parts, cut = request("header", first=(b'"msg_id": "identity"',))
    parts[cut + 3 :] = [b'{"msg_id": "parent"}', b'{"msg_id": "metadata"}', b'{"msg_id": "said"}']
    unproven.passed(Channel.SHELL, parts, cut)
    assert unproven.proved_by("header")
    for other in ("identity", "parent", "metadata", "said"):
        assert not unproven.proved_by(other)


def test_many_messages_are_too_much() -> None:
    unproven = Unproven()
    for number in range(LIMIT_MESSAGES):
        assert not unproven.full(Channel.SHELL)
        unproven.passed(Channel.SHELL, *request(f"{number}"))
    assert unproven.full(Channel.SHELL)
    assert unproven.proved_by("0")
    assert unproven.proved_by(f"{LIMIT_MESSAGES - 1}")


def test_large_messages_are_too_much() -> None:
    """One may always be kept, however large."""
    unproven, content, kept = Unproven(), b"x" * (1 << 20), 0
    while not unproven.full(Channel.SHELL):
        entry = request(f"{kept}", content=content)
        unproven.passed(Channel.SHELL, *entry)
        kept += 1
    assert kept == 1 + LIMIT_BYTES // message_cost(entry[0])
    huge = Unproven()
    assert not huge.full(Channel.SHELL)
    huge.passed(Channel.SHELL, *request("huge", content=bytes(LIMIT_BYTES)))
    assert huge.full(Channel.SHELL)


def test_taking_everything_leaves_nothing() -> None:
    unproven = Unproven()
    assert unproven.take_all() == []
    unproven.passed(Channel.SHELL, *request("large", content=bytes(LIMIT_BYTES)))
    assert len(unproven.take_all()) == 1
    assert not unproven.full(Channel.SHELL)
    assert not unproven.proved_by("large")
    assert unproven.take_all() == []
    unproven.passed(Channel.SHELL, *request("next"))
    assert unproven.proved_by("next")
    assert [entry for _, entry in unproven.take_all()] == [request("next")]


def test_control_is_kept_and_proves_nothing() -> None:
    unproven = Unproven()
    unproven.passed(Channel.CONTROL, *request("asked on control"))
    unproven.passed(Channel.SHELL, *request("a cell"))
    assert not unproven.proved_by("asked on control")
    assert {channel for channel, _ in unproven.take_all()} == {Channel.CONTROL, Channel.SHELL}


def test_what_has_a_reply_needs_no_other_answer() -> None:
    unproven = Unproven()
    for channel, ident in (
        (Channel.SHELL, "one"),
        (Channel.SHELL, "two"),
        (Channel.CONTROL, "three"),
    ):
        unproven.passed(channel, *request(ident))
    for header in (b'{"msg_id": "one"}', b'{"msg_id": "three"}', b'{"msg_id": "x"}', b"{}", b"no"):
        unproven.replied(header)
    assert unproven.take_all() == [(Channel.SHELL, request("two"))]
    unproven.passed(Channel.SHELL, *request("one"))  # another one of that name
    assert len(unproven.take_all()) == 1
