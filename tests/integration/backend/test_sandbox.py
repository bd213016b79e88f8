"""What a sandbox of the local backend sees, may do, and looks like from the host."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from torpor.backends.local_slots import FIRST_UID
from torpor.runsc.family import family
from torpor.runsc.launcher import syscalls
from torpor.template import MIB, Template, WorkspaceMode

from tests.integration.backend.world import LocalSubject, Sandbox, running

pytestmark = pytest.mark.runsc

IS_ROOT = os.geteuid() == 0
WRITE = "open({path!r}, 'w').write('x'); answer = os.stat({path!r}).st_uid"


def _status_field(pid: int, name: str) -> str:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return line.partition(":")[2].strip()
    raise KeyError(name)


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "data.txt").write_text("host")
    return folder


async def _refused(sandbox: Sandbox, source: str, why: str) -> None:
    with pytest.raises(RuntimeError, match=why):
        await sandbox.run(source)


async def test_inside_it_is_powerless(subject: LocalSubject) -> None:
    async with running(subject, subject.spec()) as sandbox:
        status = await sandbox.run("answer = open('/proc/self/status').read()")
        for line in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"):
            assert f"{line}:\t0000000000000000" in status
        assert "NoNewPrivs:\t1" in status
        dmesg = "import subprocess; answer = subprocess.run(['dmesg'], capture_output=True, text=True).stdout"
        assert "Starting gVisor" in await sandbox.run(dmesg)
        assert await sandbox.run(
            "answer = open('/proc/gvisor/kernel_is_gvisor').read() is not None"
        )
        await _refused(sandbox, "os.chroot('/tmp')", "PermissionError")
        await _refused(
            sandbox, "os.mknod('/tmp/n', 0o20666, os.makedev(1, 1)); open('/tmp/n')", "Error"
        )


async def test_inside_there_is_nothing_of_the_host_but_programs(subject: LocalSubject) -> None:
    secret = subject.folder / "secret"
    secret.write_text("x")
    async with running(subject, subject.spec()) as sandbox:
        names = await sandbox.run("answer = open('/etc/passwd').read()")
        assert names.startswith("sandbox:x:0:0:")
        assert await sandbox.run("answer = open('/etc/resolv.conf').read()") == ""
        for path in ("/etc/shadow", str(secret), str(subject.folder / "k"), "/var/log", "/boot"):
            assert not await sandbox.run(f"answer = os.path.exists({path!r})"), path
        assert await sandbox.run(
            "answer = os.path.samefile('/bin', '/usr/bin')"
        ) == os.path.samefile("/bin", "/usr/bin")
        for path in ("/usr/x", "/etc/x", "/x", sys.prefix + "/x", "/proc/sys/kernel/hostname"):
            await _refused(sandbox, WRITE.format(path=path), r"Permission|Read-only|Errno")
        devices = set(await sandbox.run("answer = os.listdir('/dev')"))
        allowed = (
            "fd stdin stdout stderr ptmx pts shm full char random urandom tty net fuse null zero"
        )
        assert devices <= set(allowed.split())


async def test_there_is_no_network(subject: LocalSubject) -> None:
    connect = (
        "import socket; s = socket.socket(); s.settimeout(2); answer = s.connect_ex(({!r}, 80))"
    )
    async with running(subject, subject.spec()) as sandbox:
        for address in ("169.254.169.254", "10.0.0.1", "8.8.8.8"):
            assert await sandbox.run(connect.format(address)) != 0
        interfaces = "import socket; answer = [name for _, name in socket.if_nameindex()]"
        assert await sandbox.run(interfaces) == ["lo"]
        raw = "import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)"
        await _refused(sandbox, raw, "PermissionError")


async def test_from_outside_it_is_powerless_too(subject: LocalSubject) -> None:
    other = running(subject, subject.spec("b"), alone=False)
    async with running(subject, subject.spec("a")) as one, other as two:
        pid = one.handle.pid
        for kind in ("user", "mnt", "pid", "net", "ipc", "uts"):
            own, theirs = (os.readlink(f"/proc/{each}/ns/{kind}") for each in ("self", pid))
            # A process is outside its pid namespace's view of itself; its children are in it.
            assert own != theirs or kind == "pid", kind
        assert _status_field(pid, "NSpid").split()[-1] == "1"
        assert _status_field(pid, "NoNewPrivs") == "1"
        assert set(_status_field(pid, "Uid").split()) == {str(one.handle.uid)}
        if IS_ROOT:
            assert one.handle.uid >= FIRST_UID
            assert one.handle.uid != two.handle.uid
            assert _status_field(pid, "Groups") == ""
        else:
            assert one.handle.uid == os.geteuid()
        root = set(os.listdir(f"/proc/{pid}/root"))
        assert root <= set(
            ["bundle", "dev", "etc", "log", "m", "proc", "rootfs", "run", "runsc", "save", "tmp"]
        )


async def test_workspace_read_write_belongs_to_its_owner(
    subject: LocalSubject, workspace: Path
) -> None:
    owner = (4242, 4343) if IS_ROOT else (os.getuid(), os.getgid())
    for path in (workspace, workspace / "data.txt"):
        os.chown(path, *owner)
    workspace.chmod(0o700)
    spec = subject.spec(workspace=workspace, cwd=str(workspace))
    assert subject.backend().start_params(spec)["cwd"] == str(workspace)
    async with running(subject, spec) as sandbox:
        assert (sandbox.handle.workspace, sandbox.handle.workspace_mode) == (str(workspace), "rw")
        new = workspace / "new" / "x"
        assert await sandbox.run(f"os.mkdir({str(new.parent)!r})") is None
        assert await sandbox.run(WRITE.format(path=str(new))) == 0
        await sandbox.run(f"open({str(workspace / 'data.txt')!r}, 'a').write('!')")
        for path in (new, new.parent):
            assert (path.stat().st_uid, path.stat().st_gid) == owner
        assert (workspace / "data.txt").read_text() == "host!"
        (workspace / "late.txt").write_text("from the host")
        (workspace / "late.txt").chmod(0o644)
        read = f"answer = open({str(workspace / 'late.txt')!r}).read()"
        assert await sandbox.run(read) == "from the host"


async def test_workspace_read_only(subject: LocalSubject, workspace: Path) -> None:
    template = Template(workspace=WorkspaceMode.READ_ONLY)
    async with running(subject, subject.spec(workspace=workspace, template=template)) as sandbox:
        assert await sandbox.run(f"answer = open({str(workspace / 'data.txt')!r}).read()") == "host"
        await _refused(sandbox, WRITE.format(path=str(workspace / "new")), "Read-only")
        await _refused(sandbox, f"os.unlink({str(workspace / 'data.txt')!r})", "Read-only")


async def test_workspace_overlay_keeps_changes_inside(
    subject: LocalSubject, workspace: Path
) -> None:
    template = Template(workspace=WorkspaceMode.OVERLAY)
    async with running(subject, subject.spec(workspace=workspace, template=template)) as sandbox:
        path = str(workspace / "data.txt")
        await sandbox.run(WRITE.format(path=path))
        await sandbox.run(WRITE.format(path=str(workspace / "new")))
        assert await sandbox.run(f"answer = open({path!r}).read()") == "x"
    assert os.listdir(workspace) == ["data.txt"]
    assert (workspace / "data.txt").read_text() == "host"


async def test_workspace_none(subject: LocalSubject, workspace: Path) -> None:
    template = Template(workspace=WorkspaceMode.NONE)
    spec = subject.spec(workspace=workspace, cwd=str(workspace), template=template)
    assert subject.backend().start_params(spec)["cwd"] == "/home/sandbox"
    async with running(subject, spec) as sandbox:
        assert sandbox.handle.workspace is None
        assert not await sandbox.run(f"answer = os.path.exists({str(workspace)!r})")


async def test_home_as_workspace_is_not_shown(subject: LocalSubject) -> None:
    async with running(subject, subject.spec(workspace=Path.home())) as sandbox:
        assert sandbox.handle.workspace_mode == "none"
        assert "home folder" in sandbox.handle.workspace_reason


async def test_environment_in_the_workspace_cannot_be_changed_but_grows_with_the_host(
    subject: LocalSubject, workspace: Path
) -> None:
    venv = _fake_venv(workspace / ".venv")
    packages = venv / "lib/python3.11/site-packages"
    spec = subject.spec(workspace=workspace, argv=(str(venv / "bin/python"), "x"))
    async with running(subject, spec) as sandbox:
        await sandbox.run(WRITE.format(path=str(workspace / "new")))
        for path in (venv / "bin/evil", venv / "pyvenv.cfg", packages / "evil.py"):
            await _refused(sandbox, WRITE.format(path=str(path)), "Read-only")
        await _refused(sandbox, f"os.rename({str(venv)!r}, {str(venv) + '2'!r})", "Error")
        assert not await sandbox.run(f"answer = os.path.exists({str(packages / 'later.py')!r})")
        (packages / "later.py").write_text("")
        assert await sandbox.run(f"answer = os.path.exists({str(packages / 'later.py')!r})")


async def test_torpor_itself_is_hidden_in_the_workspace(subject: LocalSubject) -> None:
    async with running(subject, subject.spec(workspace=subject.folder)) as sandbox:
        hidden = str(subject.folder / "k")
        assert await sandbox.run(f"answer = os.listdir({hidden!r})") == []
        await _refused(sandbox, WRITE.format(path=f"{hidden}/x"), "Error")


async def test_private_folders_have_sizes(subject: LocalSubject) -> None:
    template = Template(tmp_bytes=MIB, home_bytes=2 * MIB, shm_bytes=3 * MIB)
    fill = "open({!r}, 'wb').write(bytes({}))"
    async with running(subject, subject.spec(template=template)) as sandbox:
        for folder, size in (("/tmp", MIB), ("/home/sandbox", 2 * MIB), ("/dev/shm", 3 * MIB)):
            await sandbox.run(fill.format(f"{folder}/fits", size // 2))
            await _refused(sandbox, fill.format(f"{folder}/not", size), "No space left")


async def test_limits_of_a_process(subject: LocalSubject) -> None:
    template = Template(memory_bytes=512 * MIB, pids=40, open_files=256)
    forks = """
import time
answer = 0
try:
    while answer < 60:
        if os.fork() == 0:
            time.sleep(60); os._exit(0)
        answer += 1
except BlockingIOError:
    pass
"""
    async with running(subject, subject.spec(template=template)) as sandbox:
        await _refused(sandbox, "bytearray(1600 << 20)", "MemoryError")
        await _refused(sandbox, "files = [open('/dev/null') for _ in range(300)]", "Too many open")
        assert await sandbox.run(forks) < 40


async def test_running_out_of_memory_is_explained(subject: LocalSubject) -> None:
    if "memory" not in subject.backend().cgroups.controllers:
        pytest.skip("no memory cgroup to be had here")
    template = Template(memory_bytes=256 * MIB)
    async with running(subject, subject.spec(template=template)) as sandbox:
        sandbox.send("data = [open(f'/tmp/{n}', 'wb').write(bytes(1 << 24)) for n in range(30)]")
        assert (await sandbox.exited()).reason == "out of memory (limit 256.0 MiB)"


async def test_the_end_is_told(subject: LocalSubject) -> None:
    async with running(subject, subject.spec("quit")) as sandbox:
        sandbox.send("os._exit(3)")
        assert (await sandbox.exited()).reason is None
    async with running(subject, subject.spec("killed")) as sandbox:
        subject.crash(sandbox.handle)
        assert (await sandbox.exited()).reason == "its process was killed by signal 9"


async def test_runsc_that_refuses_says_why(subject: LocalSubject) -> None:
    backend = subject.backend()
    backend = replace(backend, guest=replace(backend.guest, argv=("/nonexistent/guest",)))
    spec = subject.spec()
    await backend.prepare(spec)
    handle = await backend.start(spec)
    reason = (await backend.exited(handle)).reason
    await backend.destroy(spec.sandbox_id, spec.directory)
    assert reason is not None
    assert "/nonexistent/guest" in reason
    assert subject.leftovers() == []


def _fake_venv(folder: Path) -> Path:
    """Make what a virtual environment looks like, around this very interpreter."""
    (folder / "bin").mkdir(parents=True)
    (folder / "lib/python3.11/site-packages").mkdir(parents=True)
    base = Path(sys.executable).resolve()
    (folder / "bin/python").symlink_to(base)
    (folder / "pyvenv.cfg").write_text(f"home = {base.parent}\n")
    return folder


async def test_set_uid_programs_cannot_be_left_in_the_workspace(
    subject: LocalSubject, workspace: Path
) -> None:
    async with running(subject, subject.spec(workspace=workspace)) as sandbox:
        await sandbox.run("os.umask(0)")
        path = str(workspace / "data.txt")
        for mode in (0o4755, 0o2755, 0o6755):
            new = f"{path}-{mode}"
            for call in (
                f"os.chmod({path!r}, {mode})",  # gVisor keeps the host's refusal to itself
                f"os.mkdir({new + 'd'!r}, {mode})",
                f"os.mkfifo({new + 'f'!r}, {mode})",
                f"os.open({new!r}, os.O_CREAT | os.O_WRONLY, {mode})",
                f"os.chmod({new!r}, {mode})",
            ):
                await sandbox.run(f"try: {call}\nexcept OSError: pass")
        await sandbox.run(f"os.chmod({path!r}, 0o1755)")
        modes = {each.name: each.lstat().st_mode for each in workspace.iterdir()}
        assert modes["data.txt"] & 0o7777 == 0o1755
        assert not [name for name, mode in modes.items() if mode & 0o6000]
        # In private folders it would be of no use to anybody.
        await sandbox.run("open('/tmp/own', 'w').close(); os.chmod('/tmp/own', 0o4755)")


@pytest.mark.skipif(not IS_ROOT, reason="only root can mount an overlay, and needs owners mapped")
async def test_workspace_whose_owner_cannot_be_mapped_is_read_only(
    subject: LocalSubject, workspace: Path
) -> None:
    folders = [subject.folder / name for name in ("upper", "lower")]
    for each in (*folders, subject.folder / "scratch"):
        each.mkdir()
    options = f"lowerdir={folders[1]},upperdir={folders[0]},workdir={subject.folder}/scratch"
    syscalls.mount("overlay", str(workspace), "overlay", 0, options)
    try:
        (workspace / "seen.txt").write_text("yes")
        spec = subject.spec(workspace=workspace)
        async with running(subject, spec, alone=False) as sandbox:
            assert sandbox.handle.workspace_mode == "ro"
            assert "cannot map owners" in sandbox.handle.workspace_reason
            seen = f"answer = open({str(workspace / 'seen.txt')!r}).read()"
            assert await sandbox.run(seen) == "yes"
            await _refused(
                sandbox, WRITE.format(path=str(workspace / "new")), "Permission|Read-only"
            )
    finally:
        syscalls.unmount(str(workspace))
    assert subject.leftovers() == []


async def test_workspace_below_a_folder_that_is_a_link_in_sandboxes(subject: LocalSubject) -> None:
    with tempfile.TemporaryDirectory(prefix="torpor-ws-", dir="/var/tmp") as folder:
        (Path(folder) / "data.txt").write_text("found")
        spec = subject.spec(workspace=Path(folder), cwd=folder)
        async with running(subject, spec) as sandbox:
            read = f"answer = open({folder + '/data.txt'!r}).read()"
            assert await sandbox.run(read) == "found"


@pytest.mark.skipif(not IS_ROOT, reason="an ordinary user has no cgroups to give")
async def test_all_of_it_is_in_its_cgroups(subject: LocalSubject) -> None:
    if not subject.backend().cgroups.hierarchies:
        pytest.skip("no cgroups to be had here")
    async with running(subject, subject.spec()) as sandbox:

        def outside() -> list[tuple[str, int]]:
            pids = [each.pid for each in family(sandbox.handle.pid)]
            assert len(pids) > 3
            found = []
            for folder in sandbox.handle.cgroups:
                within = {int(each) for each in (Path(folder) / "cgroup.procs").read_text().split()}
                found += [(folder, pid) for pid in pids if pid not in within]
            return found

        for _ in range(100):  # one may have ended between the two looks
            if not (found := outside()):
                break
            await asyncio.sleep(0.05)
        assert not found


async def test_runsc_has_room_for_descriptors_to_give_to_the_sentry(subject: LocalSubject) -> None:
    async with running(subject, subject.spec()) as sandbox:

        def sentries() -> list[int]:
            pids = [each.pid for each in family(sandbox.handle.pid)]
            return [pid for pid in pids if b"runsc-sandbox\0" in _command(pid)]

        for _ in range(100):  # some have just ended, or become another program
            if len(found := sentries()) == 1:
                break
            await asyncio.sleep(0.05)
        [sentry] = found
        first, last = (Path(f"/proc/{pid}/fd") for pid in (sandbox.handle.pid, sentry))
        assert os.readlink(first / "252") == "anon_inode:[eventfd]"
        assert not (last / "252").is_symlink(), "it is of no use there"
        assert (last / "255").is_symlink()
