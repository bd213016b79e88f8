"""Hibernate, wake, freeze and thaw, beside a plain host ipykernel. ``python -m tests.bench.sleep``.

S is the time from ``start_kernel`` to the first ``execute_reply`` of a plain ipykernel on this host. The
slopes compare with copying as many bytes from file to file on the same disk, in the same minute; every
raw number is kept as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.bench.measure import execute, start, stop, timed
from tests.bench.pool import HOST, first_reply, quantile
from tests.descriptors import KINDS, descriptors
from tests.e2e.sleeping import do, events, sandbox_pids, state, wait
from tests.home import KERNEL, torpor_home

MIB = 1 << 20
CONFIG = 'c.Torpor.templates = {"default": {"freeze_after_s": 0, "hibernate_after_s": 0}}\n'
FILL = "import os; heap = bytearray(os.urandom({mib} << 20)); len(heap)"
Raw = dict[str, list[float]]


def bare(home: Path, folder: Path, cycles: int) -> Raw:
    """A kernel with nothing in it: hibernate until no process is left, then execute, again and again."""
    raw: Raw = {name: [] for name in ("host", "awake", "hibernate", "gone", "wake", "thaw")}
    km, kc, _ = start(KERNEL, folder)
    try:
        for _ in range(cycles):
            raw["host"].append(first_reply(HOST, folder)["total"])
            raw["awake"].append(timed(lambda: execute(kc, "1 + 1")))
            pid = state(km)["sandbox"]["pid"]
            began = time.perf_counter()
            do(km, "hibernate")
            raw["hibernate"].append(time.perf_counter() - began)
            assert not Path(f"/proc/{pid}").exists()
            wait(lambda: not sandbox_pids(home), lambda: str(sandbox_pids(home)))
            raw["gone"].append(time.perf_counter() - began)
            raw["wake"].append(timed(lambda: execute(kc, "1 + 1")))
            do(km, "freeze")
            raw["thaw"].append(timed(lambda: execute(kc, "1 + 1")))
    finally:
        stop(km, kc)
    return raw


def ahead(home: Path, folder: Path, cycles: int) -> list[float]:
    """Execute on a hibernated kernel whose sandbox stands ready."""
    raw = []
    km, kc, _ = start(KERNEL, folder)
    try:
        for number in range(cycles):
            do(km, "hibernate")
            wait(lambda: len(events(home, "sandbox ahead")) > number, lambda: "none ahead")  # noqa: B023
            time.sleep(0.2)
            raw.append(timed(lambda: execute(kc, "1 + 1")))
        assert not events(home, "sandbox ahead not used")
    finally:
        stop(km, kc)
    return raw


def slope(home: Path, folder: Path, mib: int, cycles: int) -> dict[str, list[float]]:
    """A kernel with ``mib`` MiB of what cannot be compressed; and copies of as many bytes."""
    found: dict[str, list[float]] = {"hibernate": [], "wake": [], "all": [], "copy": []}
    km, kc, _ = start(KERNEL, folder)
    try:
        execute(kc, FILL.format(mib=mib))
        with (home / "copy-from").open("wb") as file:
            file.write(os.urandom(mib * MIB))
            os.fsync(file.fileno())
        for _ in range(cycles):
            settled()
            found["hibernate"].append(timed(lambda: do(km, "hibernate")))
            settled()
            found["wake"].append(timed(lambda: execute(kc, "1 + 1")))
            found["all"].append(timed(lambda: execute(kc, "sum(heap[::4096])")))
            settled()
            found["copy"].append(timed(lambda: copy(home, mib)))
    finally:
        stop(km, kc)
    return found


def settled() -> None:
    """Have the disk finish what was deleted before: with ext4's ``discard`` that holds up writers for seconds.

    Writing a new file of 1 GiB took 0.6 to 2.8 s while one was being discarded, 0.8 s otherwise.
    """
    os.sync()
    time.sleep(1)


def copy(home: Path, mib: int) -> None:
    """Copy so many bytes from a file to another one, which is on the disk then."""
    source, target = home / "copy-from", home / "copy-to"
    with source.open("rb") as read, target.open("wb") as write:
        shutil.copyfileobj(read, write, 4 * MIB)
        write.flush()
        os.fsync(write.fileno())
    target.unlink()


def many(home: Path, folder: Path, count: int) -> dict[str, Any]:
    """So many hibernated kernels: their processes, and what bridge and daemon need for them."""
    kernels = []

    def another() -> None:
        km, kc, _ = start(KERNEL, folder)
        kernels.append((km, kc))
        do(km, "hibernate")

    try:
        another()  # daemon and bridge are warm then, and watch the one owner of all of them
        time.sleep(1)
        before = descriptors(home)
        for _ in range(count):
            another()
        time.sleep(1)  # what the last one leaves behind is still being cleared away
        after = descriptors(home)
        return {
            "kernels": count,
            "sandbox_processes": len(sandbox_pids(home)),
            "threads": after["threads"] - before["threads"],
            "rss_bytes_each": (after["rss"] - before["rss"]) / count,
            "descriptors_each": {name: (after[name] - before[name]) / count for name in KINDS},
            "first_wake_s": timed(lambda: execute(kernels[0][1], "1 + 1")),
        }
    finally:
        for km, kc in kernels:
            stop(km, kc)


def report_crowd(crowd: dict[str, Any]) -> None:
    """Print what hibernated kernels cost."""
    each = crowd["descriptors_each"]
    print(
        f"{crowd['kernels']} hibernated: {crowd['sandbox_processes']} processes of theirs, "
        f"{crowd['threads']} more threads, {crowd['rss_bytes_each'] / 1024:.0f} KiB each, "
        f"descriptors each: {', '.join(f'{name} {count:.2f}' for name, count in each.items())} "
        f"(goal other 0: {'ok' if each['other'] <= 0 else 'NOT REACHED'}), "
        f"first wake {crowd['first_wake_s']:.2f} s"
    )


def report(raw: Raw, slopes: dict[str, dict[str, list[float]]], crowd: Any) -> dict[str, Any]:
    """Print the table; give it as JSON."""
    s = statistics.median(raw["host"])
    awake = statistics.median(raw["awake"])
    print(f"S (plain ipykernel on the host, p50 of {len(raw['host'])}): {s * 1e3:.0f} ms")
    figures: dict[str, Any] = {"S": s, "awake": awake, "crowd": crowd}
    rows = (
        ("hibernate", "hibernate a bare kernel", {"p50": 0.4}),
        ("gone", "  until no process is left", {"p50": 0.4}),
        ("wake", "execute on a hibernated one", {"p50": 0.4, "p95": 0.8}),
        ("ahead", "  whose sandbox stands ready", {"p50": 0.25}),
    )
    for key, title, goals in rows:
        figures[key] = {"p50": quantile(raw[key], 0.5), "p95": quantile(raw[key], 0.95)}
        told = "  ".join(
            f"{name} {value * 1e3:5.0f} ms = {value / s:5.2f} S"
            for name, value in figures[key].items()
        )
        print(f"{title:30} {told}")
        for name, goal in goals.items():
            reached = "ok" if figures[key][name] / s <= goal else "NOT REACHED"
            print(f"{'':30}   goal {name} <= {goal} S: {reached}")
    thaw = (statistics.median(raw["thaw"]) - awake) / s
    print(f"thaw: {thaw:.3f} S over an awake round trip (goal <= 0.03 S)")
    figures["thaw"] = thaw
    for mib, found in slopes.items():
        middle = {name: statistics.median(values) for name, values in found.items()}
        print(
            f"{mib} MiB: copy {middle['copy']:.2f} s, hibernate {middle['hibernate']:.2f} s = "
            f"{middle['hibernate'] / middle['copy']:.2f}x (goal 3), wake {middle['wake']:.2f} s = "
            f"{middle['wake'] / middle['copy']:.2f}x (goal 2), all of it read {middle['all']:.2f} s"
        )
        figures[f"slope_{mib}"] = middle
    report_crowd(crowd)
    return figures


def main() -> int:
    """Run everything; exit 0 when every figure could be taken (goals are reported, not enforced)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/bench/sleep.json"))
    parser.add_argument("--cycles", type=int, default=20)
    parser.add_argument("--kernels", type=int, default=100)
    parser.add_argument("--mib", type=int, nargs="*", default=[256, 1024])
    parser.add_argument("--only-many", action="store_true", help="many hibernated ones, no more")
    options = parser.parse_args()
    with torpor_home(CONFIG) as home, tempfile.TemporaryDirectory(prefix="tp-bench-") as name:
        folder = Path(name)
        if options.only_many:
            report_crowd(many(home, folder, options.kernels))
            return 0
        raw = bare(home, folder, options.cycles)
        slopes = {str(mib): slope(home, folder, mib, 5) for mib in options.mib}
        crowd = many(home, folder, options.kernels)
    with (
        torpor_home(f"{CONFIG}c.TorporDaemon.wake_ahead = 1\n") as home,
        tempfile.TemporaryDirectory(prefix="tp-bench-") as name,
    ):
        raw["ahead"] = ahead(home, Path(name), options.cycles)
    figures = report(raw, slopes, crowd)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    machine = {
        "python": platform.python_version(),
        "kernel": platform.release(),
        "processors": os.cpu_count(),
        "load": os.getloadavg(),
    }
    document = {"machine": machine, "figures": figures, "raw": {**raw, "slopes": slopes}}
    options.out.write_text(json.dumps(document, indent=1))
    print(f"raw numbers: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
