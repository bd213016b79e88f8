"""A machine that is short of disk or of memory: sleepers stay as they are, who asks is told, later all is well.

Each test runs in a mount namespace of its own, in which the state folder is a small file system, or
``/proc/meminfo`` tells of little memory. The kernel's sandbox, torpord and the bridge are real.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.runsc,
    pytest.mark.timeout(120),
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts what is short"),
]

HEAD = """
import os, subprocess, sys
from pathlib import Path
sys.path.insert(0, {repo!r})
from torpor.errors import SandboxError
from tests.e2e.cells import run, tell, value
from tests.e2e.sleeping import do, sandbox_pids, snapshots, status, wait
from tests.home import start, stop, torpor_home

CONFIG = '''
c.Torpor.templates = {{"default": {{"freeze_after_s": 0, "hibernate_after_s": 0}}}}
c.TorporDaemon.keep_free_bytes = 0
'''

def mounted(*arguments):
    subprocess.run(["mount", *arguments], check=True)

def fails(verb):
    try:
        do(km, verb)
    except SandboxError as error:
        return error.message
    raise AssertionError(verb + " did not fail")

with torpor_home(CONFIG) as home:
    ws = home / "ws"
    ws.mkdir()
{body}
print("as it should be")
"""

FULL_DISK = """
state = home / "state"
state.mkdir(mode=0o700)
mounted("-t", "tmpfs", "-o", "size=150m,mode=0700", "tmpfs", str(state))

def fill(left_bytes):
    with open(state / "filler", "ab", buffering=0) as file:
        there = os.statvfs(state)
        size = there.f_bavail * there.f_frsize - left_bytes
        try:
            while size > 0:
                size -= file.write(bytes(min(size, 1 << 20)))
        except OSError:
            pass

def free():
    (state / "filler").unlink()

try:
    km, kc = start(ws)
    tell(kc, "n = 0")
    done = 0
    # 0: nothing at all can be written; the others end in the middle of the image, or just after it
    for left_bytes in (0, 4096, 65_536, 1 << 20, 20 << 20, 40 << 20, 45 << 20):
        fill(left_bytes)
        try:
            do(km, "hibernate")
        except SandboxError as error:
            print(left_bytes, error)
            assert "space" in str(error) or "disk" in str(error), error
            assert len(str(error)) < 400, error
            assert status(km) == "running", status(km)
            assert snapshots() == []
        done += 1
        assert value(kc, "(n := n + 1)") == str(done), left_bytes  # whether it slept or not
        free()
    do(km, "hibernate")
    assert not sandbox_pids(home)
    fill(0)
    ran = run(kc, "(n := n + 1)", timeout_s=30)
    print("wake:", ran.reply)
    if ran.error is None:
        done += 1
    else:
        assert "space" in ran.reply["evalue"] or "disk" in ran.reply["evalue"]
        assert status(km) == "hibernated", status(km)
        assert snapshots()
    free()
    assert value(kc, "(n := n + 1)") == str(done + 1)
    do(km, "freeze")
    fill(0)
    assert value(kc, "(n := n + 1)") == str(done + 2)
    stop(km, kc)  # which makes room
    wait(lambda: snapshots() == [], lambda: str(snapshots()))
    free()
finally:
    (state / "filler").unlink(missing_ok=True)
    subprocess.run([sys.executable, "-m", "torpor", "daemon", "stop", "--kernels"])
    print((state / "torpord.log").read_text()[-3000:], file=sys.stderr)
    subprocess.run(["umount", "-l", state], check=True)
"""

LITTLE_MEMORY = """
km, kc = start(ws)
tell(kc, "x = 41")
do(km, "hibernate")
real = Path("/proc/meminfo").read_text().splitlines()
little = home / "meminfo"
told = ["MemAvailable: 65536 kB" if line.startswith("MemAvailable") else line for line in real]
little.write_text("".join(line + chr(10) for line in told))
mounted("--bind", str(little), "/proc/meminfo")
said = fails("wake")
assert "does not fit" in said and "MiB" in said, said
ran = run(kc, "x + 1")
assert ran.error == "WakeFailed", ran.reply
assert "does not fit" in ran.reply["evalue"], ran.reply
assert "close or hibernate other kernels" in ran.reply["evalue"], ran.reply
assert "restart the kernel to start fresh" in ran.reply["traceback"][-1], ran.reply
assert status(km) == "hibernated"
assert not sandbox_pids(home)
[kept] = snapshots()
subprocess.run(["umount", "/proc/meminfo"], check=True)
assert value(kc, "x + 1") == "42"
stop(km, kc)
"""


@pytest.mark.parametrize("body", [FULL_DISK, LITTLE_MEMORY], ids=["disk", "memory"])
def test_nothing_is_lost(body: str) -> None:
    indented = "".join(f"    {line}\n" for line in body.splitlines())
    code = HEAD.format(repo=str(Path(__file__).parents[2]), body=indented)
    ran = subprocess.run(
        ["unshare", "-m", "--propagation", "private", sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    print(ran.stdout)
    assert ran.returncode == 0, ran.stderr[-8000:]
    assert ran.stdout.endswith("as it should be\n")
