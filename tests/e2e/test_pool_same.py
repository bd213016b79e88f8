"""A kernel that was claimed is like one that was started cold: what it sees, what it is, what it can do."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager

from tests.e2e.cells import run, value
from tests.e2e.pool_home import (
    PoolHome,
    claimed,
    kernel,
    pool_home,
    start_of,
    state_of,
    told,
    warm,
)
from tests.e2e.test_features import (  # noqa: F401 - collected here, too: for claimed kernels
    test_completion_inspection_history,
    test_debugger_attaches_and_stops_at_a_breakpoint,
    test_input,
    test_interrupt,
    test_interrupt_by_message,
    test_ipywidgets_comms_both_ways,
    test_matplotlib_inline_sends_a_png,
    test_multiprocessing_pool,
    test_the_kernel_is_inside_gvisor,
    test_threads_print_at_the_same_time_each_in_its_order,
)

Pair = tuple[KernelManager, BlockingKernelClient]

pytestmark = [pytest.mark.runsc, pytest.mark.timeout(180)]

CONFIG = 'c.Torpor.templates = {"cold": {"pool_most": 0}}\n'
ENV = {
    "EMPTY": "",
    "JPY_SESSION_NAME": "/a folder/ä notebook.ipynb",
    "ODD": "two\nlines, a = and ünïcode 日本",
    "PATH": "/opt/mine/bin:/usr/bin:/bin",
    "TZ": "Asia/Tokyo",
}
HIDDEN = "re.sub('[0-9a-f]{{16}}', '#', {})"

ASPECTS = {
    "affinity": "[sorted(os.sched_getaffinity(0)), os.cpu_count()]",
    "argv": HIDDEN.format("' '.join(sys.argv)"),
    "capabilities": "[l for l in open('/proc/self/status') if l.startswith(('Cap', 'NoNew', 'Sec'))]",
    "capabilities of process 1": (
        "[l for l in open('/proc/1/status') if l.startswith(('Cap', 'NoNew', 'Sec'))]"
    ),
    "comms": "list(shell.kernel.comm_manager.comms)",
    "descriptors": "sorted(re.sub(r'\\d+', '#', path) for path in open_files())",
    "devices": "sorted(os.listdir('/dev'))",
    "directory history": "[str(each) for each in shell.user_ns['_dh']]",
    "files": "sorted(os.listdir())",
    "history": (
        "[list(shell.history_manager.get_range(0))[:3], shell.user_ns['In'][:3],"
        " sorted(shell.user_ns['Out'])]"
    ),
    "identity": (
        "[os.getuid(), os.getgid(), os.getgroups(), os.getppid(), os.getpgid(0) == os.getpid(),"
        " os.getsid(0) == os.getpid(), os.umask(0o22), os.path.expanduser('~'), getpass.getuser()]"
    ),
    "import path": "sys.path",
    "interpreter": "[sys.executable, sys.prefix, sys.base_prefix, sys.version, str(sys.flags)]",
    "last error": "[hasattr(sys, f'last_{each}') for each in ('type', 'value', 'traceback')]",
    "limits": (
        "{each: resource.getrlimit(getattr(resource, each))"
        " for each in dir(resource) if each.startswith('RLIMIT_')}"
    ),
    "locale": "[locale.getlocale(), sys.getfilesystemencoding(), sys.stdout.encoding]",
    "loopback": (
        "(lambda s: [socket.create_connection(s.getsockname()).close(), s.close()])"
        "(socket.create_server(('127.0.0.1', 0)))"
    ),
    # but for what covers the place where clones have their workspace first
    "mounts": (
        "sorted(__import__('re').sub('fdno=[0-9]+', '', line)"
        " for line in open('/proc/self/mounts') if '/run/torpor' not in line)"
    ),
    "name of the machine resolves": "socket.gethostbyname(socket.gethostname())",
    "places in /": "sorted(os.listdir('/'))",
    "private /tmp": HIDDEN.format("' '.join(sorted(os.listdir('/tmp')))"),
    "processes": (
        "sorted(open(f'/proc/{each}/cmdline').read().split('\\0')[0]"
        " for each in os.listdir('/proc') if each.isdigit())"
    ),
    "shared memory": "os.listdir('/dev/shm')",
    "signal handlers": (
        "[re.sub(' at 0x.*', '', str(signal.getsignal(each)))"
        " for each in sorted(signal.valid_signals())]"
    ),
    "signal mask": "sorted(signal.pthread_sigmask(signal.SIG_BLOCK, []))",
    "starting folder": "[os.getcwd(), shell.starting_dir]",
    "temporary folder": "tempfile.gettempdir()",
    "threads": "sorted(each.name for each in threading.enumerate())",
    "time zone": "[time.tzname, time.strftime('%z'), str(datetime.datetime(2026, 1, 1).astimezone())]",
    "tracing": "[str(sys.gettrace()), str(sys.getprofile()), sys.getswitchinterval()]",
    "variables": (
        "{k: v for k, v in os.environ.items()"
        " if k not in ('TERM', 'PAGER', 'GIT_PAGER', 'CLICOLOR', 'FORCE_COLOR', 'CLICOLOR_FORCE')}"
    ),
}
LOOK = """
def _look(shell):
    import datetime, getpass, json, locale, os, re, resource, signal, socket, sys, tempfile, threading, time
    def each(aspect):
        try:
            return eval(aspect, {**locals(), **globals(), 'shell': shell, **names})
        except Exception as error:
            return f'{type(error).__name__}: {error}'
    def open_files():
        for fd in os.listdir('/proc/self/fd'):
            try:
                path = os.readlink('/proc/self/fd/' + fd)
            except FileNotFoundError:
                continue
            # IPython's history is written by a thread, whenever it likes: a journal, and its folder for fsync
            if '-journal' not in path and not path.endswith('/profile_default'):
                yield path
    names = {k: v for k, v in locals().items() if type(v) is type(os) or v is open_files}
    print(json.dumps({name: each(code) for name, code in ASPECTS.items()}, default=str))
"""


@dataclass(frozen=True)
class Seen:
    """What the first cells of a kernel gave."""

    names: str
    first: dict[str, Any]
    listed: str
    aspects: dict[str, Any]
    clock_off_s: float


def look_around(kc: BlockingKernelClient) -> Seen:
    first = run(kc, "dir()")
    listed = run(kc, "%history").stdout + run(kc, "%who").stdout
    before = time.time()
    clock = float(value(kc, "__import__('time').time()"))
    off_s = max(before - clock, clock - time.time(), 0)  # the way there and back may take long
    code = f"ASPECTS = {ASPECTS!r}\n{LOOK}\n_look(get_ipython())"
    ran = run(kc, code)
    assert ran.error is None, ran.reply
    return Seen(str(first.result), first.reply, listed, json.loads(ran.stdout), off_s)


@pytest.fixture(scope="module")
def home() -> Iterator[PoolHome]:
    """A home with a pool, and a kernel that is never served from it."""
    with pool_home(CONFIG) as made:
        made.spec("cold", template="cold")
        yield made


@pytest.fixture(scope="module")
def ws(home: PoolHome, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace for which clones wait."""
    folder = tmp_path_factory.mktemp("ws")
    (folder / "sub").mkdir()
    (folder / "a.txt").write_text("from the host")
    warm(home, folder)
    return folder


@pytest.fixture(autouse=True)
def clean_world(home: PoolHome) -> Iterator[None]:
    """After each test nothing is left that was not there before, but what is the pool's."""
    before = home.kernels()
    yield
    home.wait_settled(before)


@pytest.fixture(scope="module")
def twins(home: PoolHome, ws: Path) -> tuple[Seen, Seen]:
    """What a claimed and a cold kernel look like, started in the same way."""
    env = {**os.environ, **ENV}
    with claimed(home, ws, env=env) as (_, kc):
        warm_one = look_around(kc)
    with kernel(ws, how="created", kernel_name="cold", env=env) as (_, kc):
        cold_one = look_around(kc)
    return warm_one, cold_one


@pytest.fixture
def pair(home: PoolHome, ws: Path) -> Iterator[Pair]:
    """A claimed kernel of a test's own."""
    with claimed(home, ws) as started:
        yield started


@pytest.mark.parametrize("aspect", sorted(ASPECTS))
def test_claimed_and_cold_are_alike(twins: tuple[Seen, Seen], aspect: str) -> None:
    warm_one, cold_one = (each.aspects[aspect] for each in twins)
    assert warm_one == cold_one


def test_the_first_cell_is_the_first(twins: tuple[Seen, Seen]) -> None:
    for seen in twins:
        assert seen.first["execution_count"] == 1
    assert twins[0].names == twins[1].names
    assert twins[0].listed == twins[1].listed
    assert "dir()" in twins[0].listed


def test_the_clock_is_right(twins: tuple[Seen, Seen]) -> None:
    for seen in twins:
        assert abs(seen.clock_off_s) < 1


def test_nobody_has_a_capability(twins: tuple[Seen, Seen]) -> None:
    for who in ("capabilities", "capabilities of process 1"):
        lines = twins[0].aspects[who]
        rights = [line.split()[1] for line in lines if line.startswith("Cap")]
        assert len(rights) == 5, lines
        assert {int(each, 16) for each in rights} == {0}


def test_what_ipykernel_sets_for_itself_is_so_in_a_claimed_kernel(home: PoolHome, ws: Path) -> None:
    names = ("TERM", "PAGER", "GIT_PAGER", "CLICOLOR")
    code = f"import os; [os.environ.get(each) for each in {names}]"
    env = {**os.environ, "TERM": "dumb", "PAGER": "less", "GIT_PAGER": "less", "CLICOLOR": "0"}
    with kernel(ws, how="created", kernel_name="cold", env=env) as (_, kc):
        cold = value(kc, code)
    with claimed(home, ws, env=env) as (_, kc):
        assert value(kc, code) == cold


def test_variables_reach_the_programs_it_starts(home: PoolHome, ws: Path) -> None:
    with claimed(home, ws, env={**os.environ, **ENV}) as (_, kc):
        code = (
            "import subprocess; subprocess.run(['/usr/bin/env', '-0'], capture_output=True).stdout"
        )
        seen = told(kc, code).decode().split("\0")
        assert {f"{name}={text}" for name, text in ENV.items()} <= set(seen)


def test_variables_of_one_claim_are_in_no_other(home: PoolHome, ws: Path) -> None:
    home.wait_ready(ws)
    secret = {**os.environ, "ONLY_MINE": "a-secret-of-one"}
    with claimed(home, ws, env=secret) as (_, kc), claimed(home, ws) as (_, other):
        assert value(kc, "import os; os.environ['ONLY_MINE']") == "'a-secret-of-one'"
        code = (
            "import os, subprocess\n"
            "seen = subprocess.run('env; cat /proc/[0-9]*/environ', shell=True, capture_output=True)\n"
            "('ONLY_MINE' in os.environ, b'ONLY_MINE' in seen.stdout)"
        )
        assert told(other, code) == (False, False)
    with claimed(home, ws) as (_, later):
        assert told(later, code) == (False, False)


def test_each_has_a_home_a_tmp_and_a_name_of_its_own(home: PoolHome, ws: Path) -> None:
    names = set()
    with claimed(home, ws) as (_, first), claimed(home, ws) as (_, second):
        run(first, "import os; open(os.path.expanduser('~/mine'), 'w').close()")
        run(first, "open('/tmp/mine', 'w').close(); open('/dev/shm/mine', 'w').close()")
        assert not (Path.home() / "mine").exists()
        assert not Path("/tmp/mine").exists()
        for kc in (first, second):
            names.add(value(kc, "__import__('socket').gethostname()"))
        code = "import os; [os.path.exists(f'{each}/mine') for each in (os.environ['HOME'], '/tmp', '/dev/shm')]"
        assert told(second, code) == [False, False, False]
    assert len(names) == 2


def test_the_place_where_clones_get_their_workspace_is_empty(pair: Pair) -> None:
    code = (
        "import os; [os.path.isdir('/run/torpor/workspace') and os.listdir('/run/torpor/workspace'),"
        " os.path.exists('/run/torpor/workspace/a.txt'),"
        " os.access('/run/torpor/workspace', os.W_OK)]"
    )
    assert told(pair[1], code) == [[], False, False]


def test_nobody_can_mount_or_see_into_process_1(pair: Pair) -> None:
    code = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def refused(call, *args):
    return (getattr(libc, call)(*args), ctypes.get_errno())
def closed(path):
    try:
        return os.listdir(path) if os.path.isdir(path) else open(path, 'rb').read(1)
    except OSError as error:
        return type(error).__name__
[refused('mount', b'/mnt', b'/tmp', None, 0x1000, None), refused('umount2', os.getcwd().encode(), 2),
 refused('sethostname', b'other', 5), refused('unshare', 0x20000),
 closed('/proc/1/fd/0'), closed('/proc/1/mem'), closed('/proc/1/environ')]
"""
    assert told(pair[1], code) == [(-1, 1)] * 4 + ["PermissionError"] * 3


RESTARTED = """
import os, socket
[os.environ.get('FOO'), os.path.exists('/tmp/kept'), os.path.exists(os.path.expanduser('~/kept')),
 open('a.txt').read(), 'before' in globals(), socket.gethostname()]
"""


def test_restart(home: PoolHome, ws: Path) -> None:
    with claimed(home, ws, env={**os.environ, "FOO": "bar"}) as (km, kc):
        run(kc, "import os; before = 1; os.chdir('sub'); open('/tmp/kept', 'w').close()")
        run(kc, "open(os.path.expanduser('~/kept'), 'w').close()")
        name, ports = told(kc, "__import__('socket').gethostname()"), list(km.ports)
        for _ in range(2):
            km.restart_kernel(now=True)
            kc.wait_for_ready(timeout=30)
            assert start_of(km)["how"] == "restarted"
            ran = run(kc, "import os; os.getcwd()")
            assert ran.reply["execution_count"] == 1
            assert ran.result == repr(str(ws))
            assert told(kc, RESTARTED) == ["bar", True, True, "from the host", False, name]
            rights = told(kc, "[l.split()[1] for l in open('/proc/self/status') if l[:3] == 'Cap']")
            assert {int(each, 16) for each in rights} == {0}
        assert list(km.ports) == ports


def test_restart_after_the_kernel_has_ended_by_itself(pair: Pair) -> None:
    km, kc = pair
    run(kc, "open('/tmp/kept', 'w').close()")
    kc.execute("import os; os._exit(3)")
    deadline = time.monotonic() + 20
    while km.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    km.restart_kernel(now=True)
    kc.wait_for_ready(timeout=30)
    assert value(kc, "__import__('os').path.exists('/tmp/kept')") == "True"


def test_restart_after_the_sandbox_has_died(home: PoolHome, ws: Path) -> None:
    with claimed(home, ws, env={**os.environ, "FOO": "bar"}) as (km, kc):
        ports = list(km.ports)
        os.kill(state_of(km)["sandbox"]["pid"], signal.SIGKILL)
        deadline = time.monotonic() + 20
        while km.is_alive():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        km.restart_kernel(now=True)
        kc.wait_for_ready(timeout=30)
        assert start_of(km)["how"] == "replaced"
        assert list(km.ports) == ports
        assert told(kc, "import os; os.environ['FOO'], os.getcwd()") == ("bar", str(ws))


# -- what the imported tests of notebooks' features run on ------------------------------------------


@pytest.fixture(scope="module")
def shared(home: PoolHome, ws: Path) -> Iterator[Pair]:
    """One claimed kernel for the tests of features."""
    with claimed(home, ws) as started:
        yield started


@pytest.fixture
def manager_and_client(pair: Pair) -> Pair:
    """A claimed kernel of a test's own."""
    return pair
