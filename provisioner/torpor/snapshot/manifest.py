"""What a snapshot was made of and what is in its image: ``manifest.json``.

It is one JSON object: the fields of ``SnapshotManifest``, ``size_bytes``, ``version``, and ``sum``,
written as ``torpor.golden.manifest.sealed`` does. It is read whole or not at all. Since version 2 the
digest of a large file may be ``null``: `torpor.snapshot.later`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

from torpor.golden import fields as read
from torpor.golden.fingerprint import Fingerprint, parse_fingerprint
from torpor.golden.manifest import ImageFile, image_file, sealed
from torpor.snapshot.errors import SnapshotUnusable
from torpor.snapshot.outside import Outside, parse_outside
from torpor.template import WorkspaceMode

VERSION = 2
_READABLE = (1, VERSION)
HIGHEST_GENERATION = 999_999_999
_KERNEL_ID = re.compile(r"(?!\.\.?\Z)[A-Za-z0-9._-]{1,128}")
_NAME_CHARACTERS = 100


@dataclass(frozen=True, slots=True)
class Ancestor:
    """The snapshot that a kernel was restored from before it made this one."""

    kernel_id: str
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotManifest:
    """A snapshot's description; ``files`` is filled in when it is published.

    ``name``: "" for what the daemon made by itself, else a checkpoint that somebody named.
    ``generation`` rises with each snapshot of a kernel, from 1. ``parent``: None for a kernel that
    was never restored; of another kernel after a fork; not always the generation before, after a
    rollback. ``template_fields``: see shape.py; manifests that were written before have none.
    ``plan_digest``: of how the sandbox was made. ``read_only``: how its workspace was
    mounted. ``kernel_generation``: which process of the guest the kernel is. ``memory``: what the
    bridge knew of the kernel and its link, in its own shape. ``outside``: what it held that is not in
    the image; manifests that were written before there was such a field have nothing.

    Raises SnapshotUnusable for a kernel id, a name or generations that cannot be.
    """

    kernel_id: str
    name: str = ""
    generation: int
    parent: Ancestor | None = None
    created_at: str
    owner_uid: int
    template: str
    template_digest: str
    template_fields: Mapping[str, str] = field(default_factory=dict, repr=False)
    runsc_build: str
    cpu_features: tuple[str, ...]
    plan_digest: str
    workspace: str | None
    workspace_mode: WorkspaceMode
    read_only: bool
    argv: tuple[str, ...]
    kernel_name: str
    hostname: str
    guest_key: str = field(repr=False)
    kernel_generation: int
    memory: Mapping[str, Any] = field(default_factory=dict, repr=False)
    outside: Outside = field(default_factory=Outside)
    environment: Fingerprint = field(repr=False)
    files: Mapping[str, ImageFile] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_kernel_id(self.kernel_id)
        check_generation(self.generation)
        if self.name:
            check_name(self.name)
        if self.parent:
            check_kernel_id(self.parent.kernel_id)
            check_generation(self.parent.generation)
            ours = self.parent.kernel_id == self.kernel_id
            if ours and self.parent.generation >= self.generation:
                raise SnapshotUnusable(
                    f"generation {self.generation} cannot come from {self.parent.generation}"
                )

    @property
    def size_bytes(self) -> int:
        """The sizes of all files of the image together."""
        return sum(file.size_bytes for file in self.files.values())

    @property
    def created_s(self) -> float:
        """``created_at`` in seconds since 1970; without a time zone it is UTC."""
        created = datetime.fromisoformat(self.created_at)
        return (created if created.tzinfo else created.replace(tzinfo=UTC)).timestamp()

    def to_json(self) -> dict[str, Any]:
        """Give everything but the sum, in plain JSON types."""
        body = {each.name: getattr(self, each.name) for each in fields(self)}
        files = {
            name: {"bytes": file.size_bytes, "sha256": file.sha256}
            for name, file in self.files.items()
        }
        parent = self.parent and {
            "kernel_id": self.parent.kernel_id,
            "generation": self.parent.generation,
        }
        return body | {
            "version": VERSION,
            "parent": parent,
            "workspace_mode": self.workspace_mode.value,
            "environment": self.environment.to_json(),
            "outside": self.outside.to_json(),
            "files": files,
            "size_bytes": self.size_bytes,
        }


def snapshot_bytes(manifest: SnapshotManifest) -> bytes:
    """Give the content of ``manifest.json``. Raises SnapshotUnusable where JSON cannot hold it."""
    try:
        return sealed(manifest.to_json())
    except (TypeError, ValueError, RecursionError) as exc:
        raise SnapshotUnusable(f"the manifest of the snapshot cannot be written: {exc}") from exc


def parse_snapshot(raw: bytes, *, owner_uid: int) -> SnapshotManifest:
    """Read what ``snapshot_bytes`` gave; fields it does not know are left out.

    Raises:
        SnapshotUnusable: damaged, of another version, or not of ``owner_uid``. The message names
            the field and never its value.
    """
    try:
        body = json.loads(raw)
        if not isinstance(body, dict):
            raise ValueError("it is no JSON object")
        _check_version(body.get("version"))
        body.pop("sum", None)
        if sealed(body) != raw:
            raise ValueError("its content is not what was written")
        manifest = _manifest(body)
    except (ValueError, RecursionError) as exc:
        raise SnapshotUnusable(
            f"the manifest of the snapshot is damaged: {exc}",
            hint="put its folder back from a backup; `torpor snapshots rm --disk` removes what is on this disk",
        ) from exc
    if manifest.owner_uid != owner_uid:
        raise SnapshotUnusable(
            f"the snapshot belongs to user {manifest.owner_uid}, not to user {owner_uid}",
            hint="only the user who made it can restore it",
        )
    return manifest


def is_kernel_id(kernel_id: str) -> bool:
    """Whether there can be snapshots of ``kernel_id``: a name of a folder, and never . or .."""
    return _KERNEL_ID.fullmatch(kernel_id) is not None


def check_kernel_id(kernel_id: str) -> str:
    """Give ``kernel_id`` back. Raises SnapshotUnusable when it is none."""
    if not is_kernel_id(kernel_id):
        raise SnapshotUnusable(
            f"{kernel_id!r:.140} is not the id of a kernel",
            hint="letters, digits, . _ and -, at most 128, and neither . nor ..",
        )
    return kernel_id


def check_generation(generation: int) -> int:
    """Give ``generation`` back. Raises SnapshotUnusable when it is none."""
    if not 1 <= generation <= HIGHEST_GENERATION:
        raise SnapshotUnusable(f"{generation} is not a generation", hint="they count from 1")
    return generation


def check_name(name: str) -> str:
    """Give ``name`` back. Raises SnapshotUnusable when no checkpoint can have it."""
    plain = name.isprintable() and name == name.strip() and not name.isdecimal()
    if not plain or not 1 <= len(name) <= _NAME_CHARACTERS:
        raise SnapshotUnusable(
            f"{name!r:.140} is not usable as the name of a checkpoint",
            hint=f"1 to {_NAME_CHARACTERS} printable characters, not only digits, "
            "no blanks at its ends",
        )
    return name


def _check_version(version: object) -> None:
    if type(version) is not int:
        raise ValueError("it has no version")
    if version not in _READABLE:
        raise SnapshotUnusable(
            f"the snapshot is of version {version}, this Torpor knows version {VERSION}",
            hint="restore it with the Torpor that made it; it is kept",
        )


def _manifest(body: Mapping[str, Any]) -> SnapshotManifest:
    manifest = SnapshotManifest(
        kernel_id=read.text(body, "kernel_id"),
        name=read.text(body, "name"),
        generation=read.count(body, "generation"),
        parent=_ancestor(body),
        created_at=read.moment(body, "created_at"),
        owner_uid=read.count(body, "owner_uid"),
        template=read.text(body, "template"),
        template_digest=read.text(body, "template_digest"),
        template_fields=_texts_if_there(body, "template_fields"),
        runsc_build=read.text(body, "runsc_build"),
        cpu_features=read.texts(body, "cpu_features"),
        plan_digest=read.text(body, "plan_digest"),
        workspace=None if _absent(body, "workspace") else read.text(body, "workspace"),
        workspace_mode=_mode(body),
        read_only=read.flag(body, "read_only"),
        argv=read.texts(body, "argv"),
        kernel_name=read.text(body, "kernel_name"),
        hostname=read.text(body, "hostname"),
        guest_key=read.text(body, "guest_key"),
        kernel_generation=read.count(body, "kernel_generation"),
        memory=read.mapping(body, "memory"),
        outside=parse_outside(read.mapping(body, "outside") if "outside" in body else None),
        environment=parse_fingerprint(body.get("environment")),
        files={
            name: image_file(name, row, later=True)
            for name, row in read.mapping(body, "files").items()
        },
    )
    if read.count(body, "size_bytes") != manifest.size_bytes:
        raise ValueError("size_bytes is not the sum of its files")
    return manifest


def _absent(body: Mapping[str, Any], name: str) -> bool:
    return name in body and body[name] is None


def _texts_if_there(body: Mapping[str, Any], name: str) -> dict[str, str]:
    return read.text_mapping(body, name) if name in body else {}


def _ancestor(body: Mapping[str, Any]) -> Ancestor | None:
    if _absent(body, "parent"):
        return None
    parent = read.mapping(body, "parent")
    return Ancestor(read.text(parent, "kernel_id"), read.count(parent, "generation"))


def _mode(body: Mapping[str, Any]) -> WorkspaceMode:
    mode = read.text(body, "workspace_mode")
    if mode not in tuple(WorkspaceMode):
        raise ValueError("workspace_mode is none of the modes")
    return WorkspaceMode(mode)
