"""Whatever is wrong ends in one readable error in the client, within its timeout, and leaves nothing."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from jupyter_client.kernelspec import NoSuchKernel
from jupyter_client.manager import KernelManager

from tests.e2e.cells import run, value
from tests.home import start, torpor_home, write_kernelspec
from tests.world import wait_clean

pytestmark = [pytest.mark.runsc, pytest.mark.timeout(120)]

CONFIG = """
c.Torpor.templates = {
    "quick": {"start_timeout_s": 6},
    "small": {"memory_bytes": "512M"},
}
"""
PYTHON = sys.executable


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A home with a template that gives up soon and one with little memory."""
    with torpor_home(CONFIG) as folder:
        yield folder


def spec_of(
    home: Path, name: str, *, template: str = "quick", argv: list[str] | None = None
) -> str:
    stanza = {"provisioner_name": "torpor-provisioner", "config": {"template": template}}
    changes: dict[str, object] = {"metadata": {"kernel_provisioner": stanza}}
    if argv is not None:
        changes["argv"] = argv
    write_kernelspec(home / "jupyter", name, **changes)
    return name


def refused(kernel_name: str, cwd: Path, home: Path, *, within_s: float = 30) -> str:
    """Start a kernel that cannot start; give the text of the error."""
    km = KernelManager(kernel_name=kernel_name)
    began = time.monotonic()
    with pytest.raises(Exception, match=r"\w") as caught:
        km.start_kernel(cwd=str(cwd))
    assert time.monotonic() - began < within_s
    wait_clean(home)
    text = str(caught.value)
    assert "Traceback" not in text
    assert len(text) < 2000
    return text


def test_unknown_template(home: Path, tmp_path: Path) -> None:
    text = refused(spec_of(home, "t-unknown", template="nope"), tmp_path, home)
    assert "there is no template 'nope'" in text
    assert "quick" in text


def test_missing_kernelspec(home: Path) -> None:
    with pytest.raises(NoSuchKernel):
        KernelManager(kernel_name="no-such-kernel").start_kernel()
    wait_clean(home)


def test_argv_that_exits_at_once(home: Path, tmp_path: Path) -> None:
    code = "import sys; print('the reason it gave', file=sys.stderr); sys.exit(3)"
    spec = spec_of(home, "t-exits", template="default", argv=[PYTHON, "-c", code])
    text = refused(spec, tmp_path, home)
    assert "3" in text
    assert "the reason it gave" in text


def test_argv_that_never_answers(home: Path, tmp_path: Path) -> None:
    argv = [PYTHON, "-c", "import time; time.sleep(1000)"]
    text = refused(spec_of(home, "t-silent", argv=argv), tmp_path, home)
    assert "6" in text


def test_argv_that_does_not_exist(home: Path, tmp_path: Path) -> None:
    argv = ["/nowhere/bin/python", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = spec_of(home, "t-nowhere", template="default", argv=argv)
    text = refused(spec, tmp_path, home)
    assert "/nowhere/bin/python" in text


def test_workspace_that_does_not_exist(home: Path, tmp_path: Path) -> None:
    text = refused(spec_of(home, "t-cwd"), tmp_path / "gone", home)
    assert "gone" in text


def test_home_folder_is_never_shared(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (Path.home() / ".torpor-test-secret").touch()
    try:
        km, kc = start(Path.home(), kernel_name=spec_of(home, "t-home", template="default"))
        try:
            assert ".torpor-test-secret" not in value(kc, "import os; os.listdir('.')")
        finally:
            kc.stop_channels()
            km.shutdown_kernel(now=True)
    finally:
        (Path.home() / ".torpor-test-secret").unlink()
    wait_clean(home)


def test_too_much_memory_is_a_clear_end(home: Path, tmp_path: Path) -> None:
    km, kc = start(tmp_path, kernel_name=spec_of(home, "t-small", template="small"))
    try:
        ran = run(kc, "x = bytearray(3 << 30)", timeout_s=60)
        assert ran.error == "MemoryError"
        assert value(kc, "'still here'") == "'still here'"
    finally:
        kc.stop_channels()
        km.shutdown_kernel(now=True)
    wait_clean(home)


def test_full_private_disk_is_an_ordinary_error(home: Path, tmp_path: Path) -> None:
    km, kc = start(tmp_path, kernel_name=spec_of(home, "t-disk", template="default"))
    try:
        code = "import os\nwith open('/tmp/big', 'wb') as f:\n    for _ in range(1200): f.write(bytes(1 << 20))"
        ran = run(kc, code, timeout_s=90)
        assert ran.error == "OSError"
        assert "No space left" in ran.reply["evalue"]
    finally:
        kc.stop_channels()
        km.shutdown_kernel(now=True)
    wait_clean(home)


def test_no_runsc(tmp_path: Path) -> None:
    with torpor_home(TORPOR_RUNSC="/nowhere/runsc") as folder:
        text = refused("sandboxed", tmp_path, folder)
        assert "/nowhere/runsc" in text
        assert "install-runsc" in text or "TORPOR_RUNSC" in text


def test_too_old_runsc(tmp_path: Path) -> None:
    old = tmp_path / "runsc"
    old.write_text("#!/bin/sh\necho 'runsc version release-20240729.0'\necho 'spec: 1.1.0-rc.1'\n")
    old.chmod(old.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    with torpor_home(TORPOR_RUNSC=str(old)) as folder:
        text = refused("sandboxed", tmp_path, folder)
        assert "20240729" in text
        assert "install-runsc" in text


INSIDE = """
import sys
from pathlib import Path
sys.path.insert(0, {repo!r})
from tests.home import torpor_home
from jupyter_client.manager import KernelManager
import os
with torpor_home() as home:
    {before}
    ws = str(home / "ws")
    os.mkdir(ws)
    try:
        KernelManager(kernel_name="sandboxed").start_kernel(cwd=ws)
    except Exception as e:
        print("REFUSED", str(e).replace(chr(10), " "))
    else:
        print("STARTED")
    {after}
"""


def in_namespace(flags: str, setup: str, before: str = "pass", after: str = "pass") -> str:
    """Start a kernel in a private namespace prepared by ``setup``; give what happened."""
    repo = str(Path(__file__).parents[2])
    code = INSIDE.format(repo=repo, before=before, after=after)
    ran = subprocess.run(
        ["unshare", *flags.split(), "sh", "-c", f'{setup} && exec "$0" -c "$1"', PYTHON, code],
        capture_output=True,
        text=True,
        timeout=100,
        env=dict(os.environ),
        check=False,
    )
    lines = [x for x in ran.stdout.splitlines() if x.startswith(("REFUSED", "STARTED"))]
    assert lines, ran.stdout + ran.stderr
    return lines[-1]


def test_no_user_namespaces() -> None:
    text = in_namespace("-Urm", "echo 0 > /proc/sys/user/max_user_namespaces")
    assert text.startswith("REFUSED")
    assert "user namespace" in text


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a small file system")
def test_full_disk() -> None:
    before = (
        "import subprocess; os.makedirs(home / 'state', mode=0o700); "
        "subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=300k,mode=0700', 'tmpfs', home / 'state'], check=True); "
        "(home / 'state' / 'filler').write_bytes(bytes(230_000))"
    )
    after = (
        "subprocess.run([sys.executable, '-m', 'torpor', 'daemon', 'stop', '--kernels']);"
        " subprocess.run(['umount', '-l', home / 'state'])"
    )
    text = in_namespace("-m", "true", before, after)
    assert text.startswith("REFUSED")
    assert "No space left" in text or "disk" in text
