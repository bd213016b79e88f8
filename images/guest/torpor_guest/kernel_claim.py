"""Makes a copy of a checkpointed kernel process somebody's kernel, when the guest says so.

Runs in the user's Python, in the process that becomes the kernel. One thread answers the guest on an
inherited socket, one line of JSON for each: ``ping``; ``seen``, the files the process depends on; ``seal``,
the last thing before the checkpoint; ``rehearse``, in a copy that waits; ``claim``, which gives a copy its
environment, its working folder and randomness of its own. What is renewed, and what no claim can make
different, is in ``kernel_reseed``.

Code that the user starts must not reach the guest this way: the socket is closed on exec and in forked
children, and for good after the last claim.

What was read when a module was loaded (``HOME`` by IPython, ``LANG``, ``OMP_NUM_THREADS``, ``PYTHON*``,
``MPLBACKEND``) stays as it was at the checkpoint, whatever the claim puts into the environment.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

if TYPE_CHECKING or __package__:
    from torpor_guest import kernel_reseed
else:
    import kernel_reseed  # ``quick_ipykernel`` is run as a file: its folder is no package there

_READ_BYTES = 65536
# What a fault in the thread itself raises. Everything else is for the main thread.
_FAULTS = {
    signal.SIGABRT,
    signal.SIGBUS,
    signal.SIGFPE,
    signal.SIGILL,
    signal.SIGSEGV,
    signal.SIGTRAP,
}
_SOURCES = kernel_reseed.Sources()
_started_with: dict[str, str] = {}  # the environment, before the kernel changed anything in it
_renewed: list[str] | None = None  # what a rehearsal in this very copy has renewed


def listen(fd: int) -> None:
    """Answer the guest on the stream socket ``fd`` from now on, in a daemon thread. Takes ``fd`` over.

    The thread ends, and ``fd`` is closed, when the guest has gone or after a claim that is the last.
    """
    _started_with.update(os.environ)
    line = _Line(fd)
    thread = threading.Thread(target=_serve, args=(line,), name="torpor-claim", daemon=True)
    # a thread starts with its starter's mask: not one signal of the main thread can get lost in ours
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _FAULTS)
    try:
        thread.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Line:
    """The socket to the guest. Closed once, by the thread that reads it or in a forked child."""

    def __init__(self, fd: int) -> None:
        os.set_inheritable(fd, False)
        os.set_blocking(fd, True)
        self._fd = fd
        # a fork while the thread closes must not leave the child the socket, or close what has its number
        self._closing = threading.Lock()
        os.register_at_fork(
            before=self._closing.acquire,
            after_in_parent=self._closing.release,
            after_in_child=self._forget,
        )

    def _forget(self) -> None:
        self._closing.release()
        self.close()

    def close(self) -> None:
        with self._closing:
            fd, self._fd = self._fd, -1
            if fd >= 0:
                os.close(fd)

    def read(self) -> Iterator[bytes]:
        """Give what the guest says, line by line, until it has gone."""
        kept = b""
        while True:
            chunk = os.read(self._fd, _READ_BYTES)
            if not chunk:
                return
            *lines, kept = (kept + chunk).split(b"\n")
            yield from lines

    def write(self, content: bytes) -> None:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(self._fd, rest) :]


def _serve(line: _Line) -> None:
    try:
        for text in line.read():
            answer, last = _answer(text)
            line.write(json.dumps(answer).encode() + b"\n")
            if last:
                return
    except OSError:
        pass  # the guest has gone in the middle of a line
    finally:
        line.close()


def _answer(text: bytes) -> tuple[dict[str, Any], bool]:
    """Give the answer to one request, and whether nothing may be asked after it."""
    try:
        request = json.loads(text)
        if not isinstance(request, dict) or request.get("do") not in _REQUESTS:
            raise ValueError(f"a request is an object with a 'do' of {', '.join(_REQUESTS)}")
        answer = _REQUESTS[request["do"]](request)
    except Exception as error:  # whatever it is, the guest has to hear of it
        return {"ok": False, "error": f"{type(error).__name__}: {error}"}, False
    return {"ok": True, **answer}, request["do"] == "claim" and request.get("last") is True


def _ping(request: dict[str, Any]) -> dict[str, Any]:
    return {}


def _seen(request: dict[str, Any]) -> dict[str, Any]:
    """Give the existing files and import folders that this process depends on, as absolute paths."""
    named = [*sys.path, *_module_paths(), *kernel_reseed.mapped_files()]  # sys.path: archives
    paths = {path for path in named if isinstance(path, str) and os.path.isabs(path)}
    folders = {path for path in sys.path if isinstance(path, str) and path in paths}
    return {
        "files": sorted(path for path in paths if os.path.isfile(path)),
        "folders": sorted(path for path in folders if os.path.isdir(path)),
    }


def _module_paths() -> Iterator[Any]:
    for module in list(sys.modules.values()):
        try:  # no plain look: it would load a module that waits for its first use
            names = object.__getattribute__(module, "__dict__")
        except AttributeError:
            continue
        spec = names.get("__spec__")
        yield from (names.get("__file__"), names.get("__cached__"))
        yield from (getattr(spec, "origin", None), getattr(spec, "cached", None))


def _seal(request: dict[str, Any]) -> dict[str, Any]:
    """Do now what the claims would have to do, and leave little for the checkpoint. Twice is fine.

    After an error the process must not be checkpointed: each claim would fail in the same way.
    """
    _SOURCES.record()
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        if stream is not None and not stream.closed:
            stream.flush()
    gc.collect()
    trim = kernel_reseed.function_in(None, "malloc_trim")
    if trim is not None:
        trim(0)
    return {}


def _rehearse(request: dict[str, Any]) -> dict[str, Any]:
    """Do in a copy that waits what its claim would: its randomness is its own from here on.

    The first touch of restored memory is slow, so that everything is done that a claim does. Twice is
    fine. After an error the copy must be thrown away.
    """
    global _renewed
    _renewed = _SOURCES.renew()
    os.chdir(os.getcwd())
    os.environ["TORPOR_REHEARSAL"] = "1"
    del os.environ["TORPOR_REHEARSAL"]
    _SOURCES.settle()
    return {"reseeded": _renewed}


def _claim(request: dict[str, Any]) -> dict[str, Any]:
    """Make this copy a kernel of its own: environment, working folder, randomness.

    After a ValueError or an OSError of the working folder nothing was changed. After a RuntimeError, which
    names what could not be renewed, the copy must be thrown away.
    """
    started = time.perf_counter()
    env, unset, cwd = _parse_claim(request)
    os.chdir(cwd)
    # what the kernel has set for itself, as ipykernel does with TERM and PAGER, it would set again
    own = {name for name in os.environ if os.environ[name] != _started_with.get(name)}
    touched = {*unset, *(env.keys() - own)}
    for name in unset:
        os.environ.pop(name, None)
    for name in env.keys() - own:
        os.environ[name] = env[name]
    if "TZ" in touched:
        time.tzset()
    reseeded = _SOURCES.renew() if _renewed is None else _renewed
    _SOURCES.settle()
    tempfile: Any = sys.modules.get("tempfile")
    if tempfile is not None and touched & {"TMPDIR", "TEMP", "TMP"}:
        tempfile.tempdir = None
    return {"seconds": time.perf_counter() - started, "reseeded": reseeded}


def _parse_claim(request: dict[str, Any]) -> tuple[dict[str, str], list[str], str]:
    """Give env, unset and cwd, all of which can be set. Raises ValueError, which never has a value in it."""
    env, unset, cwd = request.get("env", {}), request.get("unset", []), request.get("cwd")
    if not isinstance(env, dict) or not isinstance(unset, list):
        raise ValueError("env is an object, unset a list")
    if not isinstance(cwd, str) or not os.path.isabs(cwd) or "\0" in cwd:
        raise ValueError(f"cwd is an absolute path, not {cwd!r}")
    if not isinstance(request.get("last", False), bool):
        raise ValueError("last is true or false")
    for name in (*env, *unset):
        if not isinstance(name, str) or not name or "=" in name or not _fits(name):
            raise ValueError(f"{name!r} cannot be the name of a variable")
    for name, value in env.items():
        if not isinstance(value, str) or not _fits(value):
            raise ValueError(f"the value of {name} cannot be in an environment")
    return env, unset, cwd


def _fits(text: str) -> bool:
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


_REQUESTS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "ping": _ping,
    "seen": _seen,
    "seal": _seal,
    "rehearse": _rehearse,
    "claim": _claim,
}
