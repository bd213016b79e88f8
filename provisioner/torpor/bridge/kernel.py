"""One kernel's bridge: five endpoints on one side, a line to its guest on the other.

The endpoints stay bound from ``open`` to ``close``, whatever happens to sandbox, guest and link.
Messages from the guest are shape-checked, signed with the clients' key and handed to libzmq;
messages from clients are verified and signed with the guest's key (``inlet``).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import zmq

from torpor.bridge.activity import Activity
from torpor.bridge.counters import Counters
from torpor.bridge.endpoints import Endpoints, Keys
from torpor.bridge.guest import Answer, Guest
from torpor.bridge.inflight import InFlight
from torpor.bridge.line import Line, LineEvents
from torpor.bridge.messages import Malformed, iso_time, message_type, split_message
from torpor.bridge.outlet import Shared
from torpor.bridge.protocol import Fifos, OpenRequest, RequestError
from torpor.bridge.reactor import Reactor
from torpor.bridge.record import Record
from torpor.bridge.signing import Signer
from torpor.bridge.sockets import Socket
from torpor.link import Channel, Message, Opened, QueueFull

RESUME_SUBSCRIBERS_S = 3.0
RESUME_CLIENTS_S = 2.0
STATUS_TIMEOUT_S = 10.0

logger = logging.getLogger(__name__)


class KernelEvents(Protocol):
    """Who is told about a kernel: the control connections."""

    def publish(self, event: dict[str, Any]) -> None: ...


class Kernel:
    """Everything the bridge holds for one kernel."""

    def __init__(
        self,
        reactor: Reactor,
        context: zmq.Context[Socket],
        events: KernelEvents,
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
        self._events = events
        self._counters = Counters()
        self._activity = Activity()
        self._signer = Signer(request.client.key, request.client.signature_scheme)
        self._line: Line | None = None
        self._link_state, self._link_error = "closed", ""
        self._stderr_tail = ""
        self._resumed = False
        keys = Keys(self._signer, Signer(request.guest_key))
        with contextlib.ExitStack() as undo:
            self._record = Record(folder, request.kernel_id)
            undo.callback(self._record.close if request.resume else self._record.remove)
            self.guest = Guest(reactor, self, self._guest_event, self._send_rpc)
            shared = Shared(reactor, self, self._counters, InFlight(), self._finished, self._marked)
            self.endpoints = Endpoints(
                shared, context, request.client, keys, self._record, self._beating
            )
            undo.callback(self.endpoints.close)
            undo.callback(self.unlink)
            self._connect(request.fifos, resume=request.resume)
            undo.pop_all()

    # -- what the server asks for ------------------------------------------------------------

    def relink(self, fifos: Fifos) -> None:
        """Talk to a new sandbox through the same endpoints.

        Raises:
            RequestError: ``fifo``; the endpoints stay, without a link.
        """
        self.unlink()
        self._connect(fifos, resume=False)

    def unlink(self) -> None:
        """Give up the link; clients' messages wait in their sockets. Idempotent."""
        if self._line is not None:
            self._stderr_tail = self._line.stderr_tail
            self._line.close()
            self._line = None
        self.endpoints.detach()
        self._link_state, self._link_error = "closed", ""
        self.guest.forget()
        self._activity.starting()

    def call(
        self, method: str, params: Mapping[str, Any], timeout_s: float, answer: Answer
    ) -> None:
        """Call the guest; see ``Guest.call``."""
        if self._line is None or self._line.closed:
            reason = self._link_error or "there is no sandbox"
            answer({"error": {"code": "link", "message": f"no link to the guest: {reason}"}})
            return
        if method in ("start", "restart"):
            self._activity.starting()
        self.guest.call(method, params, timeout_s, answer)

    def status(self) -> dict[str, Any]:
        """Give the answer to ``status`` (shape: see the contract in ``protocol``)."""
        line = self._line
        return {
            "link": self._link_state,
            "link_error": self._link_error or None,
            **self.guest.to_json(),
            "execution_state": self._activity.state,
            "last_activity": iso_time(self._activity.last_s),
            "counters": self._counters.to_json(),
            "guest_stderr": line.stderr_tail if line is not None else self._stderr_tail,
            "ports": self.endpoints.ports,
        }

    def close(self) -> None:
        """Give everything back, idempotently; clients get what libzmq can send within a second."""
        self.unlink()
        self.endpoints.close()
        self._record.remove()

    def leave(self) -> None:
        """Give everything back but the record, for a bridge process that follows this one."""
        if self._line is not None:
            self._line.close()
        self.endpoints.close()
        self._record.close()

    # -- what the line tells -----------------------------------------------------------------

    def _link_opened(self, opened: Opened) -> None:
        self._link_state = "open"
        event = {"event": "link_open", "kernel_id": self.kernel_id, "resumed": opened.resumed}
        self._events.publish(event)
        if self._resumed:
            self._resumed = False
            self.guest.call("status", {}, STATUS_TIMEOUT_S, self._learn_status)

    def _link_message(self, message: Message) -> None:
        try:
            if message.channel == Channel.RPC:
                self.guest.receive(message.parts)
                self._finished(message)
            else:
                self._to_clients(message)
        except Malformed as exc:
            self._counters.dropped[f"guest.{exc.reason}"] += 1
            outlet = self.endpoints.outlets.get(message.channel)
            if outlet is None:
                self._finished(message)
            else:
                outlet.skip(message)

    def _link_failed(self, reason: str) -> None:
        logger.warning("kernel %s: link failed: %s", self.kernel_id, reason)
        self._link_state, self._link_error = "failed", reason
        self.endpoints.detach()
        self.guest.fail_calls("link", reason)
        event = {"event": "link_failed", "kernel_id": self.kernel_id, "message": reason}
        self._events.publish(event)

    # -- what guest, endpoints and reactor tell ------------------------------------------------

    def _guest_event(self, body: dict[str, Any]) -> None:
        kind = body["event"]
        if kind in ("failed", "exited"):
            self._activity.starting()
        elif kind == "ready":
            self._activity.ready()
            if self.guest.iopub_welcome:
                self.endpoints.subscriptions.welcome_all()
        self._save_state()
        self._events.publish({"event": "guest", "kernel_id": self.kernel_id, "body": body})

    def _finished(self, message: Message) -> None:
        """A message from the guest was handed to libzmq, or dropped for good."""
        if self._line is not None and not self._line.closed:
            handled = self._line.acknowledge(message)
            self._record.handled(message.channel, handled)

    def _marked(self, message: Message, handed_over: bool) -> None:
        """Write down how far a channel is; its messages are handed over in order."""
        if self._line is not None and not self._line.closed:
            self._record.handled(message.channel, message.seq + handed_over)

    def _beating(self) -> bool:
        """Whether a heartbeat should be echoed: the kernel is not known to be dead."""
        return not self.guest.dead and self._link_state in ("open", "opening")

    def crashed(self, exc: Exception) -> None:
        """A callback of this kernel failed (our bug): its link goes down, others go on."""
        if self._line is not None:
            self._line.close()
        self._link_failed(f"internal error in the bridge: {exc!r:.200}")

    def __repr__(self) -> str:
        return f"kernel {self.kernel_id}"

    # -- the middle --------------------------------------------------------------------------

    def _to_clients(self, message: Message) -> None:
        parts = message.parts
        cut = split_message(parts)
        body = parts[cut + 2 : cut + 6]
        kind = message_type(body)
        channel = message.channel
        if channel == Channel.IOPUB:
            self._activity.observe(kind, body)
            self._record.busy = self._activity.state == "busy"
        elif cut == 0:
            raise Malformed("no_identity")
        self._counters.from_guest += 1
        self._counters.from_guest_bytes += sum(map(len, parts))
        signed = [*parts[: cut + 1], self._signer.sign(body), *parts[cut + 2 :]]
        self.endpoints.touched.add(channel)
        self.endpoints.outlets[channel].offer(signed, message)

    def _connect(self, fifos: Fifos, *, resume: bool) -> None:
        try:
            self._resumed = self._record.begin(fifos.from_guest.stat(), resume=resume)
            remembered = self._record.remembered() if self._resumed else None
            events = LineEvents(
                self._link_opened, self._link_message, self._link_failed, self.endpoints.turn_over
            )
            self._line = Line(self._reactor, self, events, fifos, remembered)
        except OSError as exc:
            raise RequestError("fifo", f"cannot open the link: {exc}") from exc
        self._link_state, self._link_error = "opening", ""
        if self._resumed:
            self.guest.load(self._record.load_state())
            self._activity.resumed(busy=self._record.busy, known=self.guest.state == "ready")
            if self.guest.iopub_welcome:
                self.endpoints.subscriptions.welcome_all()
            expected = self._record.subscribers
            self.endpoints.expect_clients(expected, RESUME_SUBSCRIBERS_S, RESUME_CLIENTS_S)
        self.endpoints.attach(self._line)

    def _send_rpc(self, request: bytes) -> None:
        if self._line is not None and not self._line.closed:
            with contextlib.suppress(QueueFull):  # then the call times out
                self._line.send(Channel.RPC, [request])
            self._line.flush()

    def _learn_status(self, answer: dict[str, Any]) -> None:
        if "result" in answer:
            self.guest.learn_status(answer["result"])
            self._save_state()

    def _save_state(self) -> None:
        with contextlib.suppress(OSError):  # a full disk must not stop the kernel
            self._record.save_state(self.guest.to_json())
