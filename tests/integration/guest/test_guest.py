"""The real guest as an ordinary process with a real ipykernel, seen from the host's end."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from torpor.link import Channel
from torpor.runsc.family import works

from tests.integration.guest.harness import IPYKERNEL, Host, kernel_env, start_params


def alive(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def gone(pid: int, within_s: float = 5) -> bool:
    """Whether a process ends in time."""
    end_s = time.monotonic() + within_s
    while alive(pid) and time.monotonic() < end_s:
        time.sleep(0.01)
    return not alive(pid)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A ready kernel for the tests that leave it as they found it."""
    with Host(tmp_path_factory.mktemp("shared"), start_params()) as host:
        host.event("ready")
        yield host


def test_ready_tells_what_the_kernel_is(shared: Host) -> None:
    ready = shared.event("ready")
    assert ready["generation"] == 1
    assert ready["kernel_info"]["implementation"] == "ipython"
    assert ready["iopub_welcome"] is True
    assert shared.event("booted")["pid"] == shared.process.pid
    status = shared.call("status")["result"]
    assert (status["state"], status["pid"], status["exit_code"]) == ("ready", ready["pid"], None)
    assert status["kernel_info"] == ready["kernel_info"]


def test_welcome_for_the_guest_goes_no_further(shared: Host) -> None:
    assert shared.run("1")["reply"]["status"] == "ok"
    assert "iopub_welcome" not in {m["msg_type"] for m in shared.decoded(Channel.IOPUB)}


def test_executes_and_streams_in_order(shared: Host) -> None:
    done = shared.run("for i in range(300): print(i, flush=True)\n6 * 7")
    assert done["result"] == "42"
    assert done["text"] == "".join(f"{i}\n" for i in range(300))


def test_input_goes_to_the_identity_that_executed(shared: Host) -> None:
    msg_id = shared.execute("x = input('name? ')\nprint('hello ' + x)", allow_stdin=True)
    shared.until(lambda: shared.messages[Channel.STDIN])
    asked = shared.decoded(Channel.STDIN)[-1]
    assert asked["content"] == {"prompt": "name? ", "password": False}
    assert shared.messages[Channel.STDIN][-1][0] == b"client"
    shared.request("input_reply", {"value": "torpor"}, Channel.STDIN, parent=asked)
    assert shared.reply(msg_id)["content"]["status"] == "ok"
    shared.idle(msg_id)
    text = [m["content"].get("text") for m in shared.replies(msg_id, Channel.IOPUB)]
    assert "hello torpor\n" in text


@pytest.mark.parametrize("way", ["signal", "message"])
def test_interrupts_a_busy_kernel(shared: Host, way: str) -> None:
    msg_id = shared.execute("print('on', flush=True)\nwhile True: pass")
    shared.until(
        lambda: any(m["msg_type"] == "stream" for m in shared.replies(msg_id, Channel.IOPUB))
    )
    if way == "signal":
        assert shared.call("signal", signum=signal.SIGINT)["result"] == {}
    else:
        shared.reply(shared.request("interrupt_request", {}, Channel.CONTROL), Channel.CONTROL)
    assert shared.reply(msg_id)["content"]["ename"] == "KeyboardInterrupt"
    shared.idle(msg_id)


def test_signal_reaches_the_whole_group(shared: Host) -> None:
    code = "import subprocess\nprint('on', flush=True)\nsubprocess.run(['sleep', '60']).returncode"
    msg_id = shared.execute(code)
    shared.until(lambda: len(shared.replies(msg_id, Channel.IOPUB)) >= 3)
    time.sleep(0.2)
    shared.call("signal", signum=signal.SIGINT)
    assert shared.reply(msg_id)["content"]["ename"] == "KeyboardInterrupt"
    shared.idle(msg_id)


def test_large_buffers_go_both_ways(shared: Host) -> None:
    blob = os.urandom(1 << 20) * 8
    code = (
        "from comm import create_comm, get_comm_manager\nimport hashlib\n"
        "def opened(comm, message):\n"
        "    buffers = [bytes(b) for b in message['buffers']]\n"
        "    comm.send({'n': [len(b) for b in buffers]}, buffers=buffers)\n"
        "get_comm_manager().register_target('echo', opened)"
    )
    shared.run(code)
    content = {"comm_id": "c1", "target_name": "echo", "data": {}}
    msg_id = shared.request("comm_open", content, buffers=[blob, b"", b"x"])
    shared.idle(msg_id)
    sent = [m for m in shared.replies(msg_id, Channel.IOPUB) if m["msg_type"] == "comm_msg"]
    assert [bytes(b) for b in sent[0]["buffers"]] == [blob, b"", b"x"]


def test_environment_is_exactly_what_was_asked(tmp_path: Path) -> None:
    env = kernel_env(ONLY="this", JUPYTER_PLATFORM_DIRS="1")
    with Host(tmp_path, start_params(env=env)) as host:
        host.event("ready")
        seen = host.run("import os; open('/proc/self/environ').read()")["result"]
        names = {item.partition("=")[0] for item in seen.strip("'").split("\\x00") if item}
        assert names == set(env)


def test_user_code_cannot_open_the_link(shared: Host) -> None:
    guest = shared.process.pid
    code = f"""
import os
os.setuid(65534) if os.getuid() == 0 else None
for name in ("fd/0", "fd/1", "mem", "environ"):
    try:
        os.open("/proc/{guest}/" + name, os.O_RDONLY)
        print(name, "OPENED")
    except PermissionError:
        print(name, "refused")
"""
    done = shared.run(f"import subprocess, sys\nprint(subprocess.run([sys.executable, '-c', {code!r}],"
                      " capture_output=True, text=True).stdout)")  # fmt: skip
    assert "OPENED" not in done["text"]
    assert done["text"].count("refused") == 4


def test_orphans_are_reaped(shared: Host) -> None:
    code = "import subprocess\nsubprocess.run(['sh', '-c', 'sleep 0.2 & echo $!'], capture_output=True).stdout"
    pid = int(shared.run(code)["result"].strip("b'").replace("\\n", ""))
    shared.until(lambda: not Path(f"/proc/{pid}").exists(), 5)


def test_connection_file_is_private_and_goes_with_the_kernel(tmp_path: Path) -> None:
    with Host(tmp_path, start_params()) as host:
        host.event("ready")
        code = "import ipykernel, os\np = ipykernel.get_connection_file()\nprint(p, os.stat(p).st_mode & 0o777)"
        path, mode = host.run(code)["text"].split()
        assert int(mode) == 0o600
        assert Path(path).exists()
    assert not Path(path).exists()
    assert not Path(path).parent.exists()


def test_restart_replaces_the_process_and_its_session(tmp_path: Path) -> None:
    with Host(tmp_path, start_params()) as host:
        first = host.event("ready")["pid"]
        code = "import subprocess\na = 1\nsubprocess.Popen(['sleep', '600'], process_group=0).pid"
        child = int(host.run(code)["result"])
        answer = host.call("restart", start=None)["result"]
        assert answer["generation"] == 2
        assert host.event("exited", 1)["exit_code"] == -signal.SIGKILL
        ready = host.event("ready", 2)
        assert ready["pid"] == answer["pid"] != first
        assert gone(first)
        assert gone(child)
        assert host.run("'a' in globals()")["result"] == "False"


def test_restart_with_other_parameters_after_an_exit(tmp_path: Path) -> None:
    with Host(tmp_path, start_params()) as host:
        host.event("ready")
        host.request("shutdown_request", {"restart": True}, Channel.CONTROL)
        assert host.event("exited", 1)["exit_code"] == 0
        assert any(m["msg_type"] == "shutdown_reply" for m in host.decoded(Channel.CONTROL))
        held = host.execute("2 + 2")  # what comes after the end is kept for the next kernel
        env = kernel_env(GENERATION="two")
        host.call("restart", start=start_params(env=env))
        host.event("ready", 2)
        assert host.reply(held)["content"]["status"] == "ok"
        assert host.run("import os; os.environ['GENERATION']")["result"] == "'two'"


def test_killed_kernel_is_reported(tmp_path: Path) -> None:
    with Host(tmp_path, start_params()) as host:
        pid = host.event("ready")["pid"]
        msg_id = host.execute("print('last words', flush=True)\nimport time; time.sleep(60)")
        host.until(lambda: len(host.replies(msg_id, Channel.IOPUB)) >= 3)
        os.kill(pid, signal.SIGKILL)
        exited = host.event("exited", 1)
        assert exited["exit_code"] == -signal.SIGKILL
        assert host.call("status")["result"]["state"] == "exited"
        assert host.call("signal", signum=2)["error"]["code"] == "no_kernel"
        host.call("start", **start_params())
        host.event("ready", 2)


def test_starts_on_request(tmp_path: Path) -> None:
    with Host(tmp_path, None) as host:
        host.event("booted")
        assert host.call("status")["result"]["state"] == "idle"
        assert host.call("restart")["error"]["code"] == "no_kernel"
        assert host.call("start", argv=[])["error"]["code"] == "bad_request"
        assert host.call("dance")["error"]["code"] == "bad_request"
        assert host.call("start", **start_params())["result"]["generation"] == 1
        assert host.call("start", **start_params())["error"]["code"] == "busy"
        host.event("ready", 1)


def test_missing_program_fails_at_once(tmp_path: Path) -> None:
    with Host(tmp_path, start_params(["no-such-kernel", "{connection_file}"])) as host:
        failed = host.event("failed", 1)
        assert failed["reason"] == "spawn"
        assert "no-such-kernel" in failed["message"]
        assert host.call("status")["result"]["failure"]["reason"] == "spawn"
        assert host.call("restart", start=start_params(cwd="/no/such"))["error"]["code"] == "spawn"
        assert "/no/such" in host.event("failed", 2)["message"]
        assert host.call("restart", start=start_params())["result"]["generation"] == 3
        host.event("ready", 3)


def test_kernel_that_exits_at_once_fails_with_its_last_lines(tmp_path: Path) -> None:
    code = "import sys; print('x' * 20000, file=sys.stderr); print('boom', file=sys.stderr); sys.exit(3)"
    with Host(tmp_path, start_params([sys.executable, "-c", code])) as host:
        failed = host.event("failed", 1)
        assert (failed["reason"], failed["exit_code"]) == ("exited", 3)
        assert failed["stderr_tail"] == "boom\n"


def test_kernel_that_never_answers_is_killed_in_time(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", "import time; print('waiting'); time.sleep(600)"]
    with Host(tmp_path, start_params(argv, start_timeout_s=1)) as host:
        pid = host.call("status")["result"]["pid"]
        failed = host.event("failed", 1, timeout_s=10)
        assert (failed["reason"], failed["exit_code"]) == ("timeout", -signal.SIGKILL)
        assert "did not open its ports within 1 s" in failed["message"]
        assert gone(pid)


def odd_kernel(way: str, **changes: object) -> dict[str, object]:
    """Give StartParams for a kernel that is odd in this way."""
    program = Path(__file__).with_name("odd_kernel.py")
    return start_params([sys.executable, str(program), "{connection_file}", way], **changes)


@pytest.mark.parametrize("way", ["plain", "mute"])
def test_kernels_of_other_kinds_become_ready(tmp_path: Path, way: str) -> None:
    with Host(tmp_path, odd_kernel(way)) as host:
        ready = host.event("ready")
        assert ready["kernel_info"] == {"implementation": way}
        assert ready["iopub_welcome"] is False
        reply = host.reply(host.request("kernel_info_request", {}))
        assert reply["content"] == {"implementation": way}


@pytest.mark.parametrize(
    ("way", "stage"), [("deaf", "did not answer"), ("liar", "did not open its ports")]
)
def test_kernels_that_cannot_be_used_time_out(tmp_path: Path, way: str, stage: str) -> None:
    with Host(tmp_path, odd_kernel(way, start_timeout_s=2)) as host:
        failed = host.event("failed", 1)
        assert failed["reason"] == "timeout"
        if stage not in failed["message"]:  # a busy machine takes longer to open any ports
            host.call("restart", start=odd_kernel(way, start_timeout_s=10))
            failed = host.event("failed", 2)
            assert failed["reason"] == "timeout"
        assert stage in failed["message"]


def test_flood_without_a_reader_is_bounded_and_keeps_status(tmp_path: Path) -> None:
    with Host(tmp_path, start_params(), buffer_bytes=4 << 20) as host:
        kernel = host.event("ready")["pid"]
        host.run("1")
        over = tmp_path / "over"
        msg_id = host.execute(
            "for i in range(800): print('x' * 100_000, flush=True)\n"
            f"open({str(over)!r}, 'w').close()"
        )
        host.pump(0)
        wait_until(over.exists)  # the host is alive but does not read
        wait_until_still(host.process.pid, kernel)
        host.idle(msg_id)
        assert host.reply(msg_id)["content"]["status"] == "ok"
        dropped = host.event("dropped")
        assert dropped["channel"] == Channel.IOPUB
        text = sum(len(m["content"].get("text", "")) for m in host.replies(msg_id, Channel.IOPUB))
        assert text < 40_000_000

        def accounted() -> bool:
            total = sum(e["bytes"] for e in host.events if e["event"] == "dropped")
            return text + total >= 800 * 100_001

        host.until(accounted, 10)  # what was dropped last may be told after all else
        assert peak_bytes(host.process.pid) < 120 << 20


def wait_until(what: Callable[[], bool], within_s: float = 30) -> None:
    """Look again and again, without a word to the guest."""
    end_s = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < end_s
        time.sleep(0.01)


def wait_until_still(*pids: int) -> None:
    """Wait until none of these has had, or wanted, the processor for a while."""
    looks = 0

    def still() -> bool:
        nonlocal looks
        looks = 0 if any(map(works, pids)) else looks + 1
        return looks == 20

    wait_until(still)


def peak_bytes(pid: int) -> int:
    """Give the most memory that a process ever held."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def test_host_dies_and_another_goes_on_in_the_middle_of_output(tmp_path: Path) -> None:
    with Host(tmp_path, start_params()) as host:
        host.event("ready")
        code = "import time\nfor i in range(400): print(i, flush=True); time.sleep(0.002)"
        msg_id = host.execute(code)
        for _ in range(3):
            seen = len(host.messages[Channel.IOPUB])
            host.until(lambda seen=seen: len(host.messages[Channel.IOPUB]) > seen + 20)
            host.die()
            time.sleep(0.1)
            host.connect()
        host.idle(msg_id)
        assert host.reply(msg_id)["content"]["status"] == "ok"
        text = "".join(m["content"].get("text", "") for m in host.replies(msg_id, Channel.IOPUB))
        # Nothing is lost. What the dead host had read but not acknowledged comes again.
        assert sorted({int(line) for line in text.split()}) == list(range(400))
        assert host.run("1 + 1")["result"] == "2"


@pytest.mark.parametrize("way", ["exit", "term"])
def test_nothing_is_left_afterwards(tmp_path: Path, way: str) -> None:
    with Host(tmp_path, start_params()) as host:
        kernel = host.event("ready")["pid"]
        code = "import subprocess\nsubprocess.Popen(['setsid', 'sleep', '600']).pid"
        escaped = int(host.run(code)["result"])
        if way == "exit":
            host.ask("exit")
            host.pump()
        else:
            host.process.terminate()
        assert host.process.wait(5) == 0
        assert gone(kernel)
        assert gone(escaped)
    assert host.stderr_path.read_text() == ""


def test_unreadable_boot_file_ends_with_a_reason(tmp_path: Path) -> None:
    with Host(tmp_path, {"argv": IPYKERNEL}) as host:
        assert host.process.wait(10) == 64
    assert "cwd" in host.stderr_path.read_text() or "env" in host.stderr_path.read_text()
