"""What the registry remembers: a row per kernel, and one per sandbox that may exist."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torpor.api import Endpoints, parse_endpoints
from torpor.daemon.processes import Process
from torpor.lifecycle import Status, Target


@dataclass(frozen=True, slots=True)
class SandboxRow:
    """One sandbox, written before anything of it is allocated, gone after all of it is."""

    sandbox_id: str
    kernel_id: str
    directory: Path
    handle: Mapping[str, Any] | None = None
    """The backend's versioned handle; None until the sandbox was started."""

    def to_json(self) -> dict[str, Any]:
        return {
            "sandbox_id": self.sandbox_id,
            "kernel_id": self.kernel_id,
            "directory": str(self.directory),
            "handle": None if self.handle is None else dict(self.handle),
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> SandboxRow:
        return cls(
            sandbox_id=str(body["sandbox_id"]),
            kernel_id=str(body["kernel_id"]),
            directory=Path(body["directory"]),
            handle=body.get("handle"),
        )


@dataclass(frozen=True, slots=True)
class KernelRow:
    """One kernel that somebody asked for."""

    kernel_id: str
    kernel_name: str
    template: str
    status: Status
    target: Target
    client: Endpoints
    """As the client asked for them, with the ports that were bound once they are."""
    created_at: str
    guest_key: str = field(repr=False)
    """Signs the private connection between guest and kernel; the bridge re-signs with it."""
    owner: Process | None = None
    """Whose death ends the kernel; None: nobody's."""
    sandbox_id: str | None = None
    """Its present sandbox; other sandbox rows of the kernel are left-overs."""
    reason: str | None = None
    """Why it is lost, or why it could not be woken, readable."""
    generation: int = 0
    """Of the snapshot it sleeps in, or was woken from or saved to last; 0: it never had one."""
    highest: int = 0
    """The highest generation it ever had: the disk may not have it any more."""
    argv: tuple[str, ...] = ()
    """As it was started, for people."""
    making: bool = False
    """It is a fork, or restored as a new kernel, and not complete: nobody has been given it yet."""
    paused: bool = False
    """Its sandbox may stand still on purpose; or it sleeps, and the bridge may not know in which
    snapshot. Written before that is so."""
    pinned: bool = False
    """Somebody wants it to stay in its tier."""
    tier_since: float = 0.0
    """When it came into its tier, in seconds since 1970."""
    slept_s: float = 0.0
    """How long it was hibernated the last time."""
    lost: tuple[Mapping[str, str], ...] = ()
    """What was not as before when it woke the last time (``snapshot.outside.Lost``)."""

    def to_json(self) -> dict[str, Any]:
        return {
            "kernel_id": self.kernel_id,
            "kernel_name": self.kernel_name,
            "template": self.template,
            "status": self.status.value,
            "target": self.target.value,
            "client": self.client.to_json(),
            "created_at": self.created_at,
            "guest_key": self.guest_key,
            "owner": None if self.owner is None else self.owner.to_json(),
            "sandbox_id": self.sandbox_id,
            "reason": self.reason,
            "generation": self.generation,
            "highest": self.highest,
            "argv": list(self.argv),
            "making": self.making,
            "paused": self.paused,
            "pinned": self.pinned,
            "tier_since": self.tier_since,
            "slept_s": self.slept_s,
            "lost": [dict(each) for each in self.lost],
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> KernelRow:
        owner = body.get("owner")
        return cls(
            kernel_id=str(body["kernel_id"]),
            kernel_name=str(body["kernel_name"]),
            template=str(body["template"]),
            status=Status(body["status"]),
            target=Target(body["target"]),
            client=parse_endpoints(body["client"]),
            created_at=str(body["created_at"]),
            guest_key=str(body["guest_key"]),
            owner=None if owner is None else Process.from_json(owner),
            sandbox_id=body.get("sandbox_id"),
            reason=body.get("reason"),
            generation=int(body.get("generation", 0)),
            highest=int(body.get("highest", 0)),
            argv=tuple(body.get("argv", ())),
            making=bool(body.get("making", False)),
            paused=bool(body.get("paused", False)),
            pinned=bool(body.get("pinned", False)),
            tier_since=float(body.get("tier_since", 0.0)),
            slept_s=float(body.get("slept_s", 0.0)),
            lost=tuple(body.get("lost", ())),
        )
