"""Goldens made of a few bytes."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from torpor.golden.build import Golden
from torpor.golden.fingerprint import Fingerprint
from torpor.golden.manifest import Manifest
from torpor.golden.store import GoldenStore

KEY = "ab" * 16
OTHER = "cd" * 16
CONTENT = {"checkpoint.img": b"c" * 100, "pages_meta.img": b"m" * 10, "pages.img": b"p" * 1000}
SIZE_BYTES = sum(map(len, CONTENT.values()))

_numbers = itertools.count(1)


def a_manifest(**changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "key": KEY,
        "build": f"b{next(_numbers)}",
        "created_at": "2026-01-02T03:04:05+00:00",
        "template": "default",
        "kernel_name": "python3",
        "argv": ("python3", "-m", "ipykernel_launcher", "-f", "{connection_file}"),
        "python": "3.11.7",
        "runsc_build": "release-20260101.0",
        "cpu_features": ("avx2", "sse4_2"),
        "guest_key": "very-secret",
        "kernel_info": {"protocol_version": "5.3", "banner": "é \udc80", "n": [1, 2.5, None]},
        "iopub_welcome": True,
        "warm_up": ("import numpy",),
        "warm_up_failed": {"import nothing": "ModuleNotFoundError"},
        "environment": Fingerprint(),
        "build_seconds": 3.25,
    }
    return Manifest(**(fields | changes))


def fill(draft: Path, content: dict[str, bytes] | None = None) -> None:
    for name, raw in (CONTENT if content is None else content).items():
        (draft / "image" / name).write_bytes(raw)


def publish(store: GoldenStore, **changes: Any) -> Golden:
    manifest = a_manifest(**changes)
    draft = store.draft(manifest.build)
    fill(draft)
    return store.publish(draft, manifest)


def left(root: Path) -> set[str]:
    """Every file and folder below ``root`` but the lock, relative to it."""
    return {str(path.relative_to(root)) for path in root.rglob("*")} - {".lock"}


def tree(golden: Golden) -> set[str]:
    """What ``left`` gives where there is but this golden."""
    key, build = golden.manifest.key, golden.manifest.build
    inside = {"manifest.json", "image", *(f"image/{name}" for name in CONTENT)}
    return {key, f"{key}/{build}", *(f"{key}/{build}/{name}" for name in inside)}
