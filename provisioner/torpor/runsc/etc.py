"""The small files that a sandbox's ``/etc`` holds instead of the host's. Pure."""

from __future__ import annotations

from collections.abc import Mapping

HOME = "/home/sandbox"
USER = "sandbox"

HOST_PIECES = (
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/pki/tls/certs",
    "/etc/pki/ca-trust/extracted",
    "/etc/ca-certificates",
    "/etc/alternatives",
    "/etc/fonts",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/etc/timezone",
    "/etc/mime.types",
    "/etc/magic",
    "/etc/services",
    "/etc/protocols",
    "/etc/os-release",
    "/etc/debian_version",
    "/etc/ImageMagick-6",
    "/etc/R",
    "/etc/julia",
    "/etc/texmf",
    "/etc/gitconfig",
)
"""Bound read-only from the host where it exists: none of it says who uses this machine."""


def hostname_of(sandbox_id: str) -> str:
    """Give the name of a sandbox's machine: 12 characters, so that a file that gVisor remembers from
    a golden has the length of the clone's."""
    return sandbox_id.ljust(12, "0")[:12]


def etc_files(hostname: str) -> Mapping[str, str]:
    """Give path and text of every generated file.

    The sandbox's only user is number 0 without any capability, because that is the one number that
    a user namespace without set-uid programs can map.
    """
    return {
        "/etc/passwd": (
            f"{USER}:x:0:0:{USER}:{HOME}:/bin/sh\n"
            f"root:x:0:0:root:{HOME}:/bin/sh\n"
            "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
        ),
        "/etc/group": f"{USER}:x:0:\nroot:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
        "/etc/hosts": f"127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost {hostname}\n",
        "/etc/hostname": f"{hostname}\n",
        "/etc/host.conf": "multi on\n",
        "/etc/resolv.conf": "",
        "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\nservices: files\n",
        "/etc/shells": "/bin/sh\n/bin/bash\n",
    }
