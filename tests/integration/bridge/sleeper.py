"""A stand-in guest with a stand-in kernel that can be checkpointed and restored, and a bed for it.

``KernelStandin.checkpoint`` copies the guest's link and the kernel's memory as a checkpoint does, and
``restored`` brings the copy up behind new FIFOs. Whatever the kernel ran is in its memory, so what
a restored kernel has in ``ran`` is what its clients can have caused: exactly once, or not.
"""

from __future__ import annotations

import asyncio
import copy
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq
from torpor.bridge.client import BridgeRefused
from torpor.link import Channel, Link, Message

from tests.integration.bridge.harness import GUEST_KEY, World, soon
from tests.integration.bridge.raw import Raw, client_side, zmq_context
from tests.integration.bridge.standin import Standin

SESSION = "a-kernels-session"
TOPIC = "kernel.6ab82b16."
KERNEL_INFO = {
    "status": "ok",
    "protocol_version": "5.3",
    "implementation": "stand-in",
    "language_info": {"name": "python", "version": "3.11"},
    "banner": "a kernel of a few lines",
}
DELIMITER = b"<IDS|MSG>"


def pack(value: object) -> bytes:
    return json.dumps(value).encode()


class KernelStandin(Standin):
    """``mute`` names the types of requests it takes and never answers."""

    def __init__(self, folder: Path, checkpoint: tuple[Link, dict[str, Any]] | None = None) -> None:
        self.memory: dict[str, Any] = {"ran": [], "heard": [], "comms": {"c1": "t", "c2": "u"}}
        self.memory["debugger"] = {"isStarted": False, "breakpoints": []}
        self.mute: set[str] = set()
        self.count = 0
        if checkpoint is not None:
            self.memory = checkpoint[1]
        self._paused = False
        super().__init__(folder)
        if checkpoint is not None:
            with self._lock:  # nothing has been read yet: the bridge connects later
                self.guest.link = checkpoint[0]

    @property
    def ran(self) -> list[str]:
        """The codes that were executed, in order."""
        return list(self.memory["ran"])

    @property
    def heard(self) -> list[str]:
        """The types of every message that came, in order."""
        return list(self.memory["heard"])

    def checkpoint(self) -> tuple[Link, dict[str, Any]]:
        """Stop for ever; give what is on disk then."""
        self.pause()
        return copy.deepcopy(self.guest.link), copy.deepcopy(self.memory)

    def pause(self) -> None:
        """Stop as a sandbox does that is paused: what was sent to it stays in the FIFO."""
        self._lock.acquire()
        self._paused = True

    def go_on(self) -> None:
        """Undo ``pause``."""
        self._paused = False
        self._lock.release()

    def close(self) -> None:
        if self._paused:
            self._stopped = True
            self.go_on()
        super().close()

    kill = close

    def status(self, state: str, parent: dict[str, Any]) -> None:
        """Publish a status, from within the guest's thread."""
        self.say(
            Channel.IOPUB, [f"{TOPIC}status".encode()], "status", parent, execution_state=state
        )

    def say(
        self,
        channel: Channel,
        first: list[bytes],
        kind: str,
        parent: dict[str, Any],
        **content: Any,
    ) -> None:
        """Send any message, from within the guest's thread."""
        self.guest.link.send(channel, message_of(first, kind, parent, **content))

    def tell(
        self,
        channel: Channel,
        first: list[bytes],
        kind: str,
        parent: dict[str, Any],
        **content: Any,
    ) -> None:
        """Send any message, from the test."""
        self.send(channel, message_of(first, kind, parent, **content))

    def be(self, state: str, parent: dict[str, Any] | None = None) -> None:
        """Publish a status, from the test."""
        first = [f"{TOPIC}status".encode()]
        cause = parent or {"msg_type": "execute_request", "msg_id": "somebody's"}
        self.tell(Channel.IOPUB, first, "status", cause, execution_state=state)

    def _answer(self, message: Message) -> None:
        parts = [bytes(part) for part in message.parts]
        cut = parts.index(DELIMITER)
        header, content = json.loads(parts[cut + 2]), json.loads(parts[cut + 5])
        kind = header["msg_type"]
        self.received.append(message)
        self.memory["heard"].append(kind)
        self.guest.link.flush()  # acknowledge also what gets no answer
        if kind in self.mute or message.channel is Channel.STDIN:
            return
        self.status("busy", header)
        reply = self._reply(kind, content)
        if reply is not None:
            name = kind.replace("_request", "_reply")
            self.say(message.channel, parts[:cut], name, header, **reply)
        self.status("idle", header)

    def _reply(self, kind: str, content: dict[str, Any]) -> dict[str, Any] | None:
        if kind == "execute_request":
            self.memory["ran"].append(content["code"])
            return {"status": "ok", "execution_count": len(self.memory["ran"])}
        if kind == "comm_info_request":
            comms = self.memory["comms"].items()
            return {"comms": {ident: {"target_name": name} for ident, name in comms}}
        if kind == "kernel_info_request":
            return KERNEL_INFO
        if content.get("command") == "debugInfo":
            known = {"type": "response", "success": True, "request_seq": content["seq"]}
            return {**known, "command": "debugInfo", "body": self.memory["debugger"]}
        return {"status": "ok"} if kind.endswith("_request") else None


def message_of(
    first: list[bytes], kind: str, parent: dict[str, Any], **content: Any
) -> list[bytes]:
    """Give a message as a kernel forms it; the guest's signature is not looked at."""
    message_of.number += 1  # type: ignore[attr-defined]
    number = message_of.number  # type: ignore[attr-defined]
    header = {
        "msg_id": f"{SESSION}_{number}",
        "msg_type": kind,
        "username": "ada",
        "session": SESSION,
        "date": "2026-11-22T20:20:10.954632Z",
        "version": "5.4",
    }
    return [*first, DELIMITER, b"0" * 64, pack(header), pack(parent), b"{}", pack(content)]


message_of.number = 0  # type: ignore[attr-defined]


class Bed:
    """One bridge, one kernel to put to sleep, and its clients; ``events`` is what the bridge told."""

    def __init__(self, world: World, folder: Path, raw: Raw, guest: KernelStandin) -> None:
        self.world = world
        self.folder = folder
        self.raw = raw
        self.guest = guest
        self.request: dict[str, Any] = {}
        self.events: list[dict[str, Any]] = []
        self.sandboxes = 0
        self.memory: dict[str, Any] = {}
        self._listening: asyncio.Task[None] | None = None

    async def call(self, op: str, **params: Any) -> dict[str, Any]:
        return await self.world.bridge.call(op, kernel_id="k1", **params)

    async def status(self) -> dict[str, Any]:
        return await self.call("status")

    def listen(self) -> None:
        """Collect events of the bridge that is connected now."""

        async def collect() -> None:
            async for event in self.world.bridge.events():
                self.events.append(event)

        self._listening = asyncio.create_task(collect())

    def told(self, name: str) -> list[dict[str, Any]]:
        """Give the events of one name."""
        return [event for event in self.events if event["event"] == name]

    async def hold(self, timeout_s: float = 5.0) -> dict[str, Any]:
        return await self.call("hold", timeout_s=timeout_s)

    async def fall_asleep(self) -> None:
        """Hold, checkpoint, sleep, destroy: as the daemon does."""

        async def may_sleep() -> bool:
            return (await self.status())["busy_reason"] is None

        ends_at = time.monotonic() + 20
        while True:
            await self.until(may_sleep)
            try:
                self.memory = (await self.hold())["memory"]
                break
            except BridgeRefused as exc:  # it answers late, or is not done yet after all
                if exc.reason not in ("busy", "finishing") or time.monotonic() > ends_at:
                    raise
        self.checkpoint = self.guest.checkpoint()
        await self.call("sleep")
        self.guest.close()

    def restore(self) -> KernelStandin:
        """Bring the checkpoint up in a new sandbox."""
        self.sandboxes += 1
        link, memory = copy.deepcopy(self.checkpoint)
        self.guest = KernelStandin(self.folder / f"restored-{self.sandboxes}", (link, memory))
        self.world.sandboxes.append(self.guest)  # type: ignore[arg-type]
        return self.guest

    async def wake(self, **options: Any) -> dict[str, Any]:
        return await self.call("wake", **self.restore().fifos, **options)

    async def until(self, condition: Any, within_s: float = 5.0) -> None:
        """Wait until ``condition()`` holds; it may be a coroutine function."""
        if not await soon(condition, within_s):
            raise AssertionError(f"not within {within_s} s: {await self.status()} {self.events}")

    async def waits(self, count: int) -> None:
        """Wait until the bridge holds so many messages back."""

        async def enough() -> bool:
            return (await self.status())["waiting"] == count

        await self.until(enough)

    async def aclose(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.wait({self._listening})


async def receive(socket: zmq.Socket[bytes]) -> list[bytes]:
    return await asyncio.to_thread(socket.recv_multipart)


@asynccontextmanager
async def bed_in(world: World, folder: Path, **changes: Any) -> AsyncIterator[Bed]:
    """Give a bed with an awake kernel in it."""
    guest = KernelStandin(folder / "first")
    world.sandboxes.append(guest)  # type: ignore[arg-type]
    request = {"kernel_id": "k1", "client": client_side(**changes), "guest_key": GUEST_KEY}
    opened = await world.bridge.call("open", **request, **guest.fifos)
    request["client"]["ports"] = opened["ports"]
    with zmq_context() as context:
        bed = Bed(world, folder, Raw(context, opened["ports"]), guest)
        bed.request = request
        bed.listen()
        guest.event(event="ready", generation=1, pid=1, kernel_info=KERNEL_INFO, iopub_welcome=True)

        async def idle() -> bool:
            return bool((await bed.status())["execution_state"] == "idle")

        await bed.until(idle)
        try:
            yield bed
        finally:
            await bed.aclose()


async def refused(bed: Bed, op: str, **params: Any) -> str:
    """Give the code with which an operation is refused."""
    with pytest.raises(BridgeRefused) as caught:
        await bed.call(op, **params)
    return caught.value.reason
