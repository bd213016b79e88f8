"""Groups of version 2 on the real kernel: joined before anything runs, killed and removed."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from torpor.backends.local_cgroups import Cgroups, Hierarchy

from tests.integration.backend.world import LocalSubject

pytestmark = [
    pytest.mark.runsc,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may make groups anywhere"),
]


def _mount_point() -> Path:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        if right.startswith("cgroup2 "):
            return Path(left.split()[4])
    pytest.skip("no cgroup2 is mounted")


async def test_all_of_a_sandbox_is_in_its_group(subject: LocalSubject) -> None:
    # Without a controller, which version 1 may hold: then there is nothing to limit, but a group.
    cgroups = Cgroups((Hierarchy(2, str(_mount_point()), ()),))
    backend, spec = replace(subject.backend(), cgroups=cgroups), subject.spec()
    await backend.prepare(spec)
    handle = await backend.start(spec)
    (group,) = map(Path, handle.cgroups)
    try:
        assert str(handle.pid) in (group / "cgroup.procs").read_text().split()
    finally:
        await backend.destroy(spec.sandbox_id, spec.directory)
    assert not group.exists()
    assert subject.leftovers() == []


async def test_a_group_whose_record_is_all_that_is_left_is_removed_with_its_processes(
    subject: LocalSubject,
) -> None:
    cgroups = Cgroups((Hierarchy(2, str(_mount_point()), ()),))
    backend, spec = replace(subject.backend(), cgroups=cgroups), subject.spec()
    await backend.prepare(spec)
    handle = await backend.start(spec)
    (spec.directory / "sandbox.json").unlink()
    await backend.destroy(spec.sandbox_id, spec.directory)
    assert not await backend.alive(handle)
    assert not Path(handle.cgroups[0]).exists()
    assert subject.leftovers() == []
