"""What is answered for a kernel that sleeps, and how it is had to stand still. Pure parts."""

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
    wants_restart,
)
from torpor.bridge.probe import IDENTITY, MSG_ID, Probe
from torpor.bridge.reactor import Reactor
from torpor.bridge.replies import BUSY, IDLE, Voice
from torpor.bridge.signing import Signer
from torpor.bridge.underway import Underway
from torpor.link import Channel

from tests.unit.bridge.test_hibernation_parts import VOICE, header, packed

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
    assert run(busy) == "a cell is running"
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
