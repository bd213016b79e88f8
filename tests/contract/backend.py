"""What holds for every backend: one suite, run on the fake and on every real one.

A subclass gives the ``subject`` fixture. Nothing here asks which method was called, only what is left.
"""

from __future__ import annotations

import asyncio
import json
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torpor.backends.base import FROM_GUEST, GUEST_STDERR, TO_GUEST, Backend, Handle, SandboxSpec
from torpor.errors import ConfigError, LaunchError, SandboxGone
from torpor.template import Template


class Subject(ABC):
    """One kind of backend under test, in a world of its own below ``folder``."""

    steps: Sequence[str]
    prepare_steps: Sequence[str]

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def backend(self, *, fail_at: str = "", hang_at: str = "") -> Backend:
        """Give a new instance, as after a restart of the daemon, that sees the same world."""

    @abstractmethod
    def leftovers(self, *, settle: bool = True) -> list[str]:
        """Give what exists in the world and should not once everything was destroyed.

        With ``settle`` it may look again for a moment before it says that something is left.
        """

    @abstractmethod
    def crash(self, handle: Handle) -> None:
        """End the sandbox behind the backend's back."""

    def spec(self, sandbox_id: str = "s1", **changes: Any) -> SandboxSpec:
        """Give a request whose kernel does not matter."""
        spec = SandboxSpec(
            sandbox_id=f"{sandbox_id}-{self.folder.name}",
            template=Template(),
            argv=("/bin/cat",),
            env={"A": "1"},
            cwd=str(self.folder),
            workspace=None,
            key="0123456789abcdef",
            directory=self.folder / "k" / sandbox_id,
            kernel_name="test",
            start_timeout_s=20.0,
        )
        return replace(spec, **changes)


async def _started(backend: Backend, spec: SandboxSpec) -> Handle:
    await backend.prepare(spec)
    return await backend.start(spec)


class BackendContract:
    """The promises of `torpor.backends.base.Backend`."""

    async def test_prepare_makes_a_private_folder_with_three_fifos(self, subject: Subject) -> None:
        backend, spec = subject.backend(), subject.spec()
        await backend.prepare(spec)
        assert stat.S_IMODE(spec.directory.stat().st_mode) == 0o700
        for name in (TO_GUEST, FROM_GUEST, GUEST_STDERR):
            mode = (spec.directory / name).stat().st_mode
            assert stat.S_ISFIFO(mode)
            assert stat.S_IMODE(mode) == 0o600
        await backend.destroy(spec.sandbox_id, spec.directory)
        assert subject.leftovers() == []

    async def test_start_gives_a_handle_that_survives_json(self, subject: Subject) -> None:
        backend, spec = subject.backend(), subject.spec()
        handle = await _started(backend, spec)
        assert handle.sandbox_id == spec.sandbox_id
        assert Handle.from_json(json.loads(json.dumps(handle.to_json()))) == handle
        assert await backend.alive(handle)
        assert subject.leftovers(settle=False) != [], "this suite cannot see what is left"
        await backend.destroy(spec.sandbox_id, spec.directory)
        assert not await backend.alive(handle)
        assert subject.leftovers() == []

    async def test_handle_of_another_version_is_gone(self, subject: Subject) -> None:
        backend, spec = subject.backend(), subject.spec()
        handle = await _started(backend, spec)
        for damage in ({"version": 99}, {"pid_start": None, "surprise": 1}):
            with pytest.raises(SandboxGone):
                Handle.from_json({**handle.to_json(), **damage})
        await backend.destroy(spec.sandbox_id, spec.directory)

    async def test_exited_waits_for_the_end_and_then_returns_at_once(
        self, subject: Subject
    ) -> None:
        backend, spec = subject.backend(), subject.spec()
        handle = await _started(backend, spec)
        waiting = asyncio.create_task(backend.exited(handle))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        subject.crash(handle)
        async with asyncio.timeout(10):
            await waiting
            await backend.exited(handle)
        assert not await backend.alive(handle)
        await backend.destroy(spec.sandbox_id, spec.directory)
        assert subject.leftovers() == []

    async def test_cancelling_exited_harms_nothing(self, subject: Subject) -> None:
        backend, spec = subject.backend(), subject.spec()
        handle = await _started(backend, spec)
        waiting = asyncio.create_task(backend.exited(handle))
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await backend.alive(handle)
        await backend.destroy(spec.sandbox_id, spec.directory)

    async def test_a_new_instance_finds_watches_and_destroys(self, subject: Subject) -> None:
        spec = subject.spec()
        handle = await _started(subject.backend(), spec)
        other = subject.backend()
        assert await other.alive(handle)
        waiting = asyncio.create_task(other.exited(handle))
        await asyncio.sleep(0)
        await other.destroy(spec.sandbox_id, spec.directory)
        async with asyncio.timeout(10):
            await waiting
        assert subject.leftovers() == []

    async def test_destroy_is_idempotent_and_needs_nothing(self, subject: Subject) -> None:
        backend, spec = subject.backend(), subject.spec()
        await backend.destroy(spec.sandbox_id, spec.directory)
        await _started(backend, spec)
        await asyncio.gather(
            backend.destroy(spec.sandbox_id, spec.directory),
            backend.destroy(spec.sandbox_id, spec.directory),
        )
        await backend.destroy(spec.sandbox_id, spec.directory)
        assert subject.leftovers() == []

    async def test_a_cancelled_destroy_finishes_first(self, subject: Subject) -> None:
        backend, spec = subject.backend(), subject.spec()
        await _started(backend, spec)
        task = asyncio.create_task(backend.destroy(spec.sandbox_id, spec.directory))
        await asyncio.sleep(0)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert subject.leftovers() == []

    async def test_a_sandbox_can_be_made_again_under_its_name(self, subject: Subject) -> None:
        backend, spec = subject.backend(), subject.spec()
        for _ in range(2):
            assert await backend.alive(await _started(backend, spec))
            await backend.destroy(spec.sandbox_id, spec.directory)
        assert subject.leftovers() == []

    async def test_preparing_over_a_sandbox_is_refused_and_harms_nothing(
        self, subject: Subject
    ) -> None:
        backend, spec = subject.backend(), subject.spec()
        handle = await _started(backend, spec)
        with pytest.raises(LaunchError):
            await backend.prepare(spec)
        assert await backend.alive(handle)
        await backend.destroy(spec.sandbox_id, spec.directory)
        assert subject.leftovers() == []

    async def test_two_sandboxes_do_not_meet(self, subject: Subject) -> None:
        backend = subject.backend()
        first, second = subject.spec("one"), subject.spec("two")
        handles = [await _started(backend, each) for each in (first, second)]
        await backend.destroy(first.sandbox_id, first.directory)
        assert [await backend.alive(each) for each in handles] == [False, True]
        await backend.destroy(second.sandbox_id, second.directory)
        assert subject.leftovers() == []

    async def test_missing_program_is_a_config_error(self, subject: Subject) -> None:
        spec = subject.spec(argv=("/nonexistent/python",))
        with pytest.raises(ConfigError, match="/nonexistent/python"):
            await subject.backend().prepare(spec)
        assert subject.leftovers() == []

    async def test_starting_what_was_not_prepared_is_a_launch_error(self, subject: Subject) -> None:
        with pytest.raises(LaunchError):
            await subject.backend().start(subject.spec())
        assert subject.leftovers() == []

    async def test_what_has_to_be_waited_for_is_waited_for(self, subject: Subject) -> None:
        backend, spec = subject.backend(), subject.spec()
        await backend.prepare(spec)
        when: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        starting = asyncio.create_task(backend.start(spec, when=when))
        await asyncio.sleep(0.5)
        assert not starting.done()
        when.set_result(None)
        async with asyncio.timeout(20):
            assert await backend.alive(await starting)
        await backend.destroy(spec.sandbox_id, spec.directory)
        assert subject.leftovers() == []

    async def test_what_is_waited_for_and_fails_is_raised_and_leaves_nothing(
        self, subject: Subject
    ) -> None:
        async def refuse() -> None:
            await asyncio.sleep(0.2)
            raise SandboxGone("it does not fit")

        backend, spec = subject.backend(), subject.spec()
        await backend.prepare(spec)
        with pytest.raises(SandboxGone, match="it does not fit"):
            await backend.start(spec, when=refuse())
        await _check_undone(subject, spec, "when")

    async def test_failing_at_any_step_leaves_nothing(self, subject: Subject) -> None:
        for step in subject.steps:
            backend, spec = subject.backend(fail_at=step), subject.spec(f"f-{step}")
            with pytest.raises(LaunchError, match="on purpose"):
                await _started(backend, spec)
            await _check_undone(subject, spec, step)

    async def test_running_out_of_time_at_any_step_leaves_nothing(self, subject: Subject) -> None:
        for step in subject.steps:
            backend, spec = subject.backend(hang_at=step), subject.spec(f"t-{step}")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await _started(backend, spec)
            await _check_undone(subject, spec, step)

    async def test_cancelling_twice_at_any_step_leaves_nothing(self, subject: Subject) -> None:
        for step in subject.steps:
            backend, spec = subject.backend(hang_at=step), subject.spec(f"c-{step}")
            task = asyncio.create_task(_started(backend, spec))
            await asyncio.sleep(0.3)
            task.cancel()
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await _check_undone(subject, spec, step)

    async def test_cancelling_at_any_moment_leaves_nothing(self, subject: Subject) -> None:
        backend = subject.backend()
        for number, delay_s in enumerate((0.0, 0.003, 0.01, 0.02, 0.03, 0.05, 0.1)):
            spec = subject.spec(f"m{number}")
            task = asyncio.create_task(_started(backend, spec))
            await asyncio.sleep(delay_s)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await backend.destroy(spec.sandbox_id, spec.directory)
            assert subject.leftovers() == [], delay_s


async def _check_undone(subject: Subject, spec: SandboxSpec, step: str) -> None:
    """Prepare undoes itself wholly; start leaves what prepare made, which can be started again."""
    if step in subject.prepare_steps:
        assert not os.path.lexists(spec.directory), step
        assert subject.leftovers() == [], step
        return
    backend = subject.backend()
    assert await backend.alive(await backend.start(spec)), step
    await backend.destroy(spec.sandbox_id, spec.directory)
    assert subject.leftovers() == [], step
