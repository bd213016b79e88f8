"""The fake keeps the promises of a real backend."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from torpor.backends.base import Backend, Handle

from tests.contract.backend import BackendContract, Subject
from tests.fakes.backend import FakeBackend, FakeWorld


class FakeSubject(Subject):
    steps = FakeBackend.STEPS
    prepare_steps = FakeBackend.PREPARE_STEPS

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.world = FakeWorld()

    def backend(self, *, fail_at: str = "", hang_at: str = "") -> Backend:
        return FakeBackend(fail_at=fail_at, hang_at=hang_at, world=self.world)

    def leftovers(self, *, settle: bool = True) -> list[str]:
        folder = self.folder / "k"
        return [*self.world.live, *(os.listdir(folder) if folder.is_dir() else ())]

    def crash(self, handle: Handle) -> None:
        self.world.live.pop(handle.sandbox_id).set_result(None)


class TestFakeBackend(BackendContract):
    @pytest.fixture
    def subject(self, tmp_path: Path) -> Subject:
        return FakeSubject(tmp_path)
