"""Isolation probes: each is a piece of Python that tries to reach something it must not reach.

The same text runs twice: by an ordinary process of the host (the positive control: it must succeed
there, or the probe proves nothing) and by a sandboxed kernel, where it must fail. A probe is the body
of ``def probe(a):``; ``a`` is a dict of names and secrets made by the test. It returns a true value
(the evidence) when it reached its target; an OSError or a false value means it did not.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

PRELUDE = """
import ctypes, glob, json, os, socket, stat, struct, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
def check(result):
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
def read(path, size=65536):
    with open(path, 'rb') as f:
        return f.read(size)
def connect(family, kind, address, send=b'probe'):
    s = socket.socket(family, kind)
    s.settimeout(2)
    try:
        s.connect(address)
        s.send(send)
        return s.recv(100)
    finally:
        s.close()
"""


@dataclass(frozen=True, slots=True)
class Probe:
    """One attempt. ``area`` groups probes in the report; ``body`` is described in the module docstring."""

    name: str
    area: str
    body: str

    def source(self, arguments: dict[str, object]) -> str:
        """Give a whole program that prints ``{"reached": bool, "detail": str}`` as its last line."""
        body = textwrap.indent(textwrap.dedent(self.body).strip(), "    ")
        return (
            f"{PRELUDE}\ndef probe(a):\n{body}\n"
            f"try:\n    _r = probe(json.loads({_json(arguments)!r}))\n"
            "    _out = {'reached': bool(_r), 'detail': repr(_r)[:200]}\n"
            "except OSError as e:\n    _out = {'reached': False, 'detail': repr(e)[:200]}\n"
            "print('PROBE ' + json.dumps(_out))\n"
        )


def _json(arguments: dict[str, object]) -> str:
    import json

    return json.dumps(arguments)


FILES = [
    Probe("host file", "files", "return a['secret'].encode() in read(a['secret_file'])"),
    Probe("host account database", "files", "return b'root:' in read('/etc/shadow')"),
    Probe("host home folder", "files", "return a['home_marker'] in os.listdir(a['home'])"),
    Probe(
        "write to system folders",
        "files",
        """
        path = '/usr/lib/' + a['tag']
        fd = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600); os.close(fd); os.unlink(path)
        return path
        """,
    ),
    Probe(
        "write to the Python environment",
        "files",
        """
        path = os.path.join(a['site_packages'], a['tag'])
        fd = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600); os.close(fd); os.unlink(path)
        return path
        """,
    ),
    Probe(
        "symlink out of the workspace",
        "files",
        "return a['secret'].encode() in read(os.path.join(a['workspace'], 'link'))",
    ),
    Probe(
        "dot-dot out of the workspace",
        "files",
        """
        path = os.path.join(a['workspace'], '../' * 30 + a['secret_file'].lstrip('/'))
        return a['secret'].encode() in read(path)
        """,
    ),
    Probe(
        "root of another process",
        "files",
        "return any(a['secret'].encode() in read(r + a['secret_file'])"
        " for r in glob.glob('/proc/[0-9]*/root') if os.access(r + a['secret_file'], os.R_OK))",
    ),
    Probe("registry and logs of the daemon", "files", "return os.listdir(a['torpor_state'])"),
    Probe(
        "file by handle",
        "files",
        """
        fd = os.open('/', os.O_RDONLY)
        handle = ctypes.create_string_buffer(struct.pack('Ii', 64, 0) + b'\\0' * 64)
        mount = ctypes.c_int()
        check(libc.name_to_handle_at(fd, b'usr', handle, ctypes.byref(mount), 0))
        return check(libc.open_by_handle_at(fd, handle, os.O_RDONLY)) >= 0
        """,
    ),
]

DEVICES = [
    Probe(
        "kernel log device",
        "devices",
        "fd = os.open('/dev/kmsg', os.O_RDONLY | os.O_NONBLOCK); return os.read(fd, 8192)",
    ),
    Probe(
        "any further device",
        "devices",
        """
        harmless = {'null', 'zero', 'full', 'random', 'urandom', 'tty', 'ptmx', 'console'}
        harmless |= {'fuse'}  # gVisor answers this one itself; using it takes a mount, see below
        for name in set(os.listdir('/dev')) - harmless:
            try:
                if stat.S_ISCHR(os.lstat('/dev/' + name).st_mode):
                    return os.open('/dev/' + name, os.O_RDONLY | os.O_NONBLOCK) >= 0 and name
            except OSError:
                pass
        """,
    ),
    Probe(
        "device made by hand",
        "devices",
        """
        path = '/tmp/' + a['tag']
        os.mknod(path, 0o600 | 0o020000, os.makedev(10, 229))
        try:
            return os.open(path, os.O_RDWR) >= 0
        finally:
            os.unlink(path)
        """,
    ),
]

ENVIRONMENT = [
    Probe(
        "environment of the server",
        "environment",
        "return os.environ.get(a['env_name']) == a['secret']",
    ),
    Probe(
        "environment of any process",
        "environment",
        """
        for path in glob.glob('/proc/[0-9]*/environ'):
            try:
                if (a['env_name'] + '=' + a['secret']).encode() in read(path):
                    return path
            except OSError:
                pass
        """,
    ),
    Probe("host name", "environment", "return socket.gethostname() == a['hostname']"),
]

PROCESSES = [
    Probe(
        "list of host processes",
        "processes",
        """
        for path in glob.glob('/proc/[0-9]*/cmdline'):
            try:
                if a['sleeper_tag'].encode() in read(path):
                    return path
            except OSError:
                pass
        """,
    ),
    Probe("signal to a host process", "processes", "os.kill(a['sleeper_pid'], 0); return True"),
    Probe(
        "memory of a host process",
        "processes",
        "return os.open('/proc/%d/mem' % a['sleeper_pid'], os.O_RDONLY) >= 0",
    ),
    Probe(
        "trace a host process",
        "processes",
        """
        check(libc.ptrace(0x4206, a['sleeper_pid'], 0, 0))
        check(libc.ptrace(0x4207, a['sleeper_pid'], 0, 0))
        os.waitpid(a['sleeper_pid'], 0x40000000)
        check(libc.ptrace(17, a['sleeper_pid'], 0, 0))
        return True
        """,
    ),
]

PRIVILEGES = [
    Probe(
        "capabilities",
        "privileges",
        "return int([l for l in open('/proc/self/status') if l.startswith('CapEff')][0].split()[1], 16)",
    ),
    Probe(
        "mount",
        "privileges",
        """
        pid = os.fork()
        if pid == 0:
            try:
                check(libc.unshare(0x20000))
                check(libc.mount(b'none', b'/', None, 0x44000, None))
                check(libc.mount(b'tmpfs', b'/tmp', b'tmpfs', 0, None))
                os._exit(0)
            except BaseException:
                os._exit(1)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        """,
    ),
    Probe(
        "chroot",
        "privileges",
        """
        pid = os.fork()
        if pid == 0:
            try:
                os.chroot('/tmp'); os._exit(0)
            except BaseException:
                os._exit(1)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        """,
    ),
    Probe(
        "change of owner",
        "privileges",
        """
        path = '/tmp/' + a['tag']
        open(path, 'w').close()
        try:
            os.chown(path, 12345, 12345); return os.stat(path).st_uid == 12345
        finally:
            os.unlink(path)
        """,
    ),
    Probe(
        "clock",
        "privileges",
        "import time; time.clock_settime(time.CLOCK_REALTIME, time.clock_gettime(time.CLOCK_REALTIME)); return True",
    ),
    Probe(
        "kernel parameter",
        "privileges",
        """
        with open('/proc/sys/kernel/domainname') as f: old = f.read()
        with open('/proc/sys/kernel/domainname', 'w') as f: f.write(old)
        return True
        """,
    ),
    Probe(
        "kernel symbols",
        "privileges",
        "return b' T ' in read('/proc/kallsyms') or b' t ' in read('/proc/kallsyms')",
    ),
    Probe(
        "performance counters",
        "privileges",
        """
        attr = ctypes.create_string_buffer(struct.pack('IIQ', 1, 120, 0) + b'\\0' * 104)
        return check(libc.syscall(298, attr, 0, -1, -1, 0)) >= 0
        """,
    ),
    Probe(
        "kernel programs (bpf)",
        "privileges",
        """
        attr = ctypes.create_string_buffer(struct.pack('IIIII', 2, 4, 8, 1, 0) + b'\\0' * 100)
        return check(libc.syscall(321, 0, attr, 120)) >= 0
        """,
    ),
]

NETWORK = [
    Probe(
        "TCP to the host's loopback",
        "network",
        "return connect(2, 1, ('127.0.0.1', a['tcp_port']))",
    ),
    Probe(
        "UDP to the host's loopback",
        "network",
        "return connect(2, 2, ('127.0.0.1', a['udp_port']))",
    ),
    Probe(
        "IPv6 to the host's loopback", "network", "return connect(10, 1, ('::1', a['tcp6_port']))"
    ),
    Probe(
        "Unix socket of the daemon",
        "network",
        "return connect(1, 1, a['daemon_socket'], b'GET /v1/status HTTP/1.0\\r\\n\\r\\n')",
    ),
    Probe("abstract Unix socket", "network", "return connect(1, 1, '\\0' + a['abstract'])"),
    Probe(
        "metadata address",
        "network",
        "return connect(2, 1, ('169.254.169.254', a['metadata_port']))",
    ),
    Probe("private address", "network", "return connect(2, 1, ('10.99.77.1', a['private_port']))"),
    Probe(
        "DNS query",
        "network",
        """
        query = struct.pack('>HHHHHH', 7, 0x100, 1, 0, 0, 0) + b'\\x07example\\x04test\\0' + struct.pack('>HH', 1, 1)
        return connect(2, 2, ('127.0.0.1', a['dns_port']), query)
        """,
    ),
    Probe(
        "packet socket",
        "network",
        "socket.socket(17, socket.SOCK_RAW, socket.htons(3)).close(); return True",
    ),
    Probe(
        "raw ICMP socket",
        "network",
        "socket.socket(2, socket.SOCK_RAW, socket.IPPROTO_ICMP).close(); return True",
    ),
    Probe(
        "host network interfaces",
        "network",
        "return a['interface'] in [n for _, n in socket.if_nameindex()]",
    ),
]

NEIGHBOURS = [
    Probe(
        "file of a neighbour in /tmp",
        "neighbours",
        "return a['neighbour_secret'].encode() in read('/tmp/' + a['neighbour_file'])",
    ),
    Probe(
        "process of a neighbour",
        "neighbours",
        """
        for path in glob.glob('/proc/[0-9]*/cmdline'):
            try:
                if a['neighbour_tag'].encode() in read(path) and path != '/proc/%d/cmdline' % os.getpid():
                    return path
            except OSError:
                pass
        """,
    ),
    Probe(
        "loopback server of a neighbour",
        "neighbours",
        "return connect(2, 1, ('127.0.0.1', a['neighbour_port']))",
    ),
    Probe(
        "shared memory of a neighbour",
        "neighbours",
        "return a['neighbour_secret'].encode() in read('/dev/shm/' + a['neighbour_file'])",
    ),
]

ALL = [*FILES, *DEVICES, *ENVIRONMENT, *PROCESSES, *PRIVILEGES, *NETWORK, *NEIGHBOURS]
