"""Something else happens while a kernel falls asleep: it happens once, and the kernel is well afterwards.

Each test begins a hibernation and does the other thing at several steps of it, up to just after its end. What
the kernel should have done is counted in the kernel.
"""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from queue import Empty

import pytest
from jupyter_client.blocking import BlockingKernelClient
from torpor.errors import Busy, SandboxGone

from tests.e2e.cells import reply_to, tell, value
from tests.e2e.debugging import attach, debug, set_breakpoint, stopped_thread
from tests.e2e.racing import STEPS, Falling, Racing
from tests.e2e.sleeping import (
    do,
    own_kernel,
    sandbox_pids,
    snapshots,
    state,
    status,
    wait,
    wait_status,
)
from tests.home import start, stop, torpor_home

pytestmark = [pytest.mark.runsc, pytest.mark.timeout(120)]

CONFIG = 'c.Torpor.templates = {"default": {"freeze_after_s": 0, "hibernate_after_s": 0}}\n'
COMM = """
got = []
def opened(comm, _):
    comm.on_msg(lambda message: got.append(message["content"]["data"]["number"]))
get_ipython().kernel.comm_manager.register_target("race", opened)
"""
ASKED = """
asked, debugger = [], get_ipython().kernel.debugger
answer = debugger.process_request
async def noted(message):
    asked.append(message["command"])
    return await answer(message)
debugger.process_request = noted
"""
TALK = """
import threading, time
said, talking = 0, True
def talk():
    global said
    while talking:
        print(said, flush=True)
        said += 1
        time.sleep({pause_s})
talker = threading.Thread(target=talk)
talker.start()
"""
CLIENT = """
import sys, time
from queue import Empty
from jupyter_client.blocking import BlockingKernelClient
kc = BlockingKernelClient()
kc.load_connection_file(sys.argv[1])
kc.hb_channel.time_to_dead = 10  # after one missed heartbeat of 1 s it would give the kernel up
kc.start_channels()
kc.wait_for_ready(timeout=30)
print("ready", flush=True)
sys.stdin.readline()
mine = [kc.execute("import time; time.sleep(0.1); n += 1"), kc.kernel_info()]
while True:  # whatever comes now says that both have arrived
    for get in (kc.get_shell_msg, kc.get_iopub_msg):
        try:
            if get(timeout=0.01)["parent_header"].get("msg_id") in mine:
                print("sent", flush=True)
        except Empty:
            pass
"""


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    with torpor_home(CONFIG) as folder:
        yield folder


@pytest.fixture(scope="module")
def one(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Racing]:
    with own_kernel(home, tmp_path_factory.mktemp("ws")) as (km, kc):
        racing = Racing(home, km, kc)
        racing.measure()
        yield racing
    assert snapshots() == []


@pytest.fixture
def racing(one: Racing) -> Iterator[Racing]:
    """The kernel of all these tests; each leaves it usable."""
    one.fresh()
    yield one
    one.check()


def test_a_second_hibernation(racing: Racing) -> None:
    before = state(racing.km)["sleep"]["generation"]
    for number, step in enumerate(STEPS, 1):
        with racing.falling(step) as first:
            second = Falling(racing.km)
        assert (first.over(), second.over()) == (True, True)
        seen = state(racing.km)
        assert (seen["status"], seen["sleep"]["generation"]) == ("hibernated", before + number)
        assert sandbox_pids(racing.home) == []
        racing.count()


def test_an_interrupt(racing: Racing) -> None:
    """There is nothing to interrupt; least of all what is asked later."""
    for step in STEPS:
        with racing.falling(step) as falling:
            racing.km.interrupt_kernel()
        assert falling.over()
        assert status(racing.km) == "hibernated"
        racing.count()


def test_an_interrupt_then_a_cell(racing: Racing) -> None:
    for step in STEPS:
        with racing.falling(step):
            racing.km.interrupt_kernel()
            racing.count(after_s=0.2)


def test_an_interrupt_while_it_wakes_spares_the_next_cell(racing: Racing) -> None:
    for _ in range(2):
        do(racing.km, "hibernate")
        waking = threading.Thread(target=do, args=(racing.km, "wake"))
        waking.start()
        wait(lambda: status(racing.km) != "hibernated", lambda: status(racing.km))
        racing.km.interrupt_kernel()
        waking.join()
        racing.count(after_s=0.3)


def test_a_wake(racing: Racing) -> None:
    for step in STEPS:
        with racing.falling(step) as falling:
            do(racing.km, "wake")
        assert falling.over()
        assert status(racing.km) in ("running", "hibernated")
        racing.count()


@pytest.mark.slow
def test_a_restart(racing: Racing) -> None:
    for number, step in enumerate(STEPS):
        tell(racing.kc, "before = 1; open('/tmp/kept', 'a').write('x')")
        with racing.falling(step, Busy, SandboxGone):
            racing.km.restart_kernel(now=number % 2 == 0)
            racing.kc.wait_for_ready(timeout=30)
        assert value(racing.kc, "'before' in globals()") == "False"
        racing.fresh()
        racing.count(after_s=0.2)
        assert racing.km.is_alive()
    assert value(racing.kc, "len(open('/tmp/kept').read())") == str(len(STEPS))


@pytest.mark.parametrize(
    ("step", "now"),
    [
        (0.3, False),
        (0.6, True),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in ((0.0, True), (0.9, False))),
    ],
)
def test_a_shutdown(one: Racing, tmp_path: Path, step: float, now: bool) -> None:
    others = one.there()
    km, kc = start(tmp_path)
    kernel_id = km.kernel_id
    mine = Racing(one.home, km, kc, one.takes_s)
    with mine.falling(step, Busy, SandboxGone):
        kc.stop_channels()
        km.shutdown_kernel(now=now)
        assert not km.has_kernel
    km.kernel_id = kernel_id
    with pytest.raises(SandboxGone):
        state(km)
    wait(lambda: one.there() == others, lambda: str(one.there()))
    assert kernel_id not in [each["kernel_id"] for each in snapshots()]


def test_messages_of_a_comm(racing: Racing) -> None:
    """They wake, and nothing ever answers them."""
    kc = racing.kc
    tell(kc, COMM)

    def send(kind: str, **content: object) -> None:
        kc.shell_channel.send(kc.session.msg(kind, {"comm_id": "c", **content}))

    send("comm_open", target_name="race", data={})
    for number, step in enumerate(STEPS):
        with racing.falling(step):
            send("comm_msg", data={"number": number})
        assert value(kc, "got") == str(list(range(number + 1)))
    do(racing.km, "hibernate")
    send("comm_close", data={})
    wait_status(racing.km, "running")


@pytest.mark.slow
def test_requests_of_a_debugger(one: Racing, tmp_path: Path) -> None:
    """One that is attached lets the kernel sleep, one that has stopped it does not."""
    km, kc = start(tmp_path)
    racing = Racing(one.home, km, kc, one.takes_s)
    racing.fresh()
    tell(kc, ASKED)
    attach(kc)
    for step in STEPS:
        with racing.falling(step):
            names = [each["name"] for each in debug(kc, "inspectVariables")["variables"]]
        assert "asked" in names
        racing.count()
    assert value(kc, "asked.count('inspectVariables')") == str(len(STEPS))
    code = "m = n\nn = m + 1\nm = n\n"
    set_breakpoint(kc, code, 2)
    for step in STEPS[::2]:
        with racing.falling(step):
            asked = kc.execute(code)
            thread = stopped_thread(kc)
        for verb in ("hibernate", "freeze"):
            with pytest.raises(Busy, match="debugger has stopped"):
                do(km, verb)
        debug(kc, "continue", threadId=thread)
        racing.n += 1
        assert reply_to(kc, asked, 20)["status"] == "ok"
        assert value(kc, "n") == str(racing.n)
    debug(kc, "disconnect", restart=False, terminateDebuggee=False)
    do(km, "hibernate")
    racing.count()
    stop(km, kc)


@pytest.mark.parametrize("pause_s", [0.02, 0.001])
def test_a_thread_that_talks(racing: Racing, pause_s: float) -> None:
    """All it says arrives once and in order."""
    heard: list[int] = []
    slept: list[bool] = []
    ear = BlockingKernelClient(connection_file=racing.km.connection_file)
    ear.load_connection_file()
    ear.hb_channel.time_to_dead = 10  # see CLIENT
    ear.start_channels()
    ear.wait_for_ready(timeout=30)

    def listen() -> None:
        with suppress(Empty):
            while -1 not in heard:
                message = ear.iopub_channel.get_msg(timeout=20)  # needs no event loop
                if message["msg_type"] == "stream":
                    heard.extend(map(int, message["content"]["text"].split()))

    listening = threading.Thread(target=listen)
    listening.start()
    tell(racing.kc, TALK.format(pause_s=pause_s))
    for step in STEPS[::2]:
        with racing.falling(step) as falling:
            time.sleep(0.1)
        slept.append(falling.over(Busy))
        racing.count()
    tell(racing.kc, "talking = False; talker.join(); print(-1, flush=True)")
    listening.join(30)
    ear.stop_channels()
    assert any(slept) or pause_s < 0.01  # one that never pauses may be left alone
    assert heard == [*range(int(value(racing.kc, "said"))), -1]


def test_a_client_that_is_killed(racing: Racing) -> None:
    """What it has asked for is done, once."""
    argv = [sys.executable, "-c", CLIENT, racing.km.connection_file]
    clients = [subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in STEPS]
    try:
        for client in clients:
            assert said(client) == b"ready\n"
        for step, client in zip(STEPS, clients, strict=True):
            with racing.falling(step):
                assert client.stdin is not None
                client.stdin.write(b"go\n")
                client.stdin.flush()
                assert said(client) == b"sent\n"
                time.sleep(random.uniform(0, 0.2))
                client.kill()
                racing.n += 1
            assert value(racing.kc, "n") == str(racing.n)
    finally:
        for client in clients:
            client.kill()
            client.communicate()


def said(client: subprocess.Popen[bytes]) -> bytes:
    assert client.stdout is not None
    return client.stdout.readline()
