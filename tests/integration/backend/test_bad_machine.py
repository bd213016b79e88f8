"""Machines and requests that cannot work: one readable error each, and nothing left."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from torpor.errors import ConfigError, LaunchError
from torpor.runsc.launcher import syscalls

from tests.integration.backend.world import LocalSubject

pytestmark = pytest.mark.runsc

IS_ROOT = os.geteuid() == 0


async def _refusal(subject: LocalSubject, backend_changes: dict[str, object]) -> LaunchError:
    backend, spec = replace(subject.backend(), **backend_changes), subject.spec()

    async def launch() -> None:
        await backend.prepare(spec)
        await backend.start(spec)

    try:
        with pytest.raises(LaunchError) as caught:
            await launch()
    finally:
        await backend.destroy(spec.sandbox_id, spec.directory)
    assert subject.leftovers() == []
    return caught.value


async def test_no_runsc(subject: LocalSubject) -> None:
    error = await _refusal(subject, {"runsc": Path("/nonexistent/runsc")})
    assert "/nonexistent/runsc" in error.message
    assert "torpor install-runsc" in error.hint


@pytest.mark.parametrize(("mode", "text"), [(0o644, "#!/bin/sh\n"), (0o755, "not a program")])
async def test_runsc_that_is_none(subject: LocalSubject, mode: int, text: str) -> None:
    runsc = subject.folder / "runsc"
    runsc.write_text(text)
    runsc.chmod(mode)
    error = await _refusal(subject, {"runsc": runsc})
    assert "torpor install-runsc" in error.hint


async def test_unreadable_workspace(subject: LocalSubject) -> None:
    missing = subject.folder / "missing"
    with pytest.raises(ConfigError, match=str(missing)):
        await subject.backend().prepare(subject.spec(workspace=missing))
    if not IS_ROOT:  # root may read everything
        closed = subject.folder / "closed"
        closed.mkdir(mode=0o000)
        with pytest.raises(ConfigError, match="cannot be read"):
            await subject.backend().prepare(subject.spec(workspace=closed))
    assert subject.leftovers() == []


@pytest.fixture
def tiny_disk(subject: LocalSubject) -> Iterator[None]:
    """Let the sandboxes' folder be a file system with room for folders and FIFOs but for no file."""
    if not IS_ROOT:
        pytest.skip("only root can mount a file system that is full")
    folder = subject.folder / "k"
    folder.mkdir()
    syscalls.mount("tiny", str(folder), "tmpfs", 0, "size=4k,nr_inodes=20")
    (folder / "ballast").write_bytes(bytes(4096))
    yield
    syscalls.unmount(str(folder))


@pytest.mark.usefixtures("tiny_disk")
async def test_full_disk(subject: LocalSubject) -> None:
    spec = subject.spec()
    with pytest.raises(LaunchError, match="No space left") as caught:
        await subject.backend().prepare(spec)
    assert "free some space" in caught.value.hint
    assert not spec.directory.exists()


async def test_all_uids_in_use(subject: LocalSubject) -> None:
    slots = subject.backend().slots
    if slots is None:
        pytest.skip("sandboxes have no uids of their own here")
    error = await _refusal(subject, {"slots": replace(slots, count=0)})
    assert "uids are in use" in error.message


async def test_a_cgroup_that_cannot_be_made(subject: LocalSubject) -> None:
    cgroups = subject.backend().cgroups
    if not cgroups.hierarchies:
        pytest.skip("no cgroups to be had here")
    broken = replace(cgroups.hierarchies[0], base="/proc/nowhere")
    error = await _refusal(subject, {"cgroups": replace(cgroups, hierarchies=(broken,))})
    assert error.message


NO_NAMESPACES = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {repository!r})
from torpor.errors import LaunchError
from tests.integration.backend.world import LocalSubject
Path("/proc/sys/user/max_user_namespaces").write_text("0")
subject = LocalSubject(Path({folder!r}), Path({runsc!r}))
async def main():
    backend, spec = subject.backend(), subject.spec()
    await backend.prepare(spec)
    try:
        await backend.start(spec)
    except LaunchError as exc:
        print(exc.hint)
    await backend.destroy(spec.sandbox_id, spec.directory)
    print(subject.leftovers())
asyncio.run(main())
"""


def test_no_user_namespaces(subject: LocalSubject) -> None:
    source = NO_NAMESPACES.format(
        repository=str(Path(__file__).parents[3]),
        folder=str(subject.folder),
        runsc=str(subject.runsc),
    )
    # The limit is set in a user namespace of the test's own, where it does not reach the machine.
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", sys.executable, "-c", source],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    hint, leftovers = done.stdout.splitlines() or [done.stderr, ""]
    assert "max_user_namespaces" in hint
    assert leftovers == "[]"
