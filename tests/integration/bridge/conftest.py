from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from tests.integration.bridge.harness import World, world_in
from tests.integration.bridge.sleeper import Bed, bed_in


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with world_in(tmp_path) as found:
        yield found


@pytest_asyncio.fixture
async def bed(world: World, tmp_path: Path) -> AsyncIterator[Bed]:
    async with bed_in(world, tmp_path) as found:
        await found.fall_asleep()
        yield found
