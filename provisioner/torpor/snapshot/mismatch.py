"""Whether a snapshot can be restored on this machine now, and if not, why. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torpor.snapshot.manifest import SnapshotManifest
from torpor.snapshot.shape import changed_fields

_FEATURES_NAMED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineFacts:
    """What a restore of one snapshot would meet here, looked up just now.

    ``template_digest``: of the template of that name, None when there is none any more;
    ``template_fields`` those of its fields. ``environment_change``: what
    ``golden.fingerprint.changed`` says. ``workspace_there``: whether the workspace is, or none was.
    """

    owner_uid: int
    runsc_build: str
    cpu_features: frozenset[str]
    template_digest: str | None
    template_fields: Mapping[str, str] = field(default_factory=dict)
    environment_change: str | None = None
    workspace_there: bool = True


def mismatch(manifest: SnapshotManifest, machine: MachineFacts) -> str | None:
    """Give every reason why ``manifest`` cannot be restored here now, in words; else None."""
    return "; ".join(_reasons(manifest, machine)) or None


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
    if not machine.workspace_there:
        yield f"its workspace {manifest.workspace} is gone: put it back or mount it"
    if machine.environment_change:
        yield (
            f"its environment is another one, {machine.environment_change}: install what was "
            "there before"
        )


def _template_reasons(manifest: SnapshotManifest, machine: MachineFacts) -> Iterator[str]:
    if machine.template_digest is None:
        yield f"there is no template {manifest.template} any more: configure it again"
    elif manifest.template_digest != machine.template_digest:
        which = changed_fields(manifest.template_fields, machine.template_fields)
        named = f" in {', '.join(which)}" if which and manifest.template_fields else ""
        yield f"the template {manifest.template} has changed since{named}: put it back as it was"
