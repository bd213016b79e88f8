"""The catalogue of what lives in a kernel, and that all of it survives ten nights, by value.

Each entry is Python that runs once, and an expression that is to give the same after every night;
where there is None for what it gives, this process keeps what it gave before the first night. `ENDS`
brings to an end what the nights were in the middle of.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager

from tests.e2e.cells import run, value
from tests.e2e.sleeping import do, sandbox_pids
from tests.home import start, stop, torpor_home

pytestmark = [pytest.mark.runsc, pytest.mark.timeout(300)]

NIGHTS = [2, pytest.param(10, marks=pytest.mark.slow)]

CATALOGUE: dict[str, tuple[str, str, str | None]] = {
    "variables": (
        "a = {'x': [1, 2.5, 'ü'], 'self': None}; a['self'] = a",
        "a['self'] is a, a['x']",
        "(True, [1, 2.5, 'ü'])",
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
        "(lambda was: any(time.sleep(0.05) or counter[0] > was for _ in range(200)))(counter[0])",
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
        "lock.acquire(blocking=False), rlock._is_owned()",
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
def elsewhere():
    fresh = sqlite3.connect('/tmp/t.db'); rows = fresh.execute('select x from t').fetchall()
    fresh.close()
    return rows
""",
        "db.in_transaction, db.execute('select x from t').fetchall(), elsewhere()",
        "(True, [(42,)], [])",
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
        "asyncio.run_coroutine_threadsafe(after(), loop).result(30), pending.done()",
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
        """
import hashlib
import numpy as np
def digest(*parts):
    return hashlib.sha256(b'|'.join(bytes(part) for part in parts)).hexdigest()
rng = np.random.default_rng(1); m = rng.random((500, 500)); view = m[::2, 1:].T
def numbers_now():
    assert view.base is m and view.shape == (499, 250)
    return digest(m, view.tobytes(), str(rng.bit_generator.state).encode())
""",
        "numbers_now()",
        None,
    ),
    "a pool of processes": (
        """
import multiprocessing
def square(x):
    return x * x
def square_later(x, begun, go_on):
    result = square(x); open(begun, 'w').close()
    while not os.path.exists(go_on):
        time.sleep(0.01)
    return result
workers = multiprocessing.get_context('fork').Pool(2)
flights = []
def take_off():
    begun, go_on = f'/tmp/begun{len(flights)}', f'/tmp/go_on{len(flights)}'
    flights.append((workers.apply_async(square_later, (7, begun, go_on)), go_on))
    while not os.path.exists(begun):
        time.sleep(0.01)
def land():
    job, go_on = flights[-1]; was_ready = job.ready(); open(go_on, 'w').close()
    return was_ready, job.get(30)
take_off()
""",
        "workers.map_async(square, range(5)).get(30), land(), take_off()",
        "([0, 1, 4, 9, 16], (False, 49), None)",
    ),
    "an open zip archive": (
        """
import zipfile, io
buffer = io.BytesIO(); archive = zipfile.ZipFile(buffer, 'w', zipfile.ZIP_DEFLATED)
number = [0]
def added():
    archive.writestr(f'm{number[0]}', f'{number[0]} more ' * 3); number[0] += 1
    return len(archive.namelist()) - number[0]
def archived():
    archive.close()
    with zipfile.ZipFile(io.BytesIO(buffer.getvalue())) as closed:
        return {name: closed.read(name).decode() for name in closed.namelist()}
""",
        "added()",
        "0",
    ),
    "a matplotlib figure": (
        """
import matplotlib; matplotlib.use('agg')
import matplotlib.pyplot as plt
figure, axes = plt.subplots(); line, = axes.plot([1, 2, 3]); figure.canvas.draw()
def drawn():
    canvas = figure.canvas; kept = digest(canvas.buffer_rgba()); canvas.draw()
    assert len(np.unique(canvas.buffer_rgba())) > 2
    return kept, digest(canvas.buffer_rgba())
""",
        "drawn(), line.get_ydata().tolist()",
        None,
    ),
    "signals and handlers": (
        """
import signal
caught = []
signal.signal(signal.SIGUSR1, lambda *_: caught.append(1))
def kicked():
    caught.clear(); os.kill(os.getpid(), signal.SIGUSR1); until = time.monotonic() + 30
    while not caught and time.monotonic() < until:
        time.sleep(0.01)
    return caught
""",
        "kicked()",
        "[1]",
    ),
    # In a virtual environment pip refuses `--user`: the Python that it was made from runs its pip.
    "a wheel that pip installed with --user": (
        """
import sys, sysconfig
with zipfile.ZipFile('/tmp/mine_alone-1.5-py3-none-any.whl', 'w') as wheel:
    for name, text in {
        'mine_alone.py': 'value = 7',
        'mine_alone-1.5.dist-info/METADATA': 'Metadata-Version: 2.1\\nName: mine-alone\\nVersion: 1.5\\n',
        'mine_alone-1.5.dist-info/WHEEL':
            'Wheel-Version: 1.0\\nGenerator: us\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n',
        'mine_alone-1.5.dist-info/RECORD': 'mine_alone.py,,\\nmine_alone-1.5.dist-info/METADATA,,\\n'
            'mine_alone-1.5.dist-info/WHEEL,,\\nmine_alone-1.5.dist-info/RECORD,,\\n',
    }.items():
        wheel.writestr(name, text)
def python(*words, **environ):
    done = subprocess.run(
        [sys._base_executable, *words], env=os.environ | environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
python('-m', 'pip', 'install', '--user', '--no-index', '--no-deps', wheel.filename,
       PYTHONPATH=sysconfig.get_path('purelib'), PIP_BREAK_SYSTEM_PACKAGES='1')
ask = '''
import mine_alone, site
from importlib.metadata import version
print(mine_alone.value, version('mine-alone'), mine_alone.__file__.startswith(site.getusersitepackages()))
'''
""",
        "python('-c', ask)",
        "'7 1.5 True\\n'",
    ),
    "identity of the process": (
        "who = (os.getpid(), os.getppid(), socket.gethostname(), os.environ.get('HOME'), os.getcwd())",
        "who == (os.getpid(), os.getppid(), socket.gethostname(), os.environ['HOME'], os.getcwd())",
        "True",
    ),
}
# Each begins with the module that it needs.
OPTIONAL: dict[str, tuple[str, str, str, str | None]] = {
    "ipywidgets": (
        "ipywidgets",
        """
import ipywidgets
slider, slid = ipywidgets.IntSlider(value=3), []
slider.observe(lambda change: slid.append((change['old'], change['new'])), 'value')
def moved():
    slider.value += 1
    return slid[-1] == (slider.value - 1, slider.value), slider.value - len(slid)
""",
        "moved(), slider.comm is not None and not getattr(slider.comm, '_closed', False)",
        "((True, 3), True)",
    ),
    "pandas": (
        "pandas",
        """
import pandas as pd
frame = pd.DataFrame({'x': range(1000), 's': [f'ü{i % 7}' for i in range(1000)]})
frame['t'] = pd.Timestamp('2024-01-01') + pd.to_timedelta(frame.x, 'h'); grouped = frame.groupby('s')
""",
        "digest(frame.to_csv().encode(), grouped.x.sum().to_csv().encode())",
        None,
    ),
    "polars": (
        "polars",
        """
import polars as pl
table = pl.DataFrame({'x': list(range(1000)), 's': [f'ü{i % 7}' for i in range(1000)]})
lazy = table.lazy().group_by('s').sum().sort('s')
""",
        "digest(table.write_csv().encode(), lazy.collect().write_csv().encode())",
        None,
    ),
    "an open parquet writer": (
        "pyarrow",
        """
import pyarrow as pa, pyarrow.parquet as pq
schema = pa.schema([('x', pa.int64())]); writer = pq.ParquetWriter('/tmp/p.parquet', schema)
written = [0]
def append():
    writer.write_table(pa.table({'x': [written[0], written[0] ** 2]}, schema=schema))
    written[0] += 1
    return writer.is_open
def read_back():
    writer.close()
    return pq.ParquetFile('/tmp/p.parquet').num_row_groups, pq.read_table('/tmp/p.parquet').to_pydict()
""",
        "append()",
        "True",
    ),
}
# What an entry gives after the last night, by how often its expression ran before.
ENDS: dict[str, tuple[str, Callable[[int], object]]] = {
    "a thread that waits": ("bell.set(), waiter.join(30), heard", lambda _: (None, None, [True])),
    "a lock that is held": (
        "lock.release(), rlock.release(), lock.locked(), rlock._is_owned()",
        lambda _: (None, None, False, False),
    ),
    "a child process and its pipes": (
        "echoed(b'last'), child.kill(), child.wait(30)",
        lambda _: (b"last\n", None, -9),
    ),
    "a sqlite transaction": (
        "(db.execute('commit'), db.close(), elsewhere())[2]",
        lambda _: [(42,)],
    ),
    "a pool of processes": (
        "land(), workers.close(), workers.join()",
        lambda _: ((False, 49), None, None),
    ),
    "an open zip archive": (
        "archived()",
        lambda times: {f"m{i}": f"{i} more " * 3 for i in range(times)},
    ),
    "ipywidgets": ("slid", lambda times: [(3 + i, 4 + i) for i in range(times)]),
    "an open parquet writer": (
        "read_back()",
        lambda times: (times, {"x": [x for i in range(times) for x in (i, i**2)]}),
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
        error = run(kc, f"import {module}").error
        if error is None:
            entries[name] = (code, seen, wanted)
        elif os.environ.get("REQUIRE_RUNSC") == "1":
            pytest.fail(f"REQUIRE_RUNSC=1 and {module} of the extra `test` gives {error}")
    print("catalogue:", len(entries), "of", len(CATALOGUE) + len(OPTIONAL))
    for name, (code, _, _) in entries.items():
        ran = run(kc, code)
        assert ran.error is None, f"{name}: {ran.error}: {ran.reply.get('evalue')}"
    for name, (code, seen, wanted) in entries.items():
        if wanted is None:
            entries[name] = (code, seen, value(kc, seen))
    wrong = changed(kc, entries)
    assert not wrong, f"before any night: {wrong}"
    for night in range(1, nights + 1):
        do(km, "hibernate")
        assert sandbox_pids(home) == []
        wrong = changed(kc, entries)
        assert not wrong, f"after night {night}: {wrong}"
    for name, (end, given) in ENDS.items():
        if name in entries or name not in OPTIONAL:
            assert ast.literal_eval(value(kc, end)) == given(nights + 1), name


def changed(
    kc: BlockingKernelClient, entries: dict[str, tuple[str, str, str | None]]
) -> dict[str, str | None]:
    """Give what is not as it should be."""
    found = {}
    for name, (_, seen, wanted) in entries.items():
        ran = run(kc, seen)
        got = ran.result if ran.error is None else f"{ran.error}: {ran.reply.get('evalue')}"
        if got is None or got != wanted:
            found[name] = got
    return found
