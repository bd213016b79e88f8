"""Removing what uploads that never ended, or that another one overtook, have left in a store.

Only after a long time without a push: two machines may go on with one upload, and neither knows
whether the other is about to name it in a manifest.
"""

from __future__ import annotations

from torpor.snapshot.errors import SnapshotUnusable
from torpor.snapshot.remote.catalogue import MANIFEST, Catalogue, folder_name, upload_began_s
from torpor.snapshot.remote.header import split_header

_LIMIT_BYTES = 1 << 16


def sweep(catalogue: Catalogue, *, before_s: float) -> None:
    """Remove uploads that belong to no manifest and were touched last before ``before_s``.

    Needs no key. A generation whose manifest cannot be read is left alone.
    """
    for kernel_id in catalogue.kernel_ids():
        for generation in catalogue.generations(kernel_id):
            _sweep(catalogue, kernel_id, generation, before_s)


def _sweep(catalogue: Catalogue, kernel_id: str, generation: int, before_s: float) -> None:
    folder = folder_name(kernel_id, generation)
    uploads = catalogue.uploads(kernel_id, generation)
    raw = catalogue.objects.read(f"{folder}/{MANIFEST}", _LIMIT_BYTES)
    try:
        used = split_header(raw, folder)[0].upload if raw is not None else ""
    except SnapshotUnusable:
        return
    for upload, header in uploads.items():
        touched_s = header.touched_s if header else upload_began_s(upload)
        if upload != used and touched_s is not None and touched_s < before_s:
            catalogue.objects.remove_all(f"{folder}/chunks/{upload}")
