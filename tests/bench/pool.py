"""Starts from the pool beside a plain host ipykernel, in one run. ``python -m tests.bench.pool``.

S is the time from ``start_kernel`` to the first ``execute_reply`` of a plain ipykernel on this host.
Everything else is told as a multiple of it, with p50, p95 and p99, and every raw number is kept as JSON.
Host and sandbox alternate, so that drift of the machine hits both.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import secrets
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jupyter_client.asynchronous import AsyncKernelClient
from jupyter_client.manager import KernelManager
from torpor.api import CHANNELS, Endpoints, LaunchRequest
from torpor.client import Client
from torpor.client_pool import PoolClient
from torpor.config import user_paths

from tests.bench.memory import pss_bytes
from tests.home import KERNEL, torpor_home

HOST = "python3"
CONFIG = """
c.TorporDaemon.pool = True
c.Torpor.templates = {
    "default": {"pool_most": 24},
    "unpooled": {"pool_most": 0},
}
"""
_KINDS = ("host", "warm", "api", "cloned", "cold", "burst", "api_burst", "host_burst")
Raw = dict[str, list[dict[str, float]]]


def first_reply(
    kernel: str, cwd: Path, ends: list[tuple[Any, Any]] | None = None
) -> dict[str, float]:
    """Start a kernel and execute one cell; give the seconds of each part.

    It is shut down then, or with ``ends`` put there.
    """
    began = time.perf_counter()
    manager = KernelManager(kernel_name=kernel)
    manager.start_kernel(cwd=str(cwd))
    started = time.perf_counter()
    client = manager.client()
    client.start_channels()
    connected = time.perf_counter()
    _reply(client)
    replied = time.perf_counter()
    _reply(client)
    again = time.perf_counter()
    if ends is None:
        _end(manager, client)
    else:
        ends.append((manager, client))
    return {
        "total": replied - began,
        "start_kernel": started - began,
        "channels": connected - started,
        "first_execute": replied - connected,
        "second_execute": again - replied,
    }


def _end(manager: Any, client: Any) -> None:
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def _reply(client: Any) -> None:
    msg_id = client.execute("1 + 1")
    while client.get_shell_msg(timeout=120)["parent_header"].get("msg_id") != msg_id:
        pass


async def api_reply(cwd: Path) -> dict[str, float]:
    """Do the same without jupyter_client's manager, as a program that drives kernels would."""
    key = secrets.token_hex(16)
    endpoints = Endpoints("tcp", "127.0.0.1", dict.fromkeys(CHANNELS, 0), key)
    argv = (sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}")
    kernel_id = secrets.token_hex(8)
    daemon = Client(user_paths())
    env = {name: os.environ[name] for name in ("LANG", "PYTHONPATH") if name in os.environ}
    request = LaunchRequest(
        kernel_id, argv, str(cwd), endpoints, kernel_name=KERNEL, env=env, workspace=str(cwd)
    )
    began = time.perf_counter()
    state = await daemon.launch(request)
    started = time.perf_counter()
    client = AsyncKernelClient()
    ports = {f"{name}_port": port for name, port in state["client"]["ports"].items()}
    client.load_connection_info(
        {"ip": "127.0.0.1", "transport": "tcp", "key": key, "signature_scheme": "hmac-sha256"}
        | ports
    )
    client.start_channels(shell=True, iopub=False, stdin=False, hb=False, control=False)
    msg_id = client.execute("1 + 1")
    while (await client.get_shell_msg(timeout=120))["parent_header"].get("msg_id") != msg_id:
        pass
    replied = time.perf_counter()
    client.stop_channels()
    client.context.destroy(linger=0)
    return {"total": replied - began, "launch": started - began, "kernel_id": kernel_id}  # type: ignore[dict-item]


async def api_burst(count: int, cwd: Path) -> list[dict[str, float]]:
    """Start so many at once over the control API, remove them afterwards."""
    found = await asyncio.gather(*(api_reply(cwd) for _ in range(count)))
    for each in found:
        await Client(user_paths()).delete(str(each.pop("kernel_id")))
    return found


def pool_state() -> dict[str, Any]:
    return asyncio.run(PoolClient(Client(user_paths())).pool())


def wait_ready(count: int, within_s: float = 120) -> None:
    """Return once so many clones wait, in all."""
    deadline = time.monotonic() + within_s
    while sum(shape["ready"] for shape in pool_state()["shapes"]) < count:
        if time.monotonic() > deadline:
            raise AssertionError(f"{count} clones were not ready in {within_s} s: {pool_state()}")
        time.sleep(0.1)


def burst(count: int, cwd: Path, kernel: str = KERNEL) -> list[dict[str, float]]:
    """Start so many at the same moment; give what each took."""
    ends: list[tuple[Any, Any]] = []
    with ThreadPoolExecutor(count) as threads:
        found = list(threads.map(lambda _: first_reply(kernel, cwd, ends), range(count)))
        list(threads.map(lambda end: _end(*end), ends))
    return found


def measure(options: argparse.Namespace, home: Path, folder: Path) -> tuple[Raw, dict[str, Any]]:
    raw: Raw = {name: [] for name in _KINDS}
    same = folder / "same"
    same.mkdir()
    first_reply(KERNEL, same)
    wait_ready(1)
    for number in range(options.starts):
        raw["host"].append(first_reply(HOST, same))
        wait_ready(1)
        time.sleep(options.rest_s)
        raw["warm"].append(first_reply(KERNEL, same))
        wait_ready(1)
        time.sleep(options.rest_s)
        raw["api"] += asyncio.run(api_burst(1, same))
        if number % 3 == 0:
            other = folder / f"other{number}"
            other.mkdir()
            raw["cloned"].append(first_reply(KERNEL, other))
            raw["cold"].append(first_reply("unpooled", same))
    burst(options.burst, same)  # the pool learns what comes
    wait_ready(min(options.burst, 20))
    time.sleep(options.rest_s)
    memory = pss_bytes(home)
    raw["burst"] = burst(options.burst, same)
    wait_ready(min(options.burst, 20))
    time.sleep(options.rest_s)
    raw["api_burst"] = asyncio.run(api_burst(options.burst, same))
    raw["host_burst"] = burst(options.burst, same, HOST)
    return raw, memory


def quantile(values: list[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


GOALS = {
    "warm": ("warm claim to first reply", {"p50": 0.05, "p99": 0.25}),
    "api": ("  the same by control API", {}),
    "burst": ("20 at once, from the pool", {"p99": 1.0}),
    "api_burst": ("  the same by control API", {"p99": 1.0}),
    "host_burst": ("  20 plain ones at once", {}),
    "cloned": ("golden clone to first reply", {"p50": 0.6}),
    "cold": ("cold start to first reply", {}),
}


def report(raw: Raw, memory: dict[str, Any]) -> dict[str, Any]:
    """Print the table; give it as JSON."""
    s = statistics.median(each["total"] for each in raw["host"])
    print(f"S (plain ipykernel on the host, p50 of {len(raw['host'])}): {s * 1e3:.0f} ms")
    figures: dict[str, Any] = {"S": s}
    for key, (title, goals) in GOALS.items():
        totals = [each["total"] for each in raw[key]]
        row = {
            name: quantile(totals, part)
            for name, part in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
        }
        words = [
            f"{name} {value * 1e3:6.0f} ms = {value / s:5.3f} S" for name, value in row.items()
        ]
        print(f"{title:28} n={len(totals):3}  {'  '.join(words)}")
        for name, goal in goals.items():
            verdict = "ok" if row[name] / s <= goal else "NOT REACHED"
            print(f"{'':28}   goal {name} <= {goal} S: {verdict}")
        figures[key] = {name: {"s": value, "ratio": value / s} for name, value in row.items()}
    for key in ("host", "warm"):
        parts = {name: statistics.median(each[name] for each in raw[key]) for name in raw[key][0]}
        words = "  ".join(f"{name} {value * 1e3:.1f}" for name, value in parts.items())
        print(f"medians of {key} in ms: {words}")
        figures[f"{key}_parts"] = parts
    print(f"memory: {json.dumps(memory)}")
    return {**figures, "memory": memory}


def main() -> int:
    """Run everything; exit 0 when every figure could be taken (goals are reported, not enforced)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/bench/pool.json"))
    parser.add_argument("--starts", type=int, default=30)
    parser.add_argument("--burst", type=int, default=20)
    parser.add_argument("--rest-s", type=float, default=0.5)
    options = parser.parse_args()
    with torpor_home(CONFIG) as home, tempfile.TemporaryDirectory(prefix="tp-bench-") as folder:
        from tests.home import write_kernelspec

        provisioner = {"provisioner_name": "torpor-provisioner", "config": {"template": "unpooled"}}
        write_kernelspec(
            Path(os.environ["JUPYTER_PATH"]),
            "unpooled",
            metadata={"kernel_provisioner": provisioner},
        )
        raw, memory = measure(options, home, Path(folder))
    figures = report(raw, memory)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    machine = {
        "python": platform.python_version(),
        "kernel": platform.release(),
        "processors": os.cpu_count(),
        "load": os.getloadavg(),
    }
    options.out.write_text(
        json.dumps({"machine": machine, "figures": figures, "raw": raw}, indent=1)
    )
    print(f"raw numbers: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
