"""How kernels look from outside: the ``KernelState`` of the control API::

{"kernel_id": "5e1f...", "kernel_name": "python3", "template": "default",
 "status": "starting|running|frozen|hibernating|hibernated|fetching|waking|exited|gone",
 "exit_code": null, "reason": null,
 "client": {"transport": "tcp", "ip": "127.0.0.1", "ports": {...}, ...}, "owner": {"pid": 71},
 "start": {"how": "claimed|cloned|created|restarted|replaced", "why": "no clone was ready"},
 "created_at": "...", "last_activity": "...", "execution_state": "idle",
 "sandbox": {"id": "t0a1...", "pid": 93, "uid": 200001, "runsc": "/..."},
 "sleep": {"tier": "awake|frozen|asleep", "since": 1790000000.0, "pinned": false, "generation": 0,
           "outlook": "awake: freezes in 40 s", "slept_s": 0.0,
           "lost": [{"kind": "file", "what": "/home/ada/work/a.csv", "reason": "it was replaced: ..."}]},
 "workspace": {"path": "/home/ada/work", "mode": "rw", "reason": ""}, "counters": {}}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torpor.bridge.client import BridgeRefused
from torpor.daemon.kernel import Kernel
from torpor.daemon.parts import Parts
from torpor.errors import BackendUnavailable
from torpor.lifecycle.idle import RUNNING, Tier

_STATUS_S = 2.0


async def described(kernel: Kernel, parts: Parts) -> dict[str, Any]:
    """Give the state of ``kernel``; without what the bridge knows while there is no bridge."""
    status: Mapping[str, Any] = {}
    if kernel.row.kernel_id in parts.bridge.held:
        try:
            status = await parts.bridge.call(
                "status", within_s=_STATUS_S, kernel_id=kernel.row.kernel_id
            )
        except (BackendUnavailable, BridgeRefused):
            status = {}
    return kernel_state(kernel, parts, status)


def kernel_state(kernel: Kernel, parts: Parts, status: Mapping[str, Any]) -> dict[str, Any]:
    """Give the ``KernelState`` (module docstring) from our own view and the bridge's ``status``."""
    row = kernel.row
    sandbox = parts.registry.sandboxes.get(row.sandbox_id or "")
    handle = (sandbox.handle if sandbox is not None else None) or {}
    return {
        "kernel_id": row.kernel_id,
        "kernel_name": row.kernel_name,
        "template": row.template,
        "status": kernel.state,
        "exit_code": kernel.exit_code,
        "reason": kernel.reason,
        "client": row.client.public_json(),
        "owner": None if row.owner is None else {"pid": row.owner.pid},
        "created_at": row.created_at,
        "start": {"how": kernel.started_as or None, "why": kernel.start_reason or None},
        "last_activity": status.get("last_activity"),
        "execution_state": status.get("execution_state", "unknown"),
        "sandbox": {
            "id": row.sandbox_id,
            "pid": handle.get("pid"),
            "uid": handle.get("uid"),
            "runsc": handle.get("runsc"),
        },
        "sleep": {
            "tier": kernel.tier.value,
            "since": row.tier_since,
            "pinned": row.pinned,
            "generation": row.generation,
            "outlook": _outlook(kernel, status),
            "slept_s": round(row.slept_s, 1),
            "lost": [dict(each) for each in row.lost],
        },
        "workspace": {
            "path": handle.get("workspace"),
            "mode": handle.get("workspace_mode"),
            "reason": handle.get("workspace_reason", ""),
        },
        "counters": status.get("counters", {}),
    }


def _outlook(kernel: Kernel, status: Mapping[str, Any]) -> str:
    """Give why it is in its tier: as was last thought of, unless that has changed since."""
    busy, tier = status.get("busy_reason"), kernel.tier
    if kernel.moving or kernel.row.pinned:
        return kernel.outlook
    if busy and tier is Tier.AWAKE:
        return f"{tier}: {busy}"
    stale = not kernel.outlook.startswith(f"{tier}:") or RUNNING in kernel.outlook
    return "" if stale else kernel.outlook
