"""torpord with a fault: ``TORPOR_TEST_FAULT=NAME``, otherwise as ``python -m torpor.daemon``.

A fault happens once in the life of a home: a file in its state folder says that it has.
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

from torpor.bridge.client import BridgeRefused
from torpor.config import user_paths
from torpor.daemon import golden_build
from torpor.daemon.__main__ import main
from torpor.daemon.bridge_keeper import BridgeKeeper
from torpor.daemon.launch import Launcher

FAULT = os.environ.get("TORPOR_TEST_FAULT", "")


def happened() -> Path:
    return user_paths().state / "fault-happened"


def once() -> bool:
    if happened().exists():
        return False
    happened().touch()
    return True


def at_claims(before: bool) -> None:
    """At the next claim's request: kill its sandbox, or wait until somebody kills this daemon."""
    rpc, claim = BridgeKeeper.rpc, Launcher._claim
    sandbox: dict[str, int] = {}

    async def noted(
        self: Any, kernel: Any, plan: Any, ends_at: float, clone: Any, *rest: Any
    ) -> None:
        sandbox["pid"] = clone.handle.pid
        await claim(self, kernel, plan, ends_at, clone, *rest)

    async def strike() -> None:
        if "pause" in FAULT:
            await asyncio.sleep(600)
        os.kill(sandbox["pid"], signal.SIGKILL)

    async def faulty(self: Any, kernel_id: str, method: str, *rest: Any, **more: Any) -> Any:
        if method != "claim" or not once():
            return await rpc(self, kernel_id, method, *rest, **more)
        if before:
            await strike()
        answer = await rpc(self, kernel_id, method, *rest, **more)
        if not before:
            await strike()
        return answer

    Launcher._claim = noted  # type: ignore[method-assign]
    BridgeKeeper.rpc = faulty  # type: ignore[method-assign]


def refuse_claims() -> None:
    """Every claim is refused, as by a guest that cannot show its workspace."""
    rpc = BridgeKeeper.rpc

    async def faulty(self: Any, kernel_id: str, method: str, *rest: Any, **more: Any) -> Any:
        if method == "claim":
            raise BridgeRefused("claim", "refused on purpose")
        return await rpc(self, kernel_id, method, *rest, **more)

    BridgeKeeper.rpc = faulty  # type: ignore[method-assign]


if __name__ == "__main__":
    if FAULT.endswith("before-claim"):
        at_claims(before=True)
    elif FAULT.endswith("after-claim"):
        at_claims(before=False)
    elif FAULT == "refuse-claims":
        refuse_claims()
    elif FAULT == "short-warm-up":
        golden_build._WARM_UP_S = 2.0
    raise SystemExit(main())
