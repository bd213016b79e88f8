"""The things probes reach for: secrets, host processes, servers in a private network namespace."""

from __future__ import annotations

import ctypes
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path

CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)


def enter_private_network(stack: ExitStack) -> str:
    """Move this thread into a network namespace of its own; undone by ``stack``. Give an interface name.

    Loopback there also carries the metadata address and a private address, so servers of the test can
    answer on them without a packet leaving the namespace.
    """
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    stack.callback(os.close, before)
    if _LIBC.unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNET)")
    stack.callback(_LIBC.setns, before, CLONE_NEWNET)
    for command in (
        "ip link set lo up",
        "ip addr add 169.254.169.254/32 dev lo",
        "ip addr add 10.99.77.1/32 dev lo",
        "ip link add tp-probe type veth peer name tp-peer",
    ):
        subprocess.run(command.split(), check=True)
    return "tp-probe"


def serve(family: int, kind: int, address: object, stack: ExitStack) -> int:
    """Answer every connection or datagram on ``address`` with ``here``; give the port (0 if none)."""
    server = socket.socket(family, kind)
    stack.callback(server.close)
    server.bind(address)  # type: ignore[arg-type]
    if kind == socket.SOCK_STREAM:
        server.listen(16)

    def loop() -> None:
        while True:
            try:
                if kind == socket.SOCK_STREAM:
                    peer, _ = server.accept()
                    peer.settimeout(2)
                    with peer:
                        peer.recv(100)
                        peer.sendall(b"here")
                else:
                    _, sender = server.recvfrom(2000)
                    server.sendto(b"here", sender)
            except TimeoutError:
                continue
            except OSError:  # whoever asked has left, which is no end; or this was closed
                if server.fileno() < 0:
                    return

    threading.Thread(target=loop, daemon=True).start()
    name = server.getsockname()
    return int(name[1]) if isinstance(name, tuple) else 0


def build(stack: ExitStack, home: Path, workspace: Path, interface: str) -> dict[str, object]:
    """Set the scene and give the arguments of the probes."""
    secret = secrets.token_hex(16)
    outside = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tp-outside-")))
    outside.chmod(0o755)
    secret_file = outside / "secret.txt"
    secret_file.write_text(secret)
    (workspace / "link").symlink_to(secret_file)
    marker = f".torpor-probe-{secret[:8]}"
    home_marker = Path.home() / marker
    home_marker.touch()
    stack.callback(home_marker.unlink)
    env_name = "PROBE_SERVER_TOKEN"
    os.environ[env_name] = secret
    stack.callback(os.environ.pop, env_name)
    tag = f"tp-sleeper-{secret[:8]}"
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", tag])
    stack.callback(sleeper.wait)
    stack.callback(sleeper.kill)
    inet, inet6, unix = socket.AF_INET, socket.AF_INET6, socket.AF_UNIX
    tcp, udp = socket.SOCK_STREAM, socket.SOCK_DGRAM
    abstract = f"tp-{secret[:8]}"
    serve(unix, tcp, "\0" + abstract, stack)
    return {
        "secret": secret,
        "secret_file": str(secret_file),
        "home": str(Path.home()),
        "home_marker": marker,
        "tag": f"tp-{secret[:8]}",
        "site_packages": str(Path(os.__file__).parent / "site-packages"),
        "workspace": str(workspace),
        "torpor_state": str(home / "state"),
        "env_name": env_name,
        "hostname": socket.gethostname(),
        "sleeper_tag": tag,
        "sleeper_pid": sleeper.pid,
        "tcp_port": serve(inet, tcp, ("127.0.0.1", 0), stack),
        "udp_port": serve(inet, udp, ("127.0.0.1", 0), stack),
        "tcp6_port": serve(inet6, tcp, ("::1", 0), stack),
        "metadata_port": serve(inet, tcp, ("169.254.169.254", 0), stack),
        "private_port": serve(inet, tcp, ("10.99.77.1", 0), stack),
        "dns_port": serve(inet, udp, ("127.0.0.1", 0), stack),
        "daemon_socket": str(home / "run" / "torpord.sock"),
        "abstract": abstract,
        "interface": interface,
        "neighbour_secret": secrets.token_hex(16),
        "neighbour_file": f"tp-neighbour-{secret[:8]}",
        "neighbour_tag": f"tp-neighbour-process-{secret[:8]}",
        "neighbour_port": 45871,
    }


NEIGHBOUR = """
import subprocess, sys, socket, threading
open('/tmp/{neighbour_file}', 'w').write('{neighbour_secret}')
open('/dev/shm/{neighbour_file}', 'w').write('{neighbour_secret}')
_p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)', '{neighbour_tag}'])
_s = socket.socket(); _s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
_s.bind(('127.0.0.1', {neighbour_port})); _s.listen(5)
def _serve():
    while True:
        c, _ = _s.accept(); c.recv(100); c.sendall(b'here'); c.close()
threading.Thread(target=_serve, daemon=True).start()
print('neighbour ready', flush=True)
"""
