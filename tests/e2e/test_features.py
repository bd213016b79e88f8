"""What notebooks do, each through an unmodified jupyter_client against a kernel inside gVisor."""

from __future__ import annotations

import base64
import time

import numpy as np
import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager

from tests.e2e.cells import Ran, begin, drain, ended, reply_to, run, tell, value, wait_ready

pytestmark = [pytest.mark.runsc, pytest.mark.timeout(180)]


def test_the_kernel_is_inside_gvisor(kc: BlockingKernelClient) -> None:
    ran = run(
        kc,
        "import subprocess; print(subprocess.run(['dmesg'],capture_output=True,text=True).stdout)",
    )
    assert "gVisor" in ran.stdout


def test_ipywidgets_comms_both_ways(kc: BlockingKernelClient) -> None:
    ran = run(kc, "import ipywidgets as w\ns = w.IntSlider(value=3)\ndisplay(s)")
    opened = ran.of_type("comm_open")
    assert ran.error is None
    models = [m["content"]["data"]["state"].get("_model_name") for m in opened]
    assert "IntSliderModel" in models
    comm_id = opened[models.index("IntSliderModel")]["content"]["comm_id"]
    message = kc.session.msg(
        "comm_msg",
        {
            "comm_id": comm_id,
            "data": {"method": "update", "state": {"value": 42}, "buffer_paths": []},
        },
    )
    kc.shell_channel.send(message)
    deadline = time.monotonic() + 20
    while value(kc, "s.value") != "42":
        assert time.monotonic() < deadline, "the slider never heard of its new value"


def test_matplotlib_inline_sends_a_png(kc: BlockingKernelClient) -> None:
    ran = run(kc, "%matplotlib inline\nimport matplotlib.pyplot as p\np.plot([1,2,3]);p.show()")
    assert ran.error is None, ran.reply
    pictures = [m["content"]["data"].get("image/png") for m in ran.of_type("display_data")]
    assert pictures
    assert base64.b64decode(pictures[0]).startswith(b"\x89PNG")


def test_input(kc: BlockingKernelClient) -> None:
    ran = run(kc, "print('hello', input('name? '))", answers=("Ada",))
    assert ran.stdout == "hello Ada\n"


def test_getpass_asks_for_a_password(kc: BlockingKernelClient) -> None:
    msg_id = kc.execute("import getpass; secret = getpass.getpass('pw: ')", allow_stdin=True)
    request = kc.get_stdin_msg(timeout=30)
    assert request["content"] == {"prompt": "pw: ", "password": True}
    kc.input("hunter2")
    assert reply_to(kc, msg_id, 30)["status"] == "ok"
    assert value(kc, "secret") == "'hunter2'"


@pytest.mark.parametrize("code", ["while True: pass", "import time; time.sleep(600)"])
def test_interrupt(kc: BlockingKernelClient, km: KernelManager, code: str) -> None:
    started = begin(kc, code)
    began = time.monotonic()
    km.interrupt_kernel()
    assert ended(kc, started, 30).error == "KeyboardInterrupt"
    assert time.monotonic() - began < 20
    assert value(kc, "1 + 1") == "2"


def test_interrupt_by_message(kc: BlockingKernelClient) -> None:
    started = begin(kc, "while True: pass")
    kc.control_channel.send(kc.session.msg("interrupt_request", {}))
    assert ended(kc, started, 30).error == "KeyboardInterrupt"
    assert kc.get_control_msg(timeout=30)["msg_type"] == "interrupt_reply"


def debug(kc: BlockingKernelClient, seq: int, command: str, arguments: dict[str, object]) -> dict:
    request = {"type": "request", "command": command, "seq": seq, "arguments": arguments}
    kc.control_channel.send(kc.session.msg("debug_request", request))
    deadline = time.monotonic() + 60
    while True:
        reply = kc.get_control_msg(timeout=max(0.1, deadline - time.monotonic()))
        if reply["msg_type"] == "debug_reply" and reply["content"].get("command") == command:
            return dict(reply["content"])


def test_debugger_attaches_and_stops_at_a_breakpoint(
    manager_and_client: tuple[KernelManager, BlockingKernelClient],
) -> None:
    kc = manager_and_client[1]
    kc.kernel_info()
    reply = debug(kc, 1, "initialize", {"clientID": "t", "adapterID": "", "linesStartAt1": True})
    assert reply["success"], reply
    assert debug(kc, 2, "attach", {"justMyCode": True})["success"]
    code = "x = 1\ny = x + 1\nz = y + 1\n"
    path = debug(kc, 3, "dumpCell", {"code": code})["body"]["sourcePath"]
    breakpoints = {"source": {"path": path}, "breakpoints": [{"line": 2}], "sourceModified": False}
    assert debug(kc, 4, "setBreakpoints", breakpoints)["success"]
    debug(kc, 5, "configurationDone", {})
    msg_id = kc.execute(code)
    stopped = None
    while stopped is None:
        message = kc.get_iopub_msg(timeout=60)
        if message["msg_type"] == "debug_event" and message["content"].get("event") == "stopped":
            stopped = message["content"]
    thread = stopped["body"]["threadId"]
    frames = debug(kc, 6, "stackTrace", {"threadId": thread})["body"]["stackFrames"]
    assert frames[0]["line"] == 2
    assert debug(kc, 7, "continue", {"threadId": thread})["success"]
    assert reply_to(kc, msg_id, 60)["status"] == "ok"
    assert debug(kc, 8, "disconnect", {"restart": False})["success"]


def test_subshell_runs_beside_a_busy_main_shell(kc: BlockingKernelClient) -> None:
    kc.control_channel.send(kc.session.msg("create_subshell_request", {}))
    subshell_id = kc.get_control_msg(timeout=30)["content"]["subshell_id"]

    def beside(code: str) -> str:
        content = {"code": code, "silent": False, "store_history": False}
        message = kc.session.msg("execute_request", content)
        message["header"]["subshell_id"] = subshell_id
        kc.shell_channel.send(message)
        return str(message["header"]["msg_id"])

    tell(kc, "import time; end = False")
    busy = begin(kc, "while not end: time.sleep(0.01)")  # until it is told to end, beside it
    assert reply_to(kc, beside("side = 7"), 30)["status"] == "ok"
    asked = {busy, beside("end = True")}
    while asked:
        reply = kc.get_shell_msg(timeout=30)
        assert reply["content"]["status"] == "ok"
        asked.discard(reply["parent_header"]["msg_id"])
    kc.control_channel.send(kc.session.msg("delete_subshell_request", {"subshell_id": subshell_id}))
    assert kc.get_control_msg(timeout=30)["content"]["status"] == "ok"
    assert value(kc, "side") == "7"


def test_fork(kc: BlockingKernelClient) -> None:
    code = (
        "import os\nr, w = os.pipe()\npid = os.fork()\nif pid == 0:\n"
        "    os.write(w, b'child %d' % (os.getppid() != 1)); os._exit(7)\n"
        "os.close(w); text = os.read(r, 99); status = os.waitpid(pid, 0)[1]\n"
        "(text, os.waitstatus_to_exitcode(status))"
    )
    assert value(kc, code) == "(b'child 1', 7)"


def test_multiprocessing_pool(kc: BlockingKernelClient) -> None:
    code = (
        "import multiprocessing as mp, math\nctx = mp.get_context('fork')\n"
        "with ctx.Pool(3) as pool:\n    squares = pool.map(math.factorial, range(20))\n"
        "squares == [math.factorial(i) for i in range(20)]"
    )
    assert value(kc, code) == "True"


def test_shared_memory_between_processes(kc: BlockingKernelClient) -> None:
    code = (
        "from multiprocessing import shared_memory as sm\na = sm.SharedMemory(create=True, size=1<<20)\n"
        "b = sm.SharedMemory(name=a.name); a.buf[:5] = b'hello'; x = bytes(b.buf[:5])\n"
        "b.close(); a.close(); a.unlink(); x"
    )
    assert value(kc, code) == "b'hello'"


def test_fifty_megabytes_of_output_arrive_whole(kc: BlockingKernelClient) -> None:
    lines = 50 * 1024
    ran = run(kc, f"for i in range({lines}): print(f'{{i:08d}}' + 'x' * 1015)", timeout_s=150)
    got = ran.stdout.splitlines()
    assert len(got) == lines
    assert all(line.startswith(f"{i:08d}x") for i, line in enumerate(got))


def test_large_binary_buffers_both_ways(kc: BlockingKernelClient) -> None:
    setup = (
        "from comm import create_comm\nseen = []\nimport hashlib\n"
        "def target(comm, message):\n"
        "    comm.on_msg(lambda m: comm.send({'sha': hashlib.sha256(m['buffers'][0]).hexdigest()},"
        " buffers=[m['buffers'][0]]))\n"
        "get_ipython().kernel.comm_manager.register_target('echo', target)"
    )
    assert run(kc, setup).error is None
    payload = np.random.default_rng(1).bytes(20 << 20)
    kc.shell_channel.send(
        kc.session.msg("comm_open", {"comm_id": "c1", "target_name": "echo", "data": {}})
    )
    message = kc.session.msg("comm_msg", {"comm_id": "c1", "data": {}})
    kc.session.send(kc.shell_channel.socket, message, buffers=[payload])
    deadline = time.monotonic() + 60
    while True:
        got = kc.get_iopub_msg(timeout=max(0.1, deadline - time.monotonic()))
        if got["msg_type"] == "comm_msg":
            break
    assert bytes(got["buffers"][0]) == payload


def test_two_clients_share_one_kernel(kc: BlockingKernelClient, km: KernelManager) -> None:
    other = BlockingKernelClient()
    other.load_connection_file(km.connection_file)
    other.start_channels()
    try:
        wait_ready(other)
        assert run(kc, "shared_value = 'abc'").error is None
        assert value(other, "shared_value") == "'abc'"
    finally:
        other.stop_channels()


def test_completion_inspection_history(kc: BlockingKernelClient) -> None:
    run(kc, "a_long_name = 5")
    reply = reply_to(kc, kc.complete("a_long_"), 120)  # jedi parses builtins first, without a cache
    assert "a_long_name" in reply["matches"]
    assert reply_to(kc, kc.inspect("a_long_name"), 30)["found"]
    assert reply_to(kc, kc.is_complete("for i in x:"), 30)["status"] == "incomplete"
    assert reply_to(kc, kc.history(n=1, hist_access_type="tail"), 30)["status"] == "ok"


def test_late_output_of_a_thread_still_arrives(kc: BlockingKernelClient) -> None:
    msg_id = kc.execute(
        "import threading, time\nt = threading.Thread(target=lambda: (time.sleep(.3), print('late')))\n"
        "t.start(); t.join()"
    )
    reply_to(kc, msg_id, 30)
    ran = Ran({})
    drain(kc, msg_id, ran, 30)
    assert ran.stdout == "late\n"


def test_interrupts_in_the_middle_of_output_keep_every_message_whole(
    kc: BlockingKernelClient, km: KernelManager
) -> None:
    for round_ in range(12):
        started = kc.execute("while True: print('x' * 50, flush=True)")
        while kc.get_iopub_msg(timeout=30)["msg_type"] != "stream":
            pass
        time.sleep(0.01 * round_)
        km.interrupt_kernel()
        assert reply_to(kc, started, 30)["ename"] == "KeyboardInterrupt"
        ran = Ran({})
        drain(kc, started, ran, 30)
        lines = ran.stdout.splitlines()
        assert {line for line in lines[:-1] if line} <= {"x" * 50}
    assert value(kc, "'whole'") == "'whole'"


def test_threads_print_at_the_same_time_each_in_its_order(kc: BlockingKernelClient) -> None:
    code = (
        "import sys, threading\n"
        "def work(n):\n    for i in range(200): sys.stdout.write(f'{n}:{i}\\n'); sys.stdout.flush()\n"
        "threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]\n"
        "for t in threads: t.start()\n"
        "for t in threads: t.join()\n"
    )
    ran = run(kc, code, timeout_s=90)
    assert ran.error is None
    for n in range(4):
        mine = [line for line in ran.stdout.splitlines() if line.startswith(f"{n}:")]
        assert mine == [f"{n}:{i}" for i in range(200)]


def test_forked_children_print_while_the_parent_prints(kc: BlockingKernelClient) -> None:
    code = (
        "import os\n"
        "for i in range(10):\n    pid = os.fork()\n"
        "    if pid == 0:\n        print('child', flush=True); os._exit(0)\n"
        "    print('parent', flush=True); os.waitpid(pid, 0)\n"
    )
    ran = run(kc, code, timeout_s=90)
    assert ran.error is None
    deadline = time.monotonic() + 10
    text = ran.stdout
    while text.count("child") < 10 and time.monotonic() < deadline:
        message = kc.get_iopub_msg(timeout=10)
        if message["msg_type"] == "stream":
            text += message["content"]["text"]
    assert (text.count("child"), text.count("parent")) == (10, 10)
