"""Whether a snapshot can be restored on this machine now, and if not, why. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torpor.snapshot.manifest import SnapshotManifest
from torpor.template import WorkspaceMode

_FEATURES_NAMED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineFacts:
    """What a restore of one snapshot would meet here, looked up just now.

    ``template_digest``: of the template of that name, None when there is none any more.
    ``environment_change``: what ``golden.fingerprint.changed`` says. ``workspace_mode``: how the
    snapshot's workspace can be shown now, None when it is gone; ``workspace_reason`` why.
    """

    owner_uid: int
    runsc_build: str
    cpu_features: frozenset[str]
    template_digest: str | None
    plan_digest: str
    environment_change: str | None = None
    workspace_mode: WorkspaceMode | None = None
    workspace_reason: str = ""


def mismatch(manifest: SnapshotManifest, machine: MachineFacts) -> str | None:
    """Give every reason why ``manifest`` cannot be restored here now, in words; else None."""
    reasons = list(_reasons(manifest, machine))
    if not reasons and manifest.plan_digest != machine.plan_digest:
        reasons = [
            "its sandbox would be made differently now: Torpor, a folder of the system or the "
            "start of the kernel has changed; put that back"
        ]
    return "; ".join(reasons) or None


def _reasons(manifest: SnapshotManifest, machine: MachineFacts) -> Iterator[str]:
    if manifest.owner_uid != machine.owner_uid:
        yield f"it belongs to user {manifest.owner_uid}: restore it as that user"
    if manifest.runsc_build != machine.runsc_build:
        yield (
            f"it was made by runsc {manifest.runsc_build} and this is {machine.runsc_build}: "
            "install that build again"
        )
    missing = sorted(set(manifest.cpu_features) - machine.cpu_features)
    if missing:
        more = len(missing) - _FEATURES_NAMED
        named = ", ".join(missing[:_FEATURES_NAMED]) + (f" and {more} more" if more > 0 else "")
        yield f"this processor lacks {named}: restore it on one that has them"
    yield from _template_reasons(manifest, machine)
    yield from _workspace_reasons(manifest, machine)
    if machine.environment_change:
        yield (
            f"its environment is another one, {machine.environment_change}: install what was "
            "there before"
        )


def _template_reasons(manifest: SnapshotManifest, machine: MachineFacts) -> Iterator[str]:
    if machine.template_digest is None:
        yield f"there is no template {manifest.template} any more: configure it again"
    elif manifest.template_digest != machine.template_digest:
        yield f"the template {manifest.template} has changed since: put it back as it was"


def _workspace_reasons(manifest: SnapshotManifest, machine: MachineFacts) -> Iterator[str]:
    if manifest.workspace is None or manifest.workspace_mode is machine.workspace_mode:
        return
    why = f" ({machine.workspace_reason})" if machine.workspace_reason else ""
    if machine.workspace_mode is None:
        yield f"its workspace {manifest.workspace} is gone{why}: put it back or mount it"
        return
    yield (
        f"its workspace {manifest.workspace} was shown as {manifest.workspace_mode} and would now "
        f"be {machine.workspace_mode}{why}: put its place and rights back as they were"
    )
