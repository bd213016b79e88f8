"""A woken kernel shows that it works with the first thing that waits for it."""

from __future__ import annotations

import json
import time

import pytest
from torpor.link import Channel

from tests.integration.bridge.proving import (
    cell,
    nothing_more,
    open_still,
    refusal,
    release,
    reply_of,
    waiting_cell,
    woken,
)
from tests.integration.bridge.sleeper import TOPIC, Bed, receive
from tests.integration.bridge.test_hold import ask, idle, overheard

# -- asked -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kinds", "asked"),
    [
        ({}, False),
        ({"control": "debug_request"}, False),
        ({"stdin": "input_reply"}, False),
        ({"control": "debug_request", "stdin": "input_reply"}, False),
        ({"shell": "execute_request"}, True),
        ({"shell": "comm_msg", "control": "debug_request"}, True),
    ],
)
async def test_asked_is_what_waits_on_shell(bed: Bed, kinds: dict[str, str], asked: bool) -> None:
    for number, (channel, kind) in enumerate(kinds.items(), 1):
        bed.raw.dealer(channel).send_multipart(bed.raw.request(kind))
        await bed.waits(number)
    assert await woken(bed) == {"waiting": len(kinds), "asked": asked}


# -- the proof ---------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [True, False])
async def test_a_status_about_what_was_passed_is_the_proof(bed: Bed, first: bool) -> None:
    one, two = bed.raw.dealer(identity=b"one"), bed.raw.dealer(identity=b"two")
    headers = [await waiting_cell(bed, socket) for socket in (one, two)]
    await woken(bed)
    answer = await release(bed)
    await bed.until(lambda: len(bed.guest.heard) == 3)
    await open_still(bed, answer)
    assert (await bed.status())["state"] == "awake"
    bed.guest.be("busy", headers[0 if first else 1])
    assert await answer == {}
    for socket, name, header in zip((one, two), (b"one", b"two"), headers, strict=True):
        bed.guest.tell(Channel.SHELL, [name], "execute_reply", header, status="ok")
        assert reply_of(bed, await receive(socket)) == (header["msg_id"], "ok", "")
    await nothing_more(one, two)


async def test_a_kernel_that_works_has_proved_it_by_the_way(bed: Bed) -> None:
    dealer = bed.raw.dealer()
    headers = [await waiting_cell(bed, dealer, code) for code in ("1", "2", "3")]
    await woken(bed, ())
    assert await (await release(bed)) == {}
    for header in headers:
        assert reply_of(bed, await receive(dealer)) == (header["msg_id"], "ok", "")
    assert bed.guest.ran == ["1", "2", "3"]
    await bed.until(lambda: idle(bed))
    assert (await bed.status())["busy_reason"] is None
    await bed.fall_asleep()
    await bed.wake()
    assert (await ask(bed, dealer, "execute_request", code="4"))["content"]["status"] == "ok"
    assert bed.guest.ran == ["1", "2", "3", "4"]


@pytest.mark.parametrize("state", ["busy", "idle", "starting"])
@pytest.mark.parametrize("kind", ["comm_msg", "complete_request", "odd"])
async def test_any_message_and_any_state_will_do(bed: Bed, kind: str, state: str) -> None:
    """Also what has no reply is asked, and a bridge may hear only that the kernel is done with it."""
    request = bed.raw.request(kind)
    bed.raw.dealer().send_multipart(request)
    await bed.waits(1)
    await woken(bed, (kind,))
    answer = await release(bed)
    await bed.until(lambda: kind in bed.guest.heard)
    await open_still(bed, answer)
    bed.guest.be(state, json.loads(request[2]))
    assert await answer == {}


async def test_what_is_no_proof(bed: Bed) -> None:
    """It reaches its clients all the same."""
    old = bed.raw.dealer(identity=b"old")
    del bed.request["kernel_id"]
    await bed.wake()
    request, of_old = cell(bed, "before")
    old.send_multipart(request)
    await receive(old)
    await bed.fall_asleep()
    me, control = bed.raw.dealer(identity=b"me"), bed.raw.dealer("control", identity=b"me")
    listener = bed.raw.listener()
    assert await overheard(bed, listener, 1) == ["welcome"]
    mine = await waiting_cell(bed, me)
    control.send_multipart(bed.raw.request("debug_request"))
    await bed.waits(2)
    await woken(bed)
    answer = await release(bed)
    # the kernel's other thread works
    assert bed.raw.read(await receive(control))["msg_type"] == "debug_reply"
    assert await overheard(bed, listener, 2) == ["busy debug_request", "idle debug_request"]
    await open_still(bed, answer)
    for cause in (of_old, {"msg_type": "execute_request", "msg_id": "somebody's"}):
        for state in ("busy", "idle"):
            bed.guest.be(state, cause)
            assert await overheard(bed, listener, 1) == [f"{state} execute_request"]
    await open_still(bed, answer)
    bed.guest.be("busy", {"msg_type": "execute_request", "msg_id": "torpor-bridge_1"})  # to nobody
    topic = [TOPIC.encode()]
    bed.guest.tell(Channel.IOPUB, topic, "stream", mine, name="stdout", text="a thread")
    bed.guest.tell(Channel.IOPUB, topic, "execute_input", mine, code="1")
    bed.guest.be("dreaming", mine)
    bed.guest.tell(Channel.IOPUB, topic, "status", {"msg_type": "x"}, execution_state="busy")
    assert await overheard(bed, listener, 4) == [
        "stream execute_request",
        "execute_input execute_request",
        "dreaming execute_request",
        "busy x",
    ]
    bed.guest.tell(Channel.SHELL, [b"me"], "execute_reply", mine, status="ok")
    assert reply_of(bed, await receive(me)) == (mine["msg_id"], "ok", "")
    await open_still(bed, answer)
    bed.guest.be("busy", mine)
    assert await answer == {}
    assert await overheard(bed, listener, 1) == ["busy execute_request"]
    await nothing_more(me, control, listener)


async def test_without_anything_to_ask_nothing_is_proved(bed: Bed) -> None:
    await woken(bed, ())
    answer = await release(bed)
    await open_still(bed, answer)
    assert (await bed.status())["state"] == "awake"
    dealer = bed.raw.dealer()
    assert (await ask(bed, dealer, "execute_request", code="1"))["content"]["status"] == "ok"
    assert await answer == {}
    await bed.until(lambda: idle(bed))
    await bed.fall_asleep()
    await woken(bed, ())
    start = time.monotonic()
    assert "0.2 s" in str(await refusal(await release(bed, 0.2)))
    assert 0.1 < time.monotonic() - start < 9  # 10 s if nothing is said
    assert (await bed.status())["state"] == "awake"


async def test_a_notice_is_shown_once_and_before_the_cell(bed: Bed) -> None:
    dealer, listener = bed.raw.dealer(), bed.raw.listener()
    assert await overheard(bed, listener, 1) == ["welcome"]
    headers = [await waiting_cell(bed, dealer, code) for code in ("1", "2")]
    await woken(bed, ())
    assert await (await release(bed, notice="a file has gone\n")) == {}
    found = [bed.raw.read(await receive(listener)) for _ in range(5)]
    assert [each["msg_type"] for each in found] == ["stream", *["status"] * 4]
    assert found[0]["content"] == {"name": "stderr", "text": "a file has gone\n"}
    assert found[0]["parent_header"]["msg_id"] == headers[0]["msg_id"]
    await nothing_more(listener)


async def test_a_notice_that_was_not_shown_is_not_said_twice(bed: Bed) -> None:
    """It is for the next cell, also when what was asked first was none, and in vain."""
    dealer, listener = bed.raw.dealer(), bed.raw.listener()
    assert await overheard(bed, listener, 1) == ["welcome"]
    dealer.send_multipart(bed.raw.request("complete_request"))
    await bed.waits(1)
    await woken(bed, ("complete_request",))
    await refusal(await release(bed, 0.2, notice="a file has gone\n"))
    await bed.call("wake_failed", reason="x", memory=bed.memory)
    bed.guest.close()
    await overheard(bed, listener, 2)
    await waiting_cell(bed, dealer)
    await woken(bed, ())
    await (await release(bed, notice="a file has gone\n"))
    assert bed.raw.read(await receive(listener))["content"]["text"] == "a file has gone\n"


async def test_an_id_may_be_any_text(bed: Bed) -> None:
    dealer = bed.raw.dealer()
    message = bed.raw.session.msg("execute_request", {"code": "1"})
    message["header"]["msg_id"] = message["msg_id"] = 'a "msg_id"\n'
    dealer.send_multipart(bed.raw.session.serialize(message))
    await bed.waits(1)
    await woken(bed, ())
    answer = await release(bed)
    assert bed.raw.read(await receive(dealer))["parent_header"]["msg_id"] == 'a "msg_id"\n'
    assert await answer == {}
