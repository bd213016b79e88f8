"""Clones of one golden are of one memory; nothing in them that is to be by chance may be the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking import BlockingKernelClient

from tests.e2e.pool_home import PoolHome, claimed, pool_home, told, warm

LOADED = ("numpy", "ssl", "secrets", "tempfile", "uuid", "multiprocessing.synchronize", "sqlite3")
CONFIG = f"""
c.Torpor.templates = {{"default": {{"warm_up": {LOADED!r}, "pool_least": 2, "pool_most": 3}}}}
"""

pytestmark = [pytest.mark.runsc, pytest.mark.timeout(180)]

SOURCES = {
    "random": "random.random()",
    "state of random": "hash(random.getstate())",
    "an own Random": "random.Random().getrandbits(128)",
    "SystemRandom": "random.SystemRandom().getrandbits(128)",
    "urandom": "os.urandom(16).hex()",
    "secrets": "secrets.token_hex(16)",
    "ssl": "ssl.RAND_bytes(16).hex()",
    "numpy.random": "float(numpy.random.rand())",
    "a normal variate of numpy": "float(numpy.random.randn())",
    "state of numpy.random": "hash(numpy.random.get_state()[1].tobytes())",
    "default_rng": "float(numpy.random.default_rng().random())",
    "SeedSequence": "numpy.random.SeedSequence().entropy",
    "file": "tempfile.NamedTemporaryFile().name",
    "folder": "tempfile.mkdtemp()",
    "name": "tempfile.mktemp()",
    "uuid1": "str(uuid.uuid1())",
    "node and clock of uuid1": "(lambda u: (u.node, u.clock_seq))(uuid.uuid1())",
    "uuid4": "str(uuid.uuid4())",
    "authkey": "bytes(multiprocessing.current_process().authkey).hex()",
    "semaphore": "next(multiprocessing.synchronize.SemLock._rand)",
    "sqlite": "sqlite3.connect(':memory:').execute('select hex(randomblob(16))').fetchone()[0]",
    "message id": "email.utils.make_msgid(domain='x')",
    "boundary": "email.generator._make_boundary()",
    "session of the kernel": "get_ipython().kernel.session.session",
    "message ids of the kernel": "get_ipython().kernel.session.msg_id",
    "start of the history": (
        "str(get_ipython().history_manager.db.execute('select max(start) from sessions').fetchone())"
    ),
    "hostname": "socket.gethostname()",
    "in a forked child": (
        "subprocess.run([sys.executable, '-c', 'import random; print(random.random())'],"
        " capture_output=True).stdout"
    ),
}
SEEDED = {
    "random": "random.Random(42).random()",
    "numpy": "float(numpy.random.default_rng(42).random())",
}
IMPORTS = (
    "import email.generator, email.utils, multiprocessing.synchronize, numpy, os, random, secrets, "
    "socket, sqlite3, ssl, subprocess, sys, tempfile, uuid\n"
)


def drawn(kc: BlockingKernelClient) -> tuple[dict[str, Any], dict[str, Any]]:
    """Give a draw from each source, as the first thing a kernel does, and from the seeded ones."""
    kc.kernel_info()
    reply = kc.get_shell_msg(timeout=30)
    pairs = ", ".join(f"{name!r}: {code}" for name, code in SOURCES.items())
    seeded = ", ".join(f"{name!r}: {code}" for name, code in SEEDED.items())
    chance = told(kc, f"{IMPORTS}{{{pairs}}}")
    chance["session in replies"] = reply["header"]["session"]
    chance["ids of replies"] = reply["header"]["msg_id"]
    return chance, told(kc, f"{{{seeded}}}")


@pytest.fixture(scope="module")
def home() -> Iterator[PoolHome]:
    """A home whose golden has loaded every source of chance."""
    with pool_home(CONFIG) as made:
        yield made


@pytest.fixture(scope="module")
def ws(home: PoolHome, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace for which clones wait."""
    folder = tmp_path_factory.mktemp("ws")
    warm(home, folder)
    return folder


def assert_all_differ(home: PoolHome, ws: Path, count: int) -> None:
    draws, seeded = [], []
    for _ in range(count):
        with claimed(home, ws) as (_, kc):
            chance, fixed = drawn(kc)
            draws.append(chance)
            seeded.append(fixed)
    alike = {
        name: f"{len({str(draw[name]) for draw in draws})} different of {count}"
        for name in draws[0]
        if len({str(draw[name]) for draw in draws}) < count
    }
    assert not alike
    assert all(each == seeded[0] for each in seeded)
    assert len(home.goldens()) == 1
    home.wait_settled()


def test_eight_clones_draw_different_numbers(home: PoolHome, ws: Path) -> None:
    assert_all_differ(home, ws, 8)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_fifty_clones_draw_different_numbers(home: PoolHome, ws: Path) -> None:
    assert_all_differ(home, ws, 50)


def test_two_clones_at_the_same_moment(home: PoolHome, ws: Path) -> None:
    home.wait_ready(ws, 2)
    with claimed(home, ws) as (_, first), claimed(home, ws) as (_, second):
        one, _ = drawn(first)
        other, _ = drawn(second)
    assert [name for name in one if one[name] == other[name]] == []


def test_numbers_go_on_differing_after_a_restart(home: PoolHome, ws: Path) -> None:
    with claimed(home, ws) as (km, kc):
        before, _ = drawn(kc)
        km.restart_kernel(now=True)
        kc.wait_for_ready(timeout=30)
        after, _ = drawn(kc)
    assert [name for name in before if before[name] == after[name]] == ["hostname"]
