"""``torpor shutdown``."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from traitlets import Bool

from torpor.cli.command import progress
from torpor.cli.confirm import is_sure
from torpor.cli.connection_files import remove_connection_files
from torpor.cli.reach import client_of
from torpor.cli.sleep import SleepCommand
from torpor.errors import SandboxError

if TYPE_CHECKING:
    from torpor.client_sleep import SleepClient


class ShutdownCommand(SleepCommand):
    name = "torpor shutdown"
    description = """End kernels, asleep or awake, with all that belongs to them but named checkpoints.

    torpor shutdown KERNEL...    an id, or how it begins; --all: all of them

    What is in their memory is lost; --all asks first."""
    flags: dict[str, Any] = {  # noqa: RUF012
        **SleepCommand.flags,
        "all": ({"SleepCommand": {"everything": True}}, "All kernels; asks first."),
        "yes": ({"ShutdownCommand": {"yes": True}}, "Do not ask."),
    }

    yes = Bool(False, help="Whether --all is meant; off: somebody is asked.").tag(config=True)

    def chosen_of(self, kernels: list[dict[str, Any]]) -> list[str]:
        return [str(each["kernel_id"]) for each in kernels]

    def is_sure(self, kernels: list[str]) -> bool:
        if not self.everything or not kernels:
            return True
        question = f"end {len(kernels)} kernel(s), with all that is in their memory?"
        return is_sure(question, yes=self.yes)

    async def act(self, client: SleepClient, kernel_id: str) -> dict[str, Any]:
        await client_of(self.paths).delete(kernel_id)
        remove_connection_files(self.paths, [kernel_id])
        return {"kernel_id": kernel_id, "status": "gone", "checkpoints": []}

    def require(self, state: Mapping[str, Any]) -> None:
        """Any kernel can be ended."""

    def said(self, state: Mapping[str, Any]) -> str:
        return "is no more"

    async def finish(self, client: SleepClient, states: list[dict[str, Any]]) -> None:
        """Tell what is left of them: somebody may want it back, or the room that it takes."""
        if not states:
            return
        snapshots: list[dict[str, Any]] = []
        with contextlib.suppress(SandboxError):
            snapshots = await client.snapshots()
        for state in states:
            state["checkpoints"] = left = [
                each["name"]
                for each in snapshots
                if each["kernel_id"] == state["kernel_id"] and each["name"]
            ]
            if left and not self.json:
                progress(f"{state['kernel_id']}: named checkpoints stay: {', '.join(left)}")
                progress(f"  back with: torpor restore {state['kernel_id']} {left[0]}")
                progress(f"  away with: torpor snapshots rm {state['kernel_id']} {left[0]}")
