"""What holding a kernel, putting it to sleep and remembering it need of that kernel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torpor.bridge.activity import Activity
from torpor.bridge.counters import Counters
from torpor.bridge.endpoints import Endpoints
from torpor.bridge.guest import Guest
from torpor.bridge.line import Line
from torpor.bridge.protocol import Fifos
from torpor.bridge.reactor import Owner
from torpor.bridge.record import Record
from torpor.bridge.relay import Relay
from torpor.bridge.underway import Underway


class Subject(Owner, Protocol):
    """The kernel that is to stand still, and that is remembered."""

    guest: Guest
    activity: Activity
    underway: Underway
    counters: Counters
    endpoints: Endpoints
    record: Record

    @property
    def line(self) -> Line | None: ...


class Body(Subject, Protocol):
    """The kernel that sleeps and wakes."""

    kernel_id: str
    relay: Relay

    def connect_again(self, fifos: Fifos) -> None:
        """Open the link where it was left; ``Hibernation.opened`` or ``link_failed`` follows."""

    def disconnect(self) -> None:
        """Give up the link and nothing else."""

    def fall_back(self, memory: Mapping[str, Any]) -> None:
        """Give up the link and be what the kernel was, asleep; clients still get what it has said."""

    def remember(self) -> dict[str, Any]:
        """Record, and give, what is known about the kernel."""
