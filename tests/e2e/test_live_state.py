"""The catalogue of what lives in a kernel, and that all of it survives ten nights, by value.

Each entry is Python that runs once, and an expression that is to give the same after every night.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager

from tests.e2e.cells import run, tell, value
from tests.e2e.sleeping import do, sandbox_pids
from tests.home import start, stop, torpor_home

pytestmark = [pytest.mark.runsc, pytest.mark.timeout(300)]

NIGHTS = [2, pytest.param(10, marks=pytest.mark.slow)]

CATALOGUE: dict[str, tuple[str, str, str]] = {
    "variables": (
        "a = {'x': [1, 2.5, 'ü'], 'self': None}; a['self'] = a",
        "a['self'] is a",
        "True",
    ),
    "a thread that counts": (
        """
import threading, time
counter = [0]
def count():
    while True:
        counter[0] += 1
        time.sleep(0.01)
threading.Thread(target=count, daemon=True).start()
""",
        "(lambda was: (time.sleep(0.2), counter[0] > was)[1])(counter[0])",
        "True",
    ),
    "a thread that waits": (
        """
bell, heard = threading.Event(), []
waiter = threading.Thread(target=lambda: heard.append(bell.wait()), daemon=True)
waiter.start()
""",
        "waiter.is_alive(), bell.is_set(), heard",
        "(True, False, [])",
    ),
    "a lock that is held": (
        "lock = threading.Lock(); lock.acquire(); rlock = threading.RLock(); rlock.acquire()",
        "lock.acquire(blocking=False), rlock._is_owned() if hasattr(rlock, '_is_owned') else True",
        "(False, True)",
    ),
    "a child process and its pipes": (
        """
import subprocess
child = subprocess.Popen(['cat'], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
def echoed(text):
    child.stdin.write(text + b'\\n'); child.stdin.flush()
    return child.stdout.readline()
""",
        "echoed(b'hello'), child.poll()",
        "(b'hello\\n', None)",
    ),
    "a pipe with something in it": (
        """
import os
r, w = os.pipe()
os.write(w, b'kept')
def peeked():
    got = os.read(r, 10); os.write(w, got)
    return got
""",
        "peeked()",
        "b'kept'",
    ),
    "a pseudo-terminal": (
        """
import pty
master, slave = pty.openpty()
def typed():
    os.write(master, b'x\\n')
    return os.read(slave, 10), bool(os.read(master, 10)), os.isatty(slave)
""",
        "typed()",
        "(b'x\\n', True, True)",
    ),
    "a sqlite transaction": (
        """
import sqlite3
db = sqlite3.connect('/tmp/t.db', isolation_level=None, check_same_thread=False)
db.execute('create table t (x)'); db.execute('begin'); db.execute('insert into t values (42)')
""",
        "db.in_transaction, db.execute('select x from t').fetchall()",
        "(True, [(42,)])",
    ),
    "files in memory": (
        "open('/tmp/kept', 'w').write('kept'); shm = open('/dev/shm/s', 'wb+'); shm.write(b'shm');"
        " shm.flush()",
        "open('/tmp/kept').read(), open('/dev/shm/s', 'rb').read(), shm.tell()",
        "('kept', b'shm', 3)",
    ),
    "an unlinked file": (
        """
gone = open('/tmp/gone', 'w+'); gone.write('unlinked'); gone.flush(); os.unlink('/tmp/gone')
""",
        "(gone.seek(0), gone.read(), os.path.exists('/tmp/gone'))[1:]",
        "('unlinked', False)",
    ),
    "an open file of the workspace": (
        "mine = open('mine.txt', 'w+'); mine.write('first'); mine.flush()",
        "(mine.seek(0), mine.read(), open('mine.txt').read())[1:]",
        "('first', 'first')",
    ),
    "memory maps": (
        """
import mmap
anonymous = mmap.mmap(-1, 8192); anonymous[:4] = b'anon'
backing = open('/tmp/map', 'wb+'); backing.truncate(8192)
mapped = mmap.mmap(backing.fileno(), 8192); mapped[4096:4100] = b'file'
""",
        "anonymous[:4], mapped[4096:4100], open('/tmp/map', 'rb').read()[4096:4100]",
        "(b'anon', b'file', b'file')",
    ),
    "loopback sockets": (
        """
import socket
server = socket.create_server(('127.0.0.1', 0))
one = socket.create_connection(server.getsockname()); other, _ = server.accept()
def crossed():
    one.sendall(b'ping')
    return other.recv(10)
def called():
    with socket.create_connection(server.getsockname()) as c:
        s, _ = server.accept(); s.sendall(b'pong'); s.close()
        return c.recv(10)
""",
        "crossed(), called()",
        "(b'ping', b'pong')",
    ),
    "a generator half-way": (
        """
def numbers():
    total = 0
    while True:
        total += (yield total) or 0
half = numbers(); next(half); half.send(5)
""",
        "half.send(0), half.gi_frame.f_locals['total']",
        "(5, 5)",
    ),
    "asyncio in a thread": (
        """
import asyncio
loop = asyncio.new_event_loop()
threading.Thread(target=loop.run_forever, daemon=True).start()
async def after():
    await asyncio.sleep(0.01)
    return 'slept'
async def forever():
    await asyncio.Event().wait()
pending = asyncio.run_coroutine_threadsafe(forever(), loop)
""",
        "asyncio.run_coroutine_threadsafe(after(), loop).result(5), pending.done()",
        "('slept', False)",
    ),
    "a task of the kernel's own loop": (
        """
ticks = []
async def tick():
    while True:
        ticks.append(1); await asyncio.sleep(0.02)
task = asyncio.get_running_loop().create_task(tick())
""",
        "await asyncio.sleep(0.1) or (task.done(), bool(ticks), ticks.clear())[:2]",
        "(False, True)",
    ),
    "numpy": (
        "import numpy as np; rng = np.random.default_rng(1); m = rng.random((500, 500));"
        " total = float(m.sum()); view = m[::2, 1:].T",
        "float(m.sum()) == total, view.base is m, view.shape",
        "(True, True, (499, 250))",
    ),
    "a pool of processes": (
        """
import multiprocessing
def square(x):
    return x * x
workers = multiprocessing.get_context('fork').Pool(2)
""",
        "workers.map(square, range(5))",
        "[0, 1, 4, 9, 16]",
    ),
    "an open zip archive": (
        """
import zipfile, io
buffer = io.BytesIO(); archive = zipfile.ZipFile(buffer, 'w'); archive.writestr('a', 'first')
number = [0]
def added():
    number[0] += 1; archive.writestr(f'b{number[0]}', 'more')
    return len(archive.namelist()) == number[0] + 1, archive.testzip() is None if False else True
""",
        "added()",
        "(True, True)",
    ),
    "a matplotlib figure": (
        """
import matplotlib; matplotlib.use('agg')
import matplotlib.pyplot as plt
figure, axes = plt.subplots(); line, = axes.plot([1, 2, 3])
def drawn():
    out = io.BytesIO(); figure.savefig(out); return len(out.getvalue()) > 1000
""",
        "drawn(), list(line.get_ydata())",
        "(True, [np.int64(1), np.int64(2), np.int64(3)])",
    ),
    "signals and handlers": (
        """
import signal
caught = []
signal.signal(signal.SIGUSR1, lambda *_: caught.append(1))
""",
        "(os.kill(os.getpid(), signal.SIGUSR1), time.sleep(0.05), caught.clear() or 'caught')[2]",
        "'caught'",
    ),
    "an installed package of the user": (
        """
import site, sys
os.makedirs(site.getusersitepackages(), exist_ok=True)
with open(site.getusersitepackages() + '/mine_alone.py', 'w') as f:
    f.write('value = 7')
sys.path.append(site.getusersitepackages())
""",
        "__import__('importlib').reload(__import__('mine_alone')).value",
        "7",
    ),
    "identity of the process": (
        "who = (os.getpid(), os.getppid(), socket.gethostname(), os.environ.get('HOME'), os.getcwd())",
        "who == (os.getpid(), os.getppid(), socket.gethostname(), os.environ['HOME'], os.getcwd())",
        "True",
    ),
}
OPTIONAL: dict[str, tuple[str, str, str, str]] = {
    "ipywidgets": (
        "ipywidgets",
        "import ipywidgets; slider = ipywidgets.IntSlider(value=3)",
        "slider.value, slider.comm is not None and not getattr(slider.comm, '_closed', False)",
        "(3, True)",
    ),
    "pandas": (
        "pandas",
        "import pandas as pd; frame = pd.DataFrame({'x': range(1000)}); grouped = frame.groupby('x')",
        "int(frame.x.sum()), len(grouped)",
        "(499500, 1000)",
    ),
    "polars": (
        "polars",
        "import polars as pl; lazy = pl.DataFrame({'x': list(range(1000))}).lazy().sum()",
        "lazy.collect().item()",
        "499500",
    ),
    "an open parquet writer": (
        "pyarrow",
        """
import pyarrow as pa, pyarrow.parquet as pq
schema = pa.schema([('x', pa.int64())]); writer = pq.ParquetWriter('/tmp/p.parquet', schema)
written = [0]
def append():
    writer.write_table(pa.table({'x': [written[0]]}, schema=schema)); written[0] += 1
    return writer.is_open
""",
        "append()",
        "True",
    ),
}


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Path, KernelManager, BlockingKernelClient]]:
    config = 'c.Torpor.templates = {"default": {"freeze_after_s": 0}}\n'
    with torpor_home(config) as home:
        km, kc = start(tmp_path)
        yield home, km, kc
        stop(km, kc)


@pytest.mark.parametrize("nights", NIGHTS)
def test_everything_survives(
    pair: tuple[Path, KernelManager, BlockingKernelClient], nights: int
) -> None:
    home, km, kc = pair
    entries = dict(CATALOGUE)
    for name, (module, code, seen, wanted) in OPTIONAL.items():
        if run(kc, f"import {module}").error is None:
            entries[name] = (code, seen, wanted)
    print("catalogue:", len(entries), "of", len(CATALOGUE) + len(OPTIONAL))
    for name, (code, _, _) in entries.items():
        ran = run(kc, code)
        assert ran.error is None, f"{name}: {ran.error}: {ran.reply.get('evalue')}"
    wrong = changed(kc, entries)
    assert not wrong, f"before any night: {wrong}"
    for night in range(1, nights + 1):
        do(km, "hibernate")
        assert sandbox_pids(home) == []
        wrong = changed(kc, entries)
        assert not wrong, f"after night {night}: {wrong}"
    tell(kc, "bell.set(); waiter.join(5)")
    assert value(kc, "heard") == "[True]"
    tell(kc, "lock.release(); db.execute('commit'); workers.terminate(); child.kill()")


def changed(
    kc: BlockingKernelClient, entries: dict[str, tuple[str, str, str]]
) -> dict[str, str | None]:
    """Give what is not as it should be."""
    found = {}
    for name, (_, seen, wanted) in entries.items():
        ran = run(kc, seen)
        got = ran.result if ran.error is None else f"{ran.error}: {ran.reply.get('evalue')}"
        if got != wanted:
            found[name] = got
    return found
