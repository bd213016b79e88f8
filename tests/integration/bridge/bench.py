"""What the bridge costs: ``python -m tests.integration.bridge.bench``; ratios of one run.

* round trip client -> bridge -> echo guest -> bridge -> client, beside a bare DEALER/ROUTER pair;
* CPU per relayed message, from the bridge's own /proc times under a flood of output;
* CPU of an idle bridge with one open kernel and a connected client.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import zmq
from jupyter_client.session import Session

from tests.integration.bridge.harness import FIFOS, GUEST_KEY, World, world_in

ROUTER = """
import sys, zmq
socket = zmq.Context().socket(zmq.ROUTER)
print(socket.bind_to_random_port("tcp://127.0.0.1"), flush=True)
while True:
    socket.send_multipart(socket.recv_multipart())
"""
ROUNDS = 2_000
ECHO_GUEST = Path(__file__).with_name("echo_guest.py")


def start_program(*arguments: str) -> subprocess.Popen[str]:
    """Start Python with its output in a pipe."""
    return subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True)


def message(session: Session) -> list[bytes]:
    """Give a fresh execute_request, signed, without identity."""
    content = {"code": "pass", "silent": False, "store_history": True, "user_expressions": {}}
    return session.serialize(session.msg("execute_request", content))


def round_trips(
    sockets: Sequence[zmq.Socket[bytes]], session: Session, rounds: int
) -> list[list[float]]:
    """Give the microseconds of each round trip of each socket, in turn: noise meets all alike."""
    found: list[list[float]] = [[] for _ in sockets]
    for _ in range(rounds):
        for socket, times in zip(sockets, found, strict=True):
            parts = message(session)
            start = time.perf_counter()
            socket.send_multipart(parts)
            socket.recv_multipart()
            times.append((time.perf_counter() - start) * 1e6)
    return [sorted(times) for times in found]


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def show(name: str, found: list[float]) -> float:
    p10, p50, p99 = (found[int(len(found) * share)] for share in (0.1, 0.5, 0.99))
    print(f"{name:36} p10 {p10:6.0f}  p50 {p50:6.0f}  p99 {p99:6.0f} µs", flush=True)
    return p50


async def open_echo(world: World, folder: Path, *flood: str) -> tuple[dict[str, int], int]:
    """Open a kernel whose guest is ``echo_guest``; give ports and the guest's pid."""
    folder.mkdir()
    fifos = {field: str(folder / name) for field, name in FIFOS.items()}
    for path in fifos.values():
        os.mkfifo(path)
    guest = start_program(str(ECHO_GUEST), fifos["fifo_in"], fifos["fifo_out"], *flood)
    ports = dict.fromkeys(("shell", "iopub", "stdin", "control", "hb"), 0)
    client = {"transport": "tcp", "ip": "127.0.0.1", "ports": ports, "key": "client-key"}
    client |= {"signature_scheme": "hmac-sha256"}
    opened = await world.bridge.call(
        "open", kernel_id=folder.name, client=client, guest_key=GUEST_KEY, resume=False, **fifos
    )
    world.sandboxes.append(_Killed(guest))  # type: ignore[arg-type]
    return opened["ports"], guest.pid


class _Killed:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


async def run(folder: Path) -> None:
    context = zmq.Context()
    session = Session(key=b"client-key")
    async with world_in(folder) as world:
        pid = await world.bridge_pid()
        ports, _ = await open_echo(world, folder / "echo")
        bare = start_program("-c", ROUTER)
        assert bare.stdout is not None
        direct, relayed = context.socket(zmq.DEALER), context.socket(zmq.DEALER)
        direct.connect(f"tcp://127.0.0.1:{bare.stdout.readline().strip()}")
        relayed.connect(f"tcp://127.0.0.1:{ports['shell']}")
        round_trips((direct, relayed), session, 200)
        before = cpu_s(pid)
        times = round_trips((direct, relayed), session, ROUNDS)
        host = show("bare DEALER/ROUTER pair", times[0])
        ours = show("through bridge, link and echo guest", times[1])
        print(f"ratio {ours / host:.2f}; added {ours - host:.0f} µs")
        print(f"bridge CPU per round trip: {(cpu_s(pid) - before) / ROUNDS * 1e6:.0f} µs")
        bare.kill()
        bare.wait()
        before, start = cpu_s(pid), time.monotonic()
        await asyncio.sleep(3)
        print(f"idle CPU: {(cpu_s(pid) - before) / (time.monotonic() - start) * 100:.2f} %")
        await flood(world, folder, context, pid)
    context.destroy(0)


async def flood(
    world: World, folder: Path, context: zmq.Context[zmq.Socket[bytes]], pid: int
) -> None:
    """Measure one-way output: messages per second and CPU for each."""
    for count, size in ((20_000, 60), (2_000, 100_000)):
        before = cpu_s(pid)
        ports, _ = await open_echo(world, folder / f"f{size}", "flood", str(count), str(size))
        listener = context.socket(zmq.SUB)
        listener.rcvhwm = 0
        listener.subscribe(b"")
        listener.connect(f"tcp://127.0.0.1:{ports['iopub']}")
        last, seen, start = -1, 0, 0.0
        while last < count - 1:
            parts = listener.recv_multipart()
            start = start or time.perf_counter()
            seen += 1
            last = int(json.loads(parts[-1])["text"].rstrip("."))
        took = time.perf_counter() - start
        used = (cpu_s(pid) - before) / seen * 1e6
        print(
            f"{seen} outputs of {size} bytes: {seen / took:,.0f} per second, "
            f"{seen * size / took / 1e6:,.0f} MB/s, bridge CPU {used:.1f} µs each"
        )
        listener.close(0)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(Path(folder)))


if __name__ == "__main__":
    main()
