"""A launch request together with the template it chose, and what each part needs of them. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torpor.api import LaunchRequest
from torpor.backends.base import FROM_GUEST, GUEST_STDERR, TO_GUEST, SandboxSpec
from torpor.daemon.kernel import Kernel
from torpor.daemon.records import SandboxRow
from torpor.template import Template


@dataclass(frozen=True, slots=True)
class Plan:
    """A request together with the template it chose."""

    request: LaunchRequest
    template: Template

    @property
    def name(self) -> str:
        """What to call the kernel in an error."""
        return self.request.kernel_name or self.request.argv[0]

    @property
    def limit_s(self) -> float:
        """The start timeout: a request can shorten its template's, not stretch it."""
        asked_s = self.request.start_timeout_s
        most_s = self.template.start_timeout_s
        return most_s if asked_s is None else min(asked_s, most_s)


def sandbox_spec(
    kernel: Kernel, sandbox: SandboxRow, plan: Plan, start_timeout_s: float
) -> SandboxSpec:
    """Give what the backend is to build."""
    request = plan.request
    workspace = None if request.workspace is None else Path(request.workspace)
    return SandboxSpec(
        sandbox_id=sandbox.sandbox_id,
        template=plan.template,
        argv=request.argv,
        env=request.env,
        cwd=request.cwd,
        workspace=None if plan.template.workspace == "none" else workspace,
        key=kernel.row.guest_key,
        directory=sandbox.directory,
        kernel_name=request.kernel_name,
        start_timeout_s=start_timeout_s,
    )


def fifos(directory: Path) -> dict[str, Any]:
    """Give the pipes of a sandbox, under the bridge's names for them."""
    return {
        "fifo_in": str(directory / TO_GUEST),
        "fifo_out": str(directory / FROM_GUEST),
        "fifo_err": str(directory / GUEST_STDERR),
    }
