"""The same guest as PID 1 under a real runsc, also across a checkpoint and a restore."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torpor.link import Channel

from tests.home import find_runsc
from tests.integration.guest.harness import Host, sandbox_tree, start_params

pytestmark = [
    pytest.mark.runsc,
    pytest.mark.skipif(os.getuid() != 0, reason="an ordinary user's sandboxes are the backend's"),
]
_FLAGS = ("--network=none", "--ignore-cgroups", "--platform=systrap", "--host-uds=none")
_GUEST = "/opt/torpor/torpor_guest"


def bundle(folder: Path, boot: Path) -> Path:
    """Make an OCI bundle: the host's /usr and this Python, read-only, and nothing writable but /tmp."""
    code = sandbox_tree(folder / "code")
    root = folder / "rootfs"
    for name in ("bin", "sbin", "lib", "lib64"):
        root.mkdir(exist_ok=True)
        (root / name).symlink_to(f"usr/{name}")
    binds = {"/usr": "/usr", _GUEST: str(code.resolve()), "/run/torpor/boot.json": str(boot)}
    binds["/opt/torpor/torpor/link"] = str((code.parent / "torpor" / "link").resolve())
    for prefix in {sys.prefix, sys.base_prefix} - {"/usr"}:
        binds[prefix] = prefix
    mounts: list[dict[str, Any]] = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
    ]
    for at, source in binds.items():
        mounts.append(
            {"destination": at, "type": "bind", "source": source, "options": ["rbind", "ro"]}
        )
    process = {
        "user": {"uid": 1000, "gid": 1000},
        "args": [sys.executable, "-I", "-B", "-S", _GUEST, "/run/torpor/boot.json"],
        "env": ["LANG=C.UTF-8"],
        "cwd": "/",
        "noNewPrivileges": True,
        "capabilities": {},
    }
    spaces = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")]
    config = {
        "ociVersion": "1.0.0",
        "process": process,
        "root": {"path": str(root), "readonly": True},
        "mounts": mounts,
        "linux": {"namespaces": spaces},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


class Sandboxed(Host):
    """A Host whose guest runs in a sandbox."""

    runsc: str

    def runsc_argv(self, *words: str) -> list[str]:
        return [self.runsc, "--root", str(self._folder / "state"), *_FLAGS, *words]

    def _spawn(self) -> subprocess.Popen[bytes]:
        (self._folder / "bundle").mkdir()
        boot = self._folder / "boot.json"
        boot.chmod(0o644)
        bundle(self._folder / "bundle", boot)
        return self.launch("run", "--bundle", str(self._folder / "bundle"), "one")

    def launch(self, *words: str) -> subprocess.Popen[bytes]:
        fds = [os.open(self._folder / name, os.O_RDWR) for name in ("to_guest", "from_guest")]
        try:
            with self.stderr_path.open("ab") as stderr:
                return subprocess.Popen(
                    self.runsc_argv(*words), stdin=fds[0], stdout=fds[1], stderr=stderr
                )
        finally:
            for fd in fds:
                os.close(fd)

    def runsc_run(self, *words: str) -> None:
        subprocess.run(self.runsc_argv(*words), check=True, capture_output=True, timeout=60)


@pytest.fixture
def sandboxed(tmp_path: Path) -> Iterator[Sandboxed]:
    runsc = find_runsc()
    if runsc is None:
        if os.environ.get("REQUIRE_RUNSC") == "1":
            pytest.fail("REQUIRE_RUNSC=1 and no runsc")
        pytest.skip("no runsc")
    Sandboxed.runsc = str(runsc)
    (tmp_path / "state").mkdir()
    params = start_params(cwd="/tmp", env={"PATH": "/usr/bin:/bin", "HOME": "/tmp"})
    with Sandboxed(tmp_path, params) as host:
        try:
            yield host
        finally:
            subprocess.run(host.runsc_argv("delete", "--force", "one"), capture_output=True)
            place = tmp_path / "state/null-netns"  # runsc keeps it mounted for its next sandbox
            if place.exists():
                subprocess.run(["umount", str(place)], check=True)
            assert str(place) not in Path("/proc/mounts").read_text()


def test_a_kernel_lives_in_a_sandbox(sandboxed: Sandboxed) -> None:
    host = sandboxed
    assert host.event("booted")["pid"] == 1
    assert host.event("ready", timeout_s=60)["iopub_welcome"] is True
    assert host.run("6 * 7")["result"] == "42"
    code = (
        "import os\n"
        "for name in ('fd/0', 'fd/1', 'mem', 'environ', 'maps'):\n"
        "    try: os.open('/proc/1/' + name, os.O_RDONLY); print(name, 'OPENED')\n"
        "    except OSError: print(name, 'refused')\n"
        "told, tell = os.pipe()\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    if os.fork() == 0:\n"
        "        os.write(tell, b'%d' % os.getpid())\n"
        "        os.execvp('sleep', ['sleep', '0.1'])\n"
        "    os._exit(0)\n"
        "os.waitpid(pid, 0)\n"
        "orphan = int(os.read(told, 20))\n"
    )
    text = host.run(code)["text"]
    assert text.count("refused") == 5
    code = (
        "import glob\n"
        "zombies = [s for s in (open(p).read() for p in glob.glob('/proc/[0-9]*/stat')) if ') Z' in s]\n"
        "print(os.path.exists(f'/proc/{orphan}'), zombies)"
    )
    end_s = time.monotonic() + 10
    while (left := host.run(code)["text"]) != "False []\n" and time.monotonic() < end_s:
        time.sleep(0.05)
    assert left == "False []\n"
    msg_id = host.execute("print('on', flush=True)\nimport time; time.sleep(60)")
    host.until(lambda: len(host.replies(msg_id, Channel.IOPUB)) >= 3)
    host.call("signal", signum=signal.SIGINT)
    assert host.reply(msg_id)["content"]["ename"] == "KeyboardInterrupt"
    host.idle(msg_id)
    assert host.call("restart")["result"]["generation"] == 2
    host.event("ready", 2, timeout_s=60)
    assert host.run("1 + 1")["result"] == "2"
    host.ask("exit")
    host.pump()
    assert host.process.wait(10) == 0


def test_guest_and_kernel_live_on_after_a_restore(sandboxed: Sandboxed) -> None:
    host = sandboxed
    host.event("ready", timeout_s=60)
    host.run("x = 41")
    image = host._folder / "image"
    host.runsc_run("checkpoint", "--compression=none", f"--image-path={image}", "one")
    host.process.wait(30)
    host.runsc_run("delete", "--force", "one")
    host.die()
    host.connect()
    host.process = host.launch(
        "restore", "--bundle", str(host._folder / "bundle"), f"--image-path={image}", "one"
    )
    assert host.call("status")["result"]["state"] == "ready"
    assert host.run("x + 1")["result"] == "42"
    time.sleep(0.2)
    assert host.run("print('again')")["text"] == "again\n"
    assert not [event for event in host.events if event.get("beating") is False]
    assert host.call("restart")["result"]["generation"] == 2
    host.event("ready", 2, timeout_s=60)
