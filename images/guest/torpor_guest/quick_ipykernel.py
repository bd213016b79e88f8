"""Starts ipykernel 7 with fewer thread wake-ups per message. Runs in the user's Python, not in the guest's.

ipykernel hands every iopub message to a thread of its own; a flushed print even waits for two round
trips to it. In gVisor on few cores those wake-ups are most of the cost of output. Here the thread that
has a message sends it itself, under a lock that every use of the socket takes; the IOPub thread stays for
what arrives later, for forked children and for subscriptions. What clients see is the same messages in
the same order.

Two dangers, and what is done about them. An interrupt between the frames of one message would
join it to the next one: SIGINT is kept back until the message is out. A fork while another thread holds
the lock would leave the child locked for ever: forks take the lock first.

libzmq drops iopub messages beyond 1,000 that the guest has not yet fetched; the guest always fetches, so
the limit is lifted.

If this ipykernel is not as expected, it is started unchanged.
"""

import functools
import importlib
import os
import runpy
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

LAUNCHER = "ipykernel_launcher"
_MAJOR = "7"
_LIMIT_OF_LIBZMQ = 1000
# How often a subscriber is looked for: until the first one, the guest, is there, and from then on.
_SOON_S, _LATER_S = 0.02, 1.0


class Section:
    """A lock around the iopub socket that also keeps SIGINT back while the main thread holds it.

    ``interrupt`` is the handler of SIGINT: at once as Python's own, inside the section a note for its end.
    It is a partial whose function changes, because that leaves no frame of ours in the traceback of an
    interrupted cell, and because setting another handler for each message is four system calls.
    """

    def __init__(self) -> None:
        self.interrupt = functools.partial(signal.default_int_handler)
        self._lock = threading.RLock()
        self._depth = 0
        self._interrupted = False
        self._main = threading.main_thread().ident
        os.register_at_fork(
            before=lambda: self._lock.acquire(),
            after_in_parent=lambda: self._lock.release(),
            after_in_child=self._renew,
        )

    def _renew(self) -> None:
        self._lock = threading.RLock()
        self._main = threading.get_ident()
        self._depth = 0

    def _keep(self, signum: int, frame: FrameType | None) -> None:
        self._interrupted = True

    def _handle_with(self, handler: Callable[..., None]) -> None:
        self.interrupt.__setstate__((handler, (), {}, {}))  # type: ignore[attr-defined]

    def __enter__(self) -> None:
        if threading.get_ident() == self._main:
            if not self._depth:
                self._handle_with(self._keep)
            self._depth += 1
        self._lock.acquire()

    def __exit__(self, *exc_info: object) -> None:
        self._lock.release()
        if threading.get_ident() == self._main:
            self._depth -= 1
            if not self._depth:
                self._handle_with(signal.default_int_handler)
                if self._interrupted:
                    self._interrupted = False
                    raise KeyboardInterrupt


def speed_up() -> None:
    """Change the classes of ipykernel. Raises ImportError or AttributeError if it is another one."""
    import ipykernel._version
    import zmq
    from ipykernel import iostream, kernelapp

    kernelbase: Any = importlib.import_module("ipykernel.kernelbase")

    if ipykernel._version.__version__.split(".")[0] != _MAJOR:
        raise ImportError("another major version of ipykernel")
    section = Section()
    if kernelbase.default_int_handler is not signal.default_int_handler:
        raise AttributeError("somebody else handles SIGINT")
    thread = _thread_methods(section, iostream.IOPubThread, zmq)
    stream = _stream_methods(section, iostream.OutStream)
    init_iopub = _without_limit(kernelapp.IPKernelApp.init_iopub, zmq)
    kernelbase.default_int_handler = section.interrupt
    kernelapp.IPKernelApp.init_iopub = init_iopub  # type: ignore[method-assign]
    for cls, methods in ((iostream.IOPubThread, thread), (iostream.OutStream, stream)):
        for name, method in methods.items():
            setattr(cls, name, method)


def _thread_methods(section: Section, cls: Any, zmq: Any) -> dict[str, Callable[..., None]]:
    """Give the methods of IOPubThread: every use of the socket inside the section."""
    really_send = cls._really_send
    handle_subscription = cls._handle_subscription
    cls._setup_xpub_listener, cls.send_multipart  # noqa: B018 (AttributeError if they are gone)

    def look(self: Any) -> None:
        """Answer the subscriptions that have arrived; in the section."""
        socket = self.socket
        while socket is not None and not socket.closed:
            if not socket.getsockopt(zmq.EVENTS) & zmq.POLLIN:
                return
            handle_subscription(self, socket.recv_multipart(zmq.NOBLOCK))
            self._torpor_greeted = True

    def look_again(self: Any) -> None:
        # not by the socket's descriptor: each message sent from another thread would wake this one
        with section:
            look(self)
        greeted = getattr(self, "_torpor_greeted", False)
        self.io_loop.call_later(_LATER_S if greeted else _SOON_S, look_again, self)

    def _setup_xpub_listener(self: Any) -> None:
        if hasattr(self.socket, "getsockopt") and self.socket.getsockopt(zmq.TYPE) == zmq.XPUB:
            self.io_loop.call_later(_SOON_S, look_again, self)

    def _really_send(self: Any, msg: Any, *args: Any, **kwargs: Any) -> None:
        with section:
            if not hasattr(self, "_torpor_greeted") and hasattr(self.socket, "getsockopt"):
                look(self)  # the guest's welcome comes before the first message
            really_send(self, msg, *args, **kwargs)

    return {
        "_setup_xpub_listener": _setup_xpub_listener,
        "_really_send": _really_send,
        "send_multipart": _really_send,
    }


def _stream_methods(section: Section, cls: Any) -> dict[str, Callable[..., None]]:
    """Give the methods of OutStream: whoever flushes sends, and one timer serves many writes."""
    flush_now = cls._flush
    cls.flush, cls._schedule_flush, cls.flush_interval  # noqa: B018 (AttributeError if one is gone)

    def _flush(self: Any) -> None:
        with section:  # so that two threads cannot send what they took in the other order
            flush_now(self)

    def _schedule_flush(self: Any) -> None:
        # ipykernel forgets its timer at each flush, so that every flushed print wakes the thread
        if getattr(self, "_torpor_timer", False):
            return
        self._torpor_timer = True

        def due() -> None:
            self._torpor_timer = False
            self._flush()

        self.pub_thread.schedule(lambda: self._io_loop.call_later(self.flush_interval, due))

    return {"_flush": _flush, "flush": _flush, "_schedule_flush": _schedule_flush}


def _without_limit(init_iopub: Callable[..., None], zmq: Any) -> Callable[..., None]:
    def init(self: Any, context: Any) -> None:
        context.setsockopt(zmq.SNDHWM, 0)  # the default of sockets made from here on
        try:
            init_iopub(self, context)
        finally:
            context.setsockopt(zmq.SNDHWM, _LIMIT_OF_LIBZMQ)

    return init


def _listen() -> None:
    """Where this kernel is to be cloned, let the guest make it somebody's later."""
    fd = os.environ.pop("TORPOR_CLAIM_FD", None)
    if fd is not None:
        importlib.import_module("kernel_claim").listen(int(fd))


if __name__ == "__main__":
    _listen()
    if sys.path[0] == os.path.dirname(os.path.abspath(__file__)):  # not with -I or -P
        sys.path[0] = ""  # what ``python -m`` has there; our folder is the guest's, not the user's
    try:
        speed_up()
    except (ImportError, AttributeError) as error:
        print(f"ipykernel is started unchanged: {error}", file=sys.stderr)
    runpy.run_module(LAUNCHER, run_name="__main__", alter_sys=True)
