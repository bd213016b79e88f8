"""Snapshots made of a few bytes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torpor.golden.fingerprint import Fingerprint
from torpor.snapshot.build import Listed, Snapshot, listed
from torpor.snapshot.manifest import SnapshotManifest
from torpor.snapshot.store import SnapshotStore
from torpor.template import WorkspaceMode

KERNEL = "5e1f-kernel.1"
OTHER = "other_kernel"
CONTENT = {"checkpoint.img": b"c" * 100, "pages_meta.img": b"m" * 10, "pages.img": b"p" * 1000}
SIZE_BYTES = sum(map(len, CONTENT.values()))


def a_manifest(**changes: Any) -> SnapshotManifest:
    fields: dict[str, Any] = {
        "kernel_id": KERNEL,
        "generation": 1,
        "created_at": "2026-01-02T03:04:05+00:00",
        "owner_uid": os.geteuid(),
        "template": "default",
        "template_digest": "t" * 64,
        "runsc_build": "release-20260101.0",
        "cpu_features": ("avx2", "sse4_2"),
        "plan_digest": "d" * 64,
        "workspace": "/home/somebody/work",
        "workspace_mode": WorkspaceMode.READ_WRITE,
        "read_only": False,
        "argv": ("python3", "-m", "ipykernel_launcher", "-f", "{connection_file}"),
        "kernel_name": "python3",
        "hostname": "kernel",
        "guest_key": "very-secret",
        "kernel_generation": 2,
        "memory": {
            "kernel_info": {"protocol_version": "5.3", "banner": "é \udc80", "n": [1, 2.5, None]},
            "marks": {"shell": 7, "iopub": 40},
        },
        "environment": Fingerprint(),
    }
    return SnapshotManifest(**(fields | changes))


def fill(draft: Path, content: dict[str, bytes] | None = None) -> None:
    for name, raw in (CONTENT if content is None else content).items():
        (draft / "image" / name).write_bytes(raw)


def publish(store: SnapshotStore, **changes: Any) -> Snapshot:
    draft = store.draft()
    fill(draft)
    kernel_id = changes.get("kernel_id", KERNEL)
    following = {"generation": store.next_generation(kernel_id)}
    return store.publish(draft, a_manifest(**(following | changes)))


def left(root: Path) -> set[str]:
    """Every file and folder of snapshots and drafts below ``root``, relative to it."""
    return {str(path.relative_to(root)) for path in root.rglob("*")} - {"+lock", "+drafts"}


def tree(*snapshots: Snapshot | Listed) -> set[str]:
    """What ``left`` gives where there are but these snapshots."""
    inside = {"manifest.json", "image", *(f"image/{name}" for name in CONTENT)}
    names = set()
    for snapshot in snapshots:
        kernel_id, generation = snapshot.folder.parts[-2:]
        names |= {kernel_id, f"{kernel_id}/{generation}"}
        names |= {f"{kernel_id}/{generation}/{name}" for name in inside}
    return names


def rows(*snapshots: Snapshot) -> tuple[Listed, ...]:
    """What lists show of these."""
    return tuple(listed(snapshot.manifest, snapshot.folder) for snapshot in snapshots)


def whole(store: SnapshotStore) -> tuple[Snapshot, ...]:
    """All that can be restored from."""
    found = [store.get(row.kernel_id, row.generation) for row in store.list()]
    return tuple(snapshot for snapshot in found if snapshot)


def generations(store: SnapshotStore, kernel_id: str = KERNEL) -> list[int]:
    """The generations of the whole snapshots of a kernel."""
    return [row.generation for row in store.list() if row.kernel_id == kernel_id]
