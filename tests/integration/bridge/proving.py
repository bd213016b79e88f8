"""What tests of kernels that must show that they work have in common.

The stand-in kernel takes what it is ``mute`` about and says nothing of it; tests speak in its place.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest
import zmq
from torpor.bridge.client import BridgeRefused

from tests.integration.bridge.sleeper import Bed, KernelStandin, receive
from tests.integration.bridge.standin import Standin

MUTE = ("execute_request",)
LONG_S = 30.0  # nothing here waits for so long
MIB = 1 << 20

Answer = asyncio.Task[dict[str, Any]]


def restored(bed: Bed, mute: Sequence[str] = MUTE) -> KernelStandin:
    """Bring the checkpoint up as a kernel that takes everything, and is mute about some."""
    guest = bed.restore()
    guest.mute.update(mute)
    return guest


async def woken(bed: Bed, mute: Sequence[str] = MUTE) -> dict[str, Any]:
    """Wake a kernel as far as the daemon does before it lets clients speak with it."""
    return await bed.call("wake", held=True, **restored(bed, mute).fifos)


async def release(bed: Bed, prove_s: float = LONG_S, **more: Any) -> Answer:
    """Begin to let it go on; whatever the bridge is asked next, it is asked after that."""
    answer = asyncio.create_task(bed.call("release", prove_s=prove_s, **more))
    await asyncio.sleep(0)
    return answer


async def full(bed: Bed) -> int:
    """Wait until nothing more is passed; give how many messages the kernel has got by then."""
    await bed.waits(1)  # for this one there was no room, and no other goes before it

    async def got_all() -> bool:
        passed = (await bed.status())["counters"]["to_guest"]
        return len(bed.guest.heard) == passed + 1  # the bridge's own question is not counted

    await bed.until(got_all)
    return len(bed.guest.heard)


async def open_still(bed: Bed, answer: Answer) -> None:
    """Whatever the bridge has heard until now was no proof, and no end either."""
    await bed.status()  # an answer that was given before this one has come before it
    await asyncio.sleep(0.01)
    assert not answer.done()


async def refusal(answer: Answer) -> BridgeRefused:
    with pytest.raises(BridgeRefused) as caught:
        await answer
    assert caught.value.reason == "link"
    return caught.value


def cell(bed: Bed, code: str = "1") -> tuple[list[bytes], dict[str, Any]]:
    """Give a cell as it is sent, and the header by which its kernel knows it."""
    request = bed.raw.request(code=code)
    header: dict[str, Any] = json.loads(request[2])
    return request, header


async def waiting_cell(bed: Bed, socket: zmq.Socket[bytes], code: str = "1") -> dict[str, Any]:
    """Send a cell to a kernel that sleeps; give its header."""
    before = (await bed.status())["waiting"]
    request, header = cell(bed, code)
    socket.send_multipart(request)
    await bed.waits(before + 1)
    return header


async def disproved(bed: Bed) -> dict[str, Any]:
    """Have a kernel be passed a cell and not take it up; give the cell's header."""
    header = await waiting_cell(bed, bed.raw.dealer(identity=b"me"))
    await woken(bed)
    await refusal(await release(bed, 0.2))
    return header


def reply_of(bed: Bed, parts: list[bytes]) -> tuple[str, str, str]:
    """Give of a reply its parent's id, its status and who says so."""
    message = bed.raw.read(parts)
    content = message["content"]
    return message["parent_header"]["msg_id"], content["status"], content.get("ename", "")


async def nothing_more(*sockets: zmq.Socket[bytes]) -> None:
    for socket in sockets:
        socket.rcvtimeo = 100
        with pytest.raises(zmq.Again):
            await receive(socket)
        socket.rcvtimeo = 5_000


def fresh(bed: Bed, name: str) -> Standin:
    """Give another sandbox."""
    guest = Standin(bed.folder / name)
    bed.world.sandboxes.append(guest)  # type: ignore[arg-type]
    return guest


async def wakes_anew(bed: Bed, dealer: zmq.Socket[bytes]) -> None:
    """Check that a kernel which was put back is woken by the next cell, and runs that one only."""
    bed.guest.close()
    again = await waiting_cell(bed, dealer, "again")
    await woken(bed, ())
    assert await (await release(bed)) == {}
    assert reply_of(bed, await receive(dealer)) == (again["msg_id"], "ok", "")
    assert bed.guest.ran == ["again"]
