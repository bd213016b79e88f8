"""How long torpord asks again for a kernel that does not stand still yet."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from torpor.bridge.client import BridgeRefused
from torpor.daemon import holding
from torpor.daemon.bridge_keeper import BridgeKeeper
from torpor.daemon.holding import held
from torpor.errors import Busy


class Bridge:
    """Refuses with ``codes``, one after the other, and then holds."""

    def __init__(self, *codes: str) -> None:
        self.codes = list(codes)
        self.asked = 0

    async def call(self, op: str, **_: Any) -> dict[str, Any]:
        assert op == "hold"
        self.asked += 1
        if self.codes:
            raise BridgeRefused(self.codes.pop(0), "a cell is running")
        return {"memory": {"seen": 1}}

    async def rpc(self, *_: object, **__: object) -> dict[str, Any]:
        await asyncio.sleep(0)
        return {"files": []}


async def hold(bridge: Bridge) -> holding.Still:
    return await held(cast(BridgeKeeper, bridge), "k", None)


async def test_what_passes_by_itself_is_waited_for() -> None:
    bridge = Bridge("busy", "finishing", "finishing")
    still = await hold(bridge)
    assert (still.memory, still.told) == ({"seen": 1}, {"files": []})
    assert bridge.asked == 4


@pytest.mark.parametrize(("code", "others"), [("busy", 0.0), ("finishing", 60.0)])
async def test_each_reason_has_its_patience(
    monkeypatch: pytest.MonkeyPatch, code: str, others: float
) -> None:
    """A running cell is not waited for; what has replied is, and not for ever."""
    monkeypatch.setattr(holding, "_PATIENCE_S", {"busy": others, "finishing": others, code: 0.1})
    bridge = Bridge(*[code] * 10_000)
    async with asyncio.timeout(30):
        with pytest.raises(Busy, match="cannot sleep now: a cell is running"):
            await hold(bridge)
    assert bridge.asked > 1


async def test_what_does_not_pass_is_refused_at_once() -> None:
    bridge = Bridge("link")
    with pytest.raises(Busy):
        await hold(bridge)
    assert bridge.asked == 1
