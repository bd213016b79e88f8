"""The small parts of hibernation: what is under way, what waits, what is said, when a hold ends."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from torpor.bridge.activity import Activity
from torpor.bridge.counters import Counters
from torpor.bridge.hold import Hold
from torpor.bridge.messages import Malformed
from torpor.bridge.presence import (
    MAX_COMMS_BYTES,
    Presence,
    Seen,
    kind_of,
    parse_comms,
    parse_seen,
    wants_restart,
)
from torpor.bridge.probe import IDENTITY, MSG_ID, Probe
from torpor.bridge.reactor import Reactor
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


# -- presence ----------------------------------------------------------------------------------


def knowing() -> Presence:
    presence = Presence()
    presence.learn({"banner": "b"}, Seen({"1": "t", "2": "u"}, VOICE))
    return presence


@pytest.mark.parametrize(
    ("kind", "content", "expected"),
    [
        ("kernel_info_request", b"{}", {"status": "ok", "banner": "b"}),
        (
            "comm_info_request",
            b"{}",
            {"status": "ok", "comms": {"1": {"target_name": "t"}, "2": {"target_name": "u"}}},
        ),
        (
            "comm_info_request",
            packed(target_name="u"),
            {"status": "ok", "comms": {"2": {"target_name": "u"}}},
        ),
        ("comm_info_request", packed(target_name=["u"]), {"status": "ok", "comms": {}}),
        ("interrupt_request", b"", {"status": "ok"}),
        ("shutdown_request", b"{}", {"status": "ok", "restart": False}),
        ("shutdown_request", packed(restart=True), {"status": "ok", "restart": True}),
        ("shutdown_request", packed(restart="yes"), {"status": "ok", "restart": False}),
        ("shutdown_request", b"broken", {"status": "ok", "restart": False}),
    ],
)
def test_what_is_answered(kind: str, content: bytes, expected: dict[str, Any]) -> None:
    said = knowing().answer(kind, content)
    assert said is not None
    assert (said[0], said[-1]) == (BUSY, IDLE)
    assert said[1].kind == kind.replace("_request", "_reply")
    assert json.loads(said[1].content) == expected
    shutdown = kind == "shutdown_request"
    assert [one.subtopic for one in said[2:-1]] == (["shutdown"] if shutdown else [])


@pytest.mark.parametrize(
    "kind",
    [
        "execute_request",
        "complete_request",
        "inspect_request",
        "is_complete_request",
        "history_request",
        "connect_request",
        "debug_request",
        "create_subshell_request",
        "comm_open",
        "comm_msg",
        "comm_close",
        "odd",
        "",
    ],
)
def test_what_is_intent(kind: str) -> None:
    assert knowing().answer(kind, b"{}") is None


def test_what_is_not_known_is_not_answered() -> None:
    presence = Presence()
    for kind in ("kernel_info_request", "comm_info_request", "execute_request", "", "odd"):
        assert presence.answer(kind, b"{}") is None
    presence.learn({"x": float("nan")}, None)
    assert presence.answer("kernel_info_request", b"{}") is None
    presence.learn({"x": "\ud800"}, None)  # no UTF-8 has that
    assert presence.answer("kernel_info_request", b"{}") is not None


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", packed(comms=[]), b"{" * MAX_COMMS_BYTES])
def test_comms_that_cannot_be_read(content: bytes) -> None:
    assert parse_comms(content) is None


def test_comms_are_taken_as_far_as_they_are_some() -> None:
    comms = {"1": {"target_name": "t"}, "2": {}, "3": 7, "4": {"target_name": 7}}
    assert parse_comms(packed(comms=comms)) == {"1": "t"}


def test_kinds() -> None:
    assert kind_of(header("x_request")) == "x_request"
    for broken in (b"", b"{}", b"[]", packed(msg_type=7), b"x" * 20_000):
        with pytest.raises(Malformed):
            kind_of(broken)
    assert not wants_restart(b"[]")


# -- probe and hold ----------------------------------------------------------------------------


def asked(probe: Probe) -> dict[str, dict[str, Any]]:
    """Give the headers of a probe's requests by type."""
    found = [json.loads(bytes(request[3])) for request in probe.requests()]
    return {one["msg_type"]: one for one in found}


def answer(probe: Probe, kind: str, **content: Any) -> None:
    parent = packed(**asked(probe)[f"{kind}_request"])
    reply = header(f"{kind}_reply", version="5.4")
    probe.replied(f"{kind}_reply", [reply, parent, b"{}", packed(**content)])


def test_a_probe_is_done_with_reply_and_idle() -> None:
    probe = Probe(Signer(b"guest"), kernel_info_too=False)
    (request,) = probe.requests()
    assert request[:2] == [IDENTITY, b"<IDS|MSG>"]
    assert Signer(b"guest").verify(bytes(request[2]), request[3:])
    ident = asked(probe)["comm_info_request"]["msg_id"]
    assert ident.startswith(MSG_ID)
    probe.published([b"kernel.x.status"], "busy", ident)
    probe.published([b"kernel.y.status"], "idle", f"{MSG_ID}another")
    answer(probe, "comm_info", comms={"1": {"target_name": "t"}})
    assert not probe.done
    probe.published([b"kernel.x.status"], "idle", ident)
    assert probe.done
    assert probe.seen == Seen({"1": "t"}, Voice("s", "u", "5.4", b"kernel.x."))
    assert probe.failure == ""


def test_a_probe_asks_for_kernel_info_only_if_told() -> None:
    probe = Probe(Signer(b"guest"), kernel_info_too=True)
    answer(probe, "comm_info", comms={})
    for one in asked(probe).values():
        probe.published([], "idle", one["msg_id"])
    assert not probe.done
    answer(probe, "kernel_info", banner="b")
    assert probe.done
    assert probe.kernel_info == {"banner": "b"}


def test_a_probe_is_not_fooled() -> None:
    probe = Probe(Signer(b"guest"), kernel_info_too=False)
    probe.replied("comm_info_reply", [header("comm_info_reply"), header("x"), b"{}", b"{}"])
    probe.replied("comm_info_reply", [b"broken", b"{}", b"{}", b"{}"])
    assert (probe.done, probe.failure) == (False, "")
    answer(probe, "comm_info", status="error")
    assert probe.failure


class Line:
    """What a hold asks of a line."""

    quiet = True
    closed = False

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, channel: Channel, parts: Any) -> None:
        self.sent.append(parts)

    def flush(self) -> None: ...

    def settle(self) -> None: ...


class Restless(Counters):
    """A message has gone through each time that one looks."""

    looks = 0

    @property
    def from_guest(self) -> int:  # type: ignore[override]
        self.looks += 1
        return self.looks

    @from_guest.setter
    def from_guest(self, count: int) -> None: ...


class Kernel:
    """What is to be held."""

    def __init__(
        self, *, restless: bool = False, delivers: bool = True, quiet: bool = True
    ) -> None:
        self.line: Any = Line()
        self.line.quiet = quiet
        self.counters = Restless() if restless else Counters()
        self.endpoints: Any = SimpleNamespace(holding=not delivers)
        self.activity = Activity()
        self.activity.ready()
        self.guest: Any = SimpleNamespace(dead=False)
        self.underway = Underway()

    def crashed(self, exc: Exception) -> None:
        raise exc


def run(kernel: Kernel, *, give_up: str = "", answered: bool = True) -> str | None:
    """Give how a hold of at most 50 ms ends."""
    reactor, ends = Reactor(), list[str | None]()
    probe = Probe(Signer(b""), kernel_info_too=False)

    def ended(reason: str | None) -> None:
        ends.append(reason)
        reactor.stop()

    hold = Hold(reactor, kernel, probe, 0.05, ended)
    hold.start()
    assert ends == []
    if answered:
        answer(probe, "comm_info", comms={})
        probe.published([], "idle", asked(probe)["comm_info_request"]["msg_id"])
    if give_up:
        hold.give_up(give_up)
        hold.give_up("too late")
    assert ends == []
    reactor.run()
    reactor.close()
    assert len(kernel.line.sent) == 1
    kernel.line.sent.clear()
    (end,) = ends
    return end


def test_how_a_hold_ends() -> None:
    assert run(Kernel()) is None
    assert run(Kernel(restless=True)) == "the kernel keeps sending messages"
    assert run(Kernel(delivers=False)) == "a client does not take what the kernel has sent"
    assert run(Kernel(quiet=False)) == "the guest did not acknowledge everything in 0.05 s"
    assert run(Kernel(), answered=False) == "the kernel does not answer comm_info_request"
    assert run(Kernel(), give_up="somebody came") == "somebody came"
    busy = Kernel()
    busy.activity.state = "busy"
    assert run(busy) == "the kernel is busy"
    busy.guest.dead = True
    assert run(busy) == "the kernel has died"
    asking = Kernel()
    asking.underway.asked()
    assert run(asking) == "the kernel waits for an answer to input()"


def test_a_hold_that_is_cancelled_says_nothing() -> None:
    reactor, kernel, ends = Reactor(), Kernel(), list[str | None]()
    hold = Hold(reactor, kernel, Probe(Signer(b""), kernel_info_too=False), 1, ends.append)
    hold.cancel()
    hold.start()
    hold.cancel()
    hold.cancel()
    reactor.later(0.02, kernel, reactor.stop)
    reactor.run()
    reactor.close()
    assert ends == []
