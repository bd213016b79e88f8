"""The small parts of hibernation: what is under way, what waits, what is said, when a hold ends."""

from __future__ import annotations

import json
from typing import Any

import pytest
from torpor.bridge.presence import (
    Presence,
    Seen,
    parse_seen,
)
from torpor.bridge.replies import BUSY, IDLE, Said, Speaker, Voice, parse_voice, refused, stranger
from torpor.bridge.signing import Signer
from torpor.bridge.underway import MAX_NOTED, Underway
from torpor.bridge.waiting import Waiting
from torpor.link import Channel

VOICE = Voice("s", "ada", "5.4", b"kernel.x.")


def packed(**value: Any) -> bytes:
    return json.dumps(value).encode()


def header(kind: str, ident: str = "m1", **more: Any) -> bytes:
    return packed(msg_id=ident, msg_type=kind, username="u", session="s", **more)


# -- underway --------------------------------------------------------------------------------


def test_a_request_is_under_way_until_its_reply() -> None:
    underway = Underway()
    assert underway.reason() is None
    underway.passed(header("execute_request", "a"))
    underway.passed(memoryview(header("inspect_request", "b")))
    assert underway.reason() == "execute_request has no reply yet, nor have 1 others"
    underway.replied(memoryview(header("execute_request", "a")))
    assert underway.reason() == "inspect_request has no reply yet"
    underway.replied(header("inspect_request", "c"))
    underway.replied(b"{}")
    underway.handled("other")
    assert underway.reason() is not None
    underway.handled("b")
    assert underway.reason() is None


@pytest.mark.parametrize(
    "given",
    [
        header("comm_msg"),
        header("input_reply"),
        packed(msg_type="execute_request"),
        b"",
        b"\xff\xfe",
        packed(msg_id="a", username='"msg_type": "x_request"'),
        packed(msg_id='a"b', msg_type="execute_request"),
    ],
)
def test_what_has_no_reply_or_no_plain_id_is_not_noted(given: bytes) -> None:
    underway = Underway()
    underway.passed(given)
    assert underway.reason() is None


def test_however_it_is_written() -> None:
    underway = Underway()
    underway.passed(b'{ "msg_type":"x_request" ,\n"msg_id" : "1" }')
    assert underway.reason() == "x_request has no reply yet"
    underway.replied(b'{"msg_id":"1"}')
    assert underway.reason() is None


def test_what_is_noted_is_bounded() -> None:
    underway = Underway()
    for number in range(MAX_NOTED + 10):
        underway.passed(header("x_request", f"{number}"))
    assert str(underway.reason()).endswith(f"nor have {MAX_NOTED - 1} others")
    underway.clear()
    assert underway.reason() is None


def test_a_question_is_open_until_it_is_answered_or_nobody_is_left_to_ask() -> None:
    underway = Underway()
    underway.asked()
    assert underway.reason() == "the kernel waits for an answer to input()"
    underway.answered()
    assert underway.reason() is None
    underway.passed(header("execute_request", "a"))
    underway.asked()
    underway.replied(header("execute_request", "a"))  # interrupted
    assert underway.reason() is None


STOPPED = packed(type="event", event="stopped", body={"threadId": 1})


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("debug_event", packed(event="continued", body={"threadId": 1})),
        ("debug_event", packed(event="continued", body={"allThreadsContinued": True})),
        ("debug_event", packed(event="thread", body={"reason": "exited", "threadId": 1})),
        ("debug_event", packed(event="terminated")),
        (
            "debug_event",
            packed(event="continued", body={"threadId": 1, "allThreadsContinued": False}),
        ),
        ("debug_reply", packed(command="disconnect", success=True, body={})),
        ("debug_reply", packed(command="continue", success=True, body={})),
    ],
)
def test_what_lets_a_stopped_thread_go_on(kind: str, content: bytes) -> None:
    underway = Underway()
    underway.debugged("debug_event", STOPPED)
    assert underway.reason() == "a debugger has stopped the kernel"
    underway.debugged(kind, content)
    assert underway.reason() is None


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (
            "debug_event",
            packed(event="continued", body={"threadId": 2, "allThreadsContinued": False}),
        ),
        ("debug_event", packed(event="output", body={})),
        ("debug_event", packed(event="thread", body={"reason": "started", "threadId": 1})),
        ("debug_event", packed(event=[], body=7)),
        ("debug_event", b"garbage"),
        ("debug_reply", packed(command="stackTrace", body={})),
        ("debug_reply", packed(event="continued", command="variables", body={"threadId": 1})),
    ],
)
def test_what_does_not(kind: str, content: bytes) -> None:
    underway = Underway()
    underway.debugged("debug_event", STOPPED)
    underway.debugged(kind, content)
    assert underway.reason() is not None


DEBUG_INFO = packed(command="debugInfo", success=True, body={"isStarted": False})


def test_what_is_known_of_a_debugger_holds_until_it_does_something() -> None:
    underway = Underway()
    underway.debugged("debug_reply", DEBUG_INFO)
    assert underway.debug_info == {"isStarted": False}
    for kind, content in (
        ("debug_reply", packed(command="initialize", success=True, body={})),
        ("debug_reply", packed(command="debugInfo", success=False, body={})),
        ("debug_reply", b"x" * 100_000),
        ("debug_event", packed(event="output", body={})),
    ):
        underway.debugged("debug_reply", DEBUG_INFO)
        underway.debugged(kind, content)
        assert underway.debug_info is None
    underway.debugged("debug_reply", DEBUG_INFO)
    underway.clear()
    assert underway.debug_info is None


def test_only_the_question_for_the_debugger_is_answered() -> None:
    presence = Presence()
    presence.learn(None, None, {"isStarted": False})
    said = presence.answer("debug_request", packed(command="debugInfo", seq=3))
    assert said is not None
    assert [one.kind for one in said] == ["status", "debug_reply", "status"]
    assert json.loads(said[1].content) == {
        "type": "response",
        "request_seq": 3,
        "success": True,
        "command": "debugInfo",
        "body": {"isStarted": False},
    }
    for content in (packed(command="initialize", seq=1), b"", b"[]"):
        assert presence.answer("debug_request", content) is None
    presence.learn(None, None, {"x": float("nan")})
    assert presence.answer("debug_request", packed(command="debugInfo", seq=3)) is None
    presence.learn(None, None)
    assert presence.answer("debug_request", packed(command="debugInfo", seq=3)) is None


# -- waiting ---------------------------------------------------------------------------------


def test_messages_wait_in_order_and_are_counted() -> None:
    waiting = Waiting()
    for number in range(3):
        waiting.push(Channel.SHELL, [b"%d" % number], 1)
    waiting.push(Channel.CONTROL, [b"c"], 1)
    assert len(waiting) == 4
    first = waiting.pop(Channel.SHELL)
    waiting.put_back(Channel.SHELL, first)
    assert waiting.take_all() == [
        (Channel.CONTROL, ([b"c"], 1)),
        *((Channel.SHELL, ([b"%d" % number], 1)) for number in range(3)),
    ]
    assert (len(waiting), waiting.holds(Channel.SHELL)) == (0, False)
    with pytest.raises(IndexError):
        waiting.pop(Channel.SHELL)


@pytest.mark.parametrize(("limit_bytes", "limit_messages"), [(1_000, 100), (10**9, 3)])
def test_a_full_channel_leaves_room_for_another_one(limit_bytes: int, limit_messages: int) -> None:
    waiting = Waiting(limit_bytes, limit_messages)
    while not waiting.full(Channel.SHELL):
        waiting.push(Channel.SHELL, [b"x" * 300], 1)
    assert len(waiting) == 3
    assert not waiting.full(Channel.CONTROL)
    waiting.push(Channel.CONTROL, [b""], 1)
    assert waiting.full(Channel.CONTROL)
    waiting.pop(Channel.SHELL)
    waiting.pop(Channel.SHELL)
    assert not waiting.full(Channel.SHELL)


# -- what is said ------------------------------------------------------------------------------


def test_a_message_has_the_shape_and_the_signature_of_a_kernels() -> None:
    signer = Signer(b"key")
    speaker = Speaker(signer)
    parent = header("x_request")
    frames = speaker.message(VOICE, Said("x_reply", b'{"a": 1}'), [b"id", b"more"], parent, 0.5)
    assert frames[:3] == [b"id", b"more", b"<IDS|MSG>"]
    assert signer.verify(bytes(frames[3]), frames[4:])
    found = json.loads(bytes(frames[4]))
    assert found["date"] == "1970-01-01T00:00:00.500000Z"
    names = ("msg_type", "username", "session", "version")
    assert [found[name] for name in names] == ["x_reply", "ada", "s", "5.4"]
    assert frames[5:] == [parent, b"{}", b'{"a": 1}']
    status = speaker.message(VOICE, IDLE, [b"id"], parent, 0.5)
    assert status[:2] == [b"kernel.x.status", b"<IDS|MSG>"]
    again = Speaker(signer).message(VOICE, IDLE, [], parent, 0.5)
    assert len({json.loads(bytes(one[-4]))["msg_id"] for one in (frames, status, again)}) == 3


@pytest.mark.parametrize(
    "recorded",
    [
        {},
        {**VOICE.to_json(), "session": 7},
        {**VOICE.to_json(), "username": "x" * 2_000},
        {**VOICE.to_json(), "topic": "\u20ac"},
        {**VOICE.to_json(), "topic": None},
    ],
)
def test_a_voice_that_cannot_be_read(recorded: dict[str, Any]) -> None:
    assert parse_voice(recorded) is None


def test_a_voice_survives_its_record() -> None:
    odd = Voice("s", "u", "5", b"\xff\x00.")
    assert parse_voice(json.loads(json.dumps(odd.to_json()))) == odd
    seen = Seen({"c": "t"}, odd)
    assert parse_seen(json.loads(json.dumps(seen.to_json()))) == seen
    for broken in (None, [], {}, {"comms": {}}, {"comms": [], "voice": odd.to_json()}):
        assert parse_seen(broken) is None
    assert stranger("k1").topic == b"kernel.k1."


def test_errors_are_of_the_requests_own_type() -> None:
    found = refused("inspect_request", "why")
    assert [one.kind for one in found] == ["status", "inspect_reply", "status"]
    content = json.loads(found[1].content)
    assert content == {
        "status": "error",
        "ename": "WakeFailed",
        "evalue": "why",
        "traceback": ["why"],
    }
    found = refused("execute_request", "why")
    assert [(one.kind, one.subtopic) for one in found] == [
        ("status", "status"),
        ("error", "error"),
        ("execute_reply", ""),
        ("status", "status"),
    ]
    assert json.loads(found[1].content) == {
        name: value for name, value in content.items() if name != "status"
    }
    for kind in ("comm_msg", "_request", "odd", ""):
        assert refused(kind, "why") == [BUSY, IDLE]
