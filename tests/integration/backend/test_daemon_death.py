"""kill -9 of the daemon at every step of a start: the next daemon finds all of it and removes it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torpor.backends.local import LocalBackend
from torpor.backends.local_layout import Layout

from tests.integration.backend.world import LocalSubject

pytestmark = pytest.mark.runsc

DAEMON = Path(__file__).with_name("dying_daemon.py")


@pytest.mark.parametrize("step", [*LocalBackend.STEPS, "running"])
async def test_the_next_daemon_destroys_what_a_dead_one_left(
    subject: LocalSubject, step: str
) -> None:
    daemon = subprocess.Popen(  # noqa: ASYNC220 - nothing else runs meanwhile
        [sys.executable, str(DAEMON), str(subject.folder), str(subject.runsc), step],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert daemon.stdout is not None
    assert daemon.stdout.readline().decode().strip() == step
    daemon.kill()
    daemon.wait()
    daemon.stdout.close()
    spec, backend = subject.spec(step), subject.backend()
    handle = Layout(spec.directory).read_record()
    assert (handle is not None) == (step in ("go", "running"))
    if handle is not None and step == "running":
        assert await backend.alive(handle)
        waiting = asyncio.create_task(backend.exited(handle))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        await backend.destroy(spec.sandbox_id, spec.directory)
        async with asyncio.timeout(5):
            await waiting
    await backend.destroy(spec.sandbox_id, spec.directory)
    assert subject.leftovers() == []


async def test_a_process_that_waits_for_go_ends_with_its_daemon(subject: LocalSubject) -> None:
    daemon = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, str(DAEMON), str(subject.folder), str(subject.runsc), "go"],
        stdout=subprocess.PIPE,
    )
    assert daemon.stdout is not None
    assert daemon.stdout.readline() == b"go\n"
    spec, backend = subject.spec("go"), subject.backend()
    handle = Layout(spec.directory).read_record()
    assert handle is not None
    assert await backend.alive(handle)
    daemon.kill()
    daemon.wait()
    daemon.stdout.close()
    async with asyncio.timeout(5):
        await backend.exited(handle)
    await backend.destroy(spec.sandbox_id, spec.directory)
    assert subject.leftovers() == []
