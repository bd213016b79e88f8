"""One kernel's bridge: five endpoints on one side, a line to its guest on the other.

The endpoints stay bound from ``open`` to ``close``, whatever happens to sandbox, guest and link.
Messages from the guest go through ``relay``, messages from clients through ``inlet``; ``asleep`` is
what happens in between while the kernel hibernates.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import zmq

from torpor.bridge.activity import Activity
from torpor.bridge.asleep import Hibernation, State
from torpor.bridge.counters import Counters
from torpor.bridge.desk import Publish
from torpor.bridge.endpoints import Endpoints, Keys
from torpor.bridge.guest import Answer, Guest
from torpor.bridge.hold import idle_since
from torpor.bridge.inflight import InFlight
from torpor.bridge.line import Line, LineEvents
from torpor.bridge.memory import memory_of, newer, recall, recall_asleep
from torpor.bridge.messages import Malformed, iso_time
from torpor.bridge.outlet import Shared
from torpor.bridge.protocol import Fifos, OpenRequest, RequestError
from torpor.bridge.reactor import Reactor
from torpor.bridge.record import Record
from torpor.bridge.relay import Relay
from torpor.bridge.signing import Signer
from torpor.bridge.sockets import Socket
from torpor.bridge.underway import Underway
from torpor.link import Channel, Message, Opened, QueueFull

STATUS_TIMEOUT_S = 10.0

logger = logging.getLogger(__name__)


class Kernel:
    """Everything the bridge holds for one kernel."""

    def __init__(
        self,
        reactor: Reactor,
        context: zmq.Context[Socket],
        publish: Publish,
        request: OpenRequest,
        folder: Path,
    ) -> None:
        """Bind the endpoints and start the link: all or nothing.

        Raises:
            RequestError: ``bind`` or ``fifo``.
            ConfigError: the signature scheme.
        """
        self.kernel_id = request.kernel_id
        self._reactor = reactor
        self._publish = publish
        self.counters = Counters()
        self.activity = Activity()
        self.underway = Underway()
        self.line: Line | None = None
        self._link_state, self._link_error = "closed", ""
        self._stderr_tail = ""
        self._resumed = False
        client = request.client
        keys = Keys(Signer(client.key, client.signature_scheme), Signer(request.guest_key))
        with contextlib.ExitStack() as undo:
            self.record = Record(folder, request.kernel_id)
            undo.callback(self.record.close if request.resume else self.record.remove)
            self.guest = Guest(reactor, self, self._guest_event, self._send_rpc)
            shared = Shared(reactor, self, self.counters, InFlight(), self._finished, self._marked)
            self.endpoints = Endpoints(
                shared, context, client, keys, self.record, self.underway, self._beating
            )
            undo.callback(self.endpoints.close)
            self.relay = Relay(self, keys.client, self._finished)
            self.hibernation = Hibernation(reactor, self, keys, publish)
            undo.callback(self.unlink)
            if request.fifos is None:
                known = newer(self.record.load_state(), request.memory)
                self.hibernation.begin_asleep(known)
                self.endpoints.expect_clients(welcome=self.guest.iopub_welcome)
            else:
                self._connect(request.fifos, resume=request.resume)
            undo.pop_all()

    # -- what the server asks for ------------------------------------------------------------

    def relink(self, fifos: Fifos) -> None:
        """Talk to a new sandbox through the same endpoints.

        Raises:
            RequestError: ``fifo``; the endpoints stay, without a link.
        """
        self.unlink()
        self.endpoints.forget_requests()
        self._connect(fifos, resume=False)

    def unlink(self) -> None:
        """Give up the sandbox; clients' messages wait. Idempotent."""
        self.disconnect()
        self.endpoints.detach()
        self.hibernation.reset("the sandbox was given up")
        self.guest.forget()
        self._begin_anew()

    def connect_again(self, fifos: Fifos) -> None:
        """Part of ``Body``.

        Raises:
            RequestError: ``fifo``.
        """
        self._open_line(fifos, resume=True, moved=True)

    def disconnect(self) -> None:
        """Part of ``Body``. Idempotent."""
        if self.line is not None:
            self._stderr_tail = self.line.stderr_tail
            self.line.close()
            self.line = None
        self._link_state, self._link_error = "closed", ""

    def fall_back(self, memory: Mapping[str, Any]) -> None:
        """Part of ``Body``."""
        self.disconnect()
        self.endpoints.let_go()
        self.guest.forget()
        self._begin_anew()
        recall_asleep(self, memory)
        self.remember(memory)

    def remember(self, memory: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Part of ``Body``: record, and give, what is known, or ``memory`` instead."""
        known = dict(memory or memory_of(self, self.hibernation.remembered()))
        if not self.hibernation.restorable:
            with contextlib.suppress(OSError):  # a full disk must not stop the kernel
                self.record.save_state(known)
        return known

    def call(
        self, method: str, params: Mapping[str, Any], timeout_s: float, answer: Answer
    ) -> None:
        """Call the guest; see ``Guest.call``."""
        if self.line is None or self.line.closed:
            reason = self._link_error or "there is no sandbox"
            answer({"error": {"code": "link", "message": f"no link to the guest: {reason}"}})
            return
        if method in ("start", "restart"):
            self._begin_anew()
        self.guest.call(method, params, timeout_s, answer)

    def status(self) -> dict[str, Any]:
        """Give the answer to ``status`` (shape: see the contract in ``protocol``)."""
        line = self.line
        return {
            "state": self.hibernation.state.value,
            "waiting": len(self.endpoints.waiting),
            "link": self._link_state,
            "link_error": self._link_error or None,
            **self.guest.to_json(),
            "execution_state": self.activity.state,
            "last_activity": iso_time(self.activity.last_s),
            "idle_since": idle_since(self),
            "busy_reason": self.hibernation.busy_reason(),
            "counters": self.counters.to_json(),
            "guest_stderr": line.stderr_tail if line is not None else self._stderr_tail,
            "ports": self.endpoints.ports,
        }

    def close(self) -> None:
        """Give everything back, idempotently; clients get what libzmq can send within a second."""
        self.unlink()
        self.endpoints.close()
        self.record.remove()

    def leave(self) -> None:
        """Give everything back but the record, for a bridge process that follows this one."""
        if self.line is not None:
            self.line.close()
        self.endpoints.close()
        self.record.close()

    # -- what the line tells -----------------------------------------------------------------

    def _link_opened(self, opened: Opened) -> None:
        self._link_state = "open"
        if not self.hibernation.opened(opened):
            return
        event = {"event": "link_open", "kernel_id": self.kernel_id, "resumed": opened.resumed}
        self._publish(event)
        if self._resumed:
            self._resumed = False
            self.guest.call("status", {}, STATUS_TIMEOUT_S, self._learn_status)

    def _link_message(self, message: Message) -> None:
        if message.channel != Channel.RPC:
            self.relay.message(message)
            return
        try:
            self.guest.receive(message.parts)
        except Malformed as exc:
            self.counters.dropped[f"guest.{exc.reason}"] += 1
        self._finished(message)

    def _link_failed(self, reason: str) -> None:
        logger.warning("kernel %s: link failed: %s", self.kernel_id, reason)
        if self.hibernation.link_failed(reason):
            return
        self._link_state, self._link_error = "failed", reason
        self.endpoints.detach()
        self.guest.fail_calls("link", reason)
        event = {"event": "link_failed", "kernel_id": self.kernel_id, "message": reason}
        self._publish(event)

    # -- what guest, endpoints and reactor tell ------------------------------------------------

    def _guest_event(self, body: dict[str, Any]) -> None:
        kind = body["event"]
        if kind in ("failed", "exited"):
            self._begin_anew()
            self.hibernation.kernel_ended()
        elif kind == "dropped" and body.get("channel") in (Channel.SHELL, Channel.CONTROL):
            self.underway.clear()  # some of them will have no reply
        elif kind == "ready":
            self.underway.clear()
            self.activity.ready()
            if self.guest.iopub_welcome:
                self.endpoints.subscriptions.welcome_all()
        self.remember()
        self._publish({"event": "guest", "kernel_id": self.kernel_id, "body": body})

    def _finished(self, message: Message) -> None:
        """A message from the guest was handed to libzmq, or dropped for good."""
        if self.line is not None and not self.line.closed:
            handled = self.line.acknowledge(message)
            self.record.handled(message.channel, handled)

    def _marked(self, message: Message, handed_over: bool) -> None:
        """Write down how far a channel is; its messages are handed over in order."""
        if self.line is not None and not self.line.closed:
            self.record.handled(message.channel, message.seq + handed_over)

    def _beating(self) -> bool:
        """Whether a heartbeat should be echoed: the kernel is not known to be dead."""
        up = self._link_state in ("open", "opening") or self.hibernation.state is State.ASLEEP
        return up and not self.guest.dead

    def crashed(self, exc: Exception) -> None:
        """A callback of this kernel failed (our bug): its link goes down, others go on."""
        if self.line is not None:
            self.line.close()
        self._link_failed(f"internal error in the bridge: {exc!r:.200}")

    def __repr__(self) -> str:
        return f"kernel {self.kernel_id}"

    # -- the middle --------------------------------------------------------------------------

    def _begin_anew(self) -> None:
        """The kernel process is no more, or will be another one."""
        self.activity.starting()
        self.underway.clear()

    def _connect(self, fifos: Fifos, *, resume: bool) -> None:
        self._open_line(fifos, resume=resume)
        if self._resumed:
            recall(self, self.record.load_state(), busy=self.record.busy)
            self.endpoints.expect_clients(welcome=self.guest.iopub_welcome)
        assert self.line is not None
        self.endpoints.attach(self.line)

    def _open_line(self, fifos: Fifos, *, resume: bool, moved: bool = False) -> None:
        try:
            fifo = fifos.from_guest.stat()
            self._resumed = self.record.begin(fifo, resume=resume, moved=moved)
            remembered = self.record.remembered() if self._resumed else None
            events = LineEvents(
                self._link_opened, self._link_message, self._link_failed, self.endpoints.turn_over
            )
            self.line = Line(self._reactor, self, events, fifos, remembered)
        except OSError as exc:
            raise RequestError("fifo", f"cannot open the link: {exc}") from exc
        self._link_state, self._link_error = "opening", ""

    def _send_rpc(self, request: bytes) -> None:
        if self.line is not None and not self.line.closed:
            with contextlib.suppress(QueueFull):  # then the call times out
                self.line.send(Channel.RPC, [request])
            self.line.flush()

    def _learn_status(self, answer: dict[str, Any]) -> None:
        if "result" in answer:
            self.guest.learn_status(answer["result"])
            self.remember()
