"""Copies of one kernel process, made as a checkpoint would, and what they have in common."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FOLDER = str(Path(__file__).parents[3] / "images" / "guest" / "torpor_guest")
CLONES = 50
NO_NAMESPACES = 77
SYS_CLONE = {"x86_64": 56, "aarch64": 220}.get(platform.machine())
CLONE_NEWPID = 0x20000000
PR_SET_PDEATHSIG = 1
# How a kernel process is driven by a test: a line of Python in, a line of JSON out.


# Copies of one process


def run_here(*argv: str) -> Any:
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, *argv], stdout=subprocess.PIPE, env=env, timeout=60, check=False
    )
    if done.returncode == NO_NAMESPACES:
        pytest.skip("pid namespaces need root")
    assert done.returncode == 0
    return json.loads(done.stdout.splitlines()[-1])


def test_copies_are_alike_until_they_are_claimed() -> None:
    first, second = run_here("copies", "2", "unclaimed")
    assert first.pop("pid") == second.pop("pid") == 1
    assert first == second
    assert {"random", "numpy", "openssl", "sqlite3", "tempfile", "uuid1", "authkey"} <= set(first)


def test_claimed_copies_have_nothing_in_common() -> None:
    copies = run_here("copies", str(CLONES), "claimed")
    assert len(copies) == CLONES
    sources = set(run_here("copies", "1", "unclaimed")[0])
    assert sources == set(copies[0])
    for name in sources - {"pid"}:
        assert len({copy[name] for copy in copies}) == CLONES, name
    assert {copy["pid"] for copy in copies} == {1}


def test_a_kernel_gets_a_session_and_a_history_of_its_own(tmp_path: Path) -> None:
    before, after = run_here("kernel", str(tmp_path))
    assert before["session"] != after["session"]
    assert after["bsession"] == after["session"]
    assert after["msg_id"].startswith(after["session"])
    assert after["msg_id"].endswith("_0")
    assert after["msg_ids_of_output"] == [after["session"]]
    assert before["ident"] == after["ident"]
    assert (before["execution_count"], after["execution_count"]) == (1, 1)
    assert (before["history_session"], after["history_session"]) == (1, 2)
    assert [row[0] for row in after["rows"]] == [1, 2]
    ended, present = after["rows"]
    assert ended[2] is not None
    assert present[2] is None
    assert after["claimed_at"] <= present[1]
    assert after["inputs"] == [["", "1 + 1"], [[2, 1, "1 + 1"]]]
    assert after["dh"] == [str(tmp_path)]
    assert after["__session__"] == "/notebook.ipynb"
    assert after["synchronous"] == before["synchronous"]
    assert "ipykernel" in after["reseeded"]


# Below is what runs in the process that is copied


def _ask(do: str, **fields: Any) -> dict[str, Any]:
    """Ask this process itself, over a line as the guest's, and end the line."""
    import kernel_claim

    ours, theirs = socket.socketpair()
    with ours, ours.makefile("rb") as answers:
        kernel_claim.listen(theirs.detach())
        ours.sendall(json.dumps({"do": do, **fields}).encode() + b"\n")
        answer = json.loads(answers.readline())
    for thread in threading.enumerate():
        if thread.name == "torpor-claim":
            thread.join()
    assert answer["ok"], answer
    assert isinstance(answer, dict)
    return answer


def _sources() -> dict[str, Callable[[], object]]:
    """Give everything that draws something by chance."""
    import multiprocessing.synchronize
    import random
    import sqlite3
    import ssl
    import tempfile
    import uuid

    import numpy

    mine, seeded = random.Random(), random.Random(1)
    generators = [numpy.random.Generator(kind()) for kind in _bit_generators(numpy)]
    legacy = numpy.random.RandomState()
    sql = sqlite3.connect(":memory:")
    sources: dict[str, Callable[[], object]] = {
        "random": random.random,
        "getrandbits": lambda: random.getrandbits(128),
        "Random": mine.random,
        "Random(1)": seeded.random,
        "gauss": lambda: mine.gauss(0.0, 1.0),
        "numpy": numpy.random.rand,
        "randn": numpy.random.randn,
        "RandomState": legacy.rand,
        "RandomState.randn": legacy.randn,
        "openssl": lambda: ssl.RAND_bytes(16),
        "sqlite3": lambda: sql.execute("select hex(randomblob(16))").fetchone()[0],
        "tempfile": lambda: next(tempfile._get_candidate_names()),  # type: ignore[attr-defined]
        "SemLock": lambda: next(multiprocessing.synchronize.SemLock._rand),
        "uuid1": lambda: uuid.uuid1().node,
        "authkey": lambda: bytes(multiprocessing.current_process().authkey),
    }
    for generator in generators:
        name = type(generator.bit_generator).__name__
        sources[name] = generator.random
        sources[f"{name}.spawn"] = lambda g=generator: g.spawn(1)[0].random()  # type: ignore[misc]
    try:
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError:
        return sources
    # from the private generator of the OpenSSL inside of the wheel
    curve = ec.SECP256R1()
    sources["cryptography"] = lambda: ec.generate_private_key(curve).private_numbers().private_value
    return sources


def _bit_generators(numpy: Any) -> list[Any]:
    return [getattr(numpy.random, name) for name in ("PCG64", "MT19937", "Philox", "SFC64")]


def _values(sources: dict[str, Callable[[], object]]) -> dict[str, object]:
    drawn = {name: draw() for name, draw in sources.items()}
    return {"pid": os.getpid(), **{name: repr(value) for name, value in drawn.items()}}


def _bare_fork(libc: ctypes.CDLL) -> int:
    """Fork without a word to the C library: none of what is registered for forks is run."""
    pid = libc.syscall(SYS_CLONE, signal.SIGCHLD, 0, 0, 0, 0)
    assert isinstance(pid, int)
    assert pid >= 0
    return pid


def _copy(libc: ctypes.CDLL, work: Callable[[], object]) -> object:
    """Do ``work`` in a copy of this process that has its pid, 1, and give what comes out."""
    ours, theirs = os.pipe()
    between = _bare_fork(libc)
    if not between:
        if libc.unshare(CLONE_NEWPID):
            os._exit(NO_NAMESPACES)
        copy = _bare_fork(libc)
        if copy:
            os._exit(os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1]))
        try:
            os.write(theirs, json.dumps(work()).encode())
            os._exit(0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
    os.close(theirs)
    with open(ours, "rb") as pipe:
        content = pipe.read()
    assert os.waitpid(between, 0)[1] == 0
    return json.loads(content)


def _copies(count: int, claimed: bool) -> list[object]:
    libc = ctypes.CDLL(None)
    sources = _sources()
    _values(sources)  # everything is in use when it is copied; the pairs are used by half
    _ask("seal")
    _values(sources)
    sources["gauss"](), sources["RandomState.randn"](), sources["randn"]()
    deadline = time.monotonic() + 10
    while len(os.listdir("/proc/self/task")) != 1:
        assert time.monotonic() < deadline
        time.sleep(0.002)

    def work() -> object:
        if claimed:
            _ask("claim", cwd="/", last=True)
        return _values(sources)

    return [_copy(libc, work) for _ in range(count)]


def _in_a_pid_namespace(work: Callable[[], object]) -> int:
    """Print what ``work`` gives in a process that is the first one of a pid namespace."""
    libc = ctypes.CDLL(None)
    if SYS_CLONE is None or libc.unshare(CLONE_NEWPID):
        return NO_NAMESPACES
    template = os.fork()
    if template:
        return os.waitstatus_to_exitcode(os.waitpid(template, 0)[1])
    try:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        print(json.dumps(work()), flush=True)
        os._exit(0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)


def _kernel_values(app: Any) -> dict[str, object]:
    shell, session = app.kernel.shell, app.kernel.session
    history = shell.history_manager
    return {
        "session": session.session,
        "bsession": session.bsession.decode(),
        "ident": app.kernel.ident,
        "execution_count": shell.execution_count,
        "history_session": history.session_number,
        "synchronous": history.db.execute("PRAGMA synchronous").fetchone()[0],
    }


def _kernel(folder: str) -> list[object]:
    """Give what a real ipykernel has before and after it is claimed."""
    import datetime

    os.environ.update(IPYTHONDIR=folder, JUPYTER_RUNTIME_DIR=folder)
    from ipykernel.kernelapp import IPKernelApp

    app = IPKernelApp.instance(connection_file=f"{folder}/kernel.json", outstream_class=None)
    app.initialize(["--IPKernelApp.transport=ipc"])
    try:
        before = _kernel_values(app)
        _ask("seal")
        claimed_at = datetime.datetime.now().isoformat(" ")
        answer = _ask("claim", env={"JPY_SESSION_NAME": "/notebook.ipynb"}, cwd=folder, last=True)
        after = {**_kernel_values(app), "claimed_at": claimed_at, "reseeded": answer["reseeded"]}
        shell = app.kernel.shell
        after["msg_id"] = app.kernel.session.msg("status")["header"]["msg_id"]
        after["msg_ids_of_output"] = list(
            {shell.display_pub.session.session, shell.displayhook.session.session}
        )
        history = shell.history_manager
        rows = "SELECT session, cast(start AS text), end FROM sessions ORDER BY session"
        after["rows"] = [[row[0], row[1], row[2] and 1] for row in history.db.execute(rows)]
        history.store_inputs(1, "1 + 1")
        history.writeout_cache()
        written = history.db.execute("SELECT session, line, source FROM history").fetchall()
        after["inputs"] = [list(history.input_hist_raw), written]
        after["dh"] = [str(path) for path in shell.user_ns["_dh"]]
        after["__session__"] = shell.user_ns["__session__"]
        return [before, after]
    finally:
        app.close()


if __name__ == "__main__":
    sys.path[0] = FOLDER
    if sys.argv[1] == "copies":
        number, kind = int(sys.argv[2]), sys.argv[3]
        sys.exit(_in_a_pid_namespace(lambda: _copies(number, kind == "claimed")))
    print(json.dumps(_kernel(sys.argv[2])), flush=True)
    os._exit(0)  # not one word of IPython's at the end
