"""Snapshots to a store and back, beside a plain copy. ``python -m tests.bench.stores [--mib 200]``.

The image is a third zeros, a third text that compresses and a third noise, as memory is about. The
copy ends, as a push and a fetch do, with everything on the disk. Every figure is MiB of the image in
a second; the raw numbers are kept as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torpor.snapshot.build import Snapshot
from torpor.snapshot.remote.keys import KeyFile
from torpor.snapshot.remote.store import RemoteStore
from torpor.snapshot.store import SnapshotStore
from torpor.template import MIB

from tests.integration.stores.s3_server import make_bucket, s3_server
from tests.unit.snapshot.making import KERNEL, a_manifest

PIECE_BYTES = 64 * 1024
BUCKET = "bench"


def make_image(path: Path, size_mib: int) -> None:
    """Write zeros, text and noise by turns, in runs of many pages."""
    noise = random.Random(0)
    words = [b"%d torpor " % noise.randrange(1000) for _ in range(50_000)]
    text = b"".join(words)
    with path.open("wb") as file:
        for n in range(size_mib * MIB // PIECE_BYTES):
            kind = n // 320 % 3  # 20 MiB of one kind, so that there are whole chunks of zeros
            at = n * 7919 % (len(text) - PIECE_BYTES)
            piece = text[at : at + PIECE_BYTES] if kind == 1 else noise.randbytes(PIECE_BYTES)
            file.write(piece if kind else bytes(PIECE_BYTES))


def copied(source: Path, target: Path) -> None:
    """Copy a file and wait for the disk; without sharing its blocks."""
    with source.open("rb") as reading, target.open("wb") as writing:
        shutil.copyfileobj(reading, writing, 8 * MIB)
        writing.flush()
        os.fsync(writing.fileno())


def took_s(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def measure(store: RemoteStore, snapshot: Snapshot, folder: Path) -> dict[str, float]:
    """Give the seconds of a push and a fetch; nothing is left of them."""
    other = SnapshotStore(folder / "other", 1 << 40)
    push_s = took_s(lambda: store.push(snapshot))
    stored_bytes = store.list()[0].stored_bytes
    fetch_s = took_s(lambda: store.fetch(KERNEL, 1, other))
    other.drop(KERNEL)
    store.drop(KERNEL)
    return {"push_s": push_s, "fetch_s": fetch_s, "stored_mib": stored_bytes / MIB}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("build/bench/stores.json"))
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        key = folder / "key"
        key.write_bytes(os.urandom(32))
        key.chmod(0o600)
        local = SnapshotStore(folder / "local", 1 << 40)
        draft = local.draft()
        make_image(draft / "image" / "pages.img", chosen.mib)
        snapshot = local.publish(draft, a_manifest())
        address = stack.enter_context(s3_server(folder))
        make_bucket(address, BUCKET)
        s3: dict[str, Any] = {
            "key": "k",
            "secret": "s",
            "client_kwargs": {"endpoint_url": address},
        }
        kinds = {
            "folder": RemoteStore(f"file://{folder}/plain"),
            "folder, sealed": RemoteStore(f"file://{folder}/sealed", key_source=KeyFile(key)),
            "S3 (moto), sealed": RemoteStore(f"s3://{BUCKET}", options=s3, key_source=KeyFile(key)),
        }
        raw: dict[str, list[dict[str, float]]] = {"copy": [], **{kind: [] for kind in kinds}}
        for _ in range(chosen.rounds):
            source, target = snapshot.image / "pages.img", folder / "copy"
            raw["copy"].append({"push_s": took_s(lambda s=source, t=target: copied(s, t))})
            target.unlink()
            for kind, store in kinds.items():
                raw[kind].append(measure(store, snapshot, folder))
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    show(raw, chosen.mib, peak_mib)
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps({"mib": chosen.mib, "peak_mib": peak_mib, "raw": raw}))


def show(raw: dict[str, list[dict[str, float]]], size_mib: int, peak_mib: float) -> None:
    copy_s = statistics.median(each["push_s"] for each in raw["copy"])
    print(
        f"{size_mib} MiB; plain copy {size_mib / copy_s:.0f} MiB/s; peak of memory {peak_mib:.0f} MiB"
    )
    for kind, rows in raw.items():
        if kind == "copy":
            continue
        push_s, fetch_s = (
            statistics.median(row[it] for row in rows) for it in ("push_s", "fetch_s")
        )
        print(
            f"{kind:20} push {size_mib / push_s:5.0f} MiB/s ({push_s / copy_s:4.1f} copies)   "
            f"fetch {size_mib / fetch_s:5.0f} MiB/s ({fetch_s / copy_s:4.1f} copies)   "
            f"takes {rows[0]['stored_mib']:.0f} MiB"
        )


if __name__ == "__main__":
    sys.exit(main())
