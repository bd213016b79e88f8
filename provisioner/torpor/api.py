"""The requests of the control API as values: what a client sends and the daemon parses.

A launch request on the wire::

    {"kernel_id": "5e1f...", "template": null, "kernel_name": "python3",
     "argv": ["/usr/bin/python3", "-m", "ipykernel_launcher", "-f", "{connection_file}"],
     "env": {"MPLBACKEND": "Agg"}, "cwd": "/home/ada/work", "workspace": "/home/ada/work",
     "client": {"transport": "tcp", "ip": "127.0.0.1",
                "ports": {"shell": 0, "iopub": 0, "stdin": 0, "control": 0, "hb": 0},
                "key": "...", "signature_scheme": "hmac-sha256",
                "curve_publickey": null, "curve_secretkey": null},
     "lease": true, "start_timeout_s": null}

``{connection_file}`` in ``argv`` is filled in inside the sandbox. Port 0 means: choose one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from torpor.errors import ConfigError

API_VERSION = 1
API_HEADER = "Torpor-Api"
CHANNELS = ("shell", "iopub", "stdin", "control", "hb")

_KERNEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SCHEME = re.compile(r"hmac-[a-z0-9_]+")


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where a kernel's clients connect, and the secrets they share with the bridge."""

    transport: str
    """``tcp`` or ``ipc``."""
    ip: str
    """An address; for ipc an absolute path prefix: the sockets are ``IP-PORT``."""
    ports: Mapping[str, int]
    """One per name in ``CHANNELS``; 0 where the bridge is to choose."""
    key: str = field(repr=False)
    signature_scheme: str = "hmac-sha256"
    curve_publickey: str | None = None
    curve_secretkey: str | None = field(default=None, repr=False)

    @property
    def holder(self) -> str:
        """Name whoever has these endpoints without telling the key: for removing only one's own."""
        secret = f"{self.transport} {self.ip} {self.key} {self.curve_secretkey}"
        return hashlib.sha256(secret.encode()).hexdigest()[:32]

    def with_ports(self, ports: Mapping[str, int]) -> Endpoints:
        """Give the same endpoints with the ports that were really bound."""
        return replace(self, ports={name: int(ports[name]) for name in CHANNELS})

    def to_json(self) -> dict[str, Any]:
        return {**self.public_json(), "key": self.key, "curve_secretkey": self.curve_secretkey}

    def public_json(self) -> dict[str, Any]:
        """Give the shape without anything secret."""
        return {
            "transport": self.transport,
            "ip": self.ip,
            "ports": dict(self.ports),
            "signature_scheme": self.signature_scheme,
            "curve_publickey": self.curve_publickey,
        }


@dataclass(frozen=True, slots=True)
class LaunchRequest:
    """All that a caller may say about a new kernel (module docstring: the JSON shape)."""

    kernel_id: str
    argv: tuple[str, ...]
    cwd: str
    client: Endpoints
    kernel_name: str = ""
    template: str | None = None
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    workspace: str | None = None
    lease: bool = True
    start_timeout_s: float | None = None
    env_allow: tuple[str, ...] | None = None
    """By which the caller chose among inherited variables; None when there were none to choose."""

    def to_json(self) -> dict[str, Any]:
        return {
            "kernel_id": self.kernel_id,
            "template": self.template,
            "kernel_name": self.kernel_name,
            "argv": list(self.argv),
            "env": dict(self.env),
            "cwd": self.cwd,
            "workspace": self.workspace,
            "client": self.client.to_json(),
            "lease": self.lease,
            "start_timeout_s": self.start_timeout_s,
            "env_allow": None if self.env_allow is None else list(self.env_allow),
        }


def parse_launch_request(body: object) -> LaunchRequest:
    """Give the request in ``body``. Raises ConfigError, naming the field that is wrong."""
    fields = _mapping(body, "the launch request")
    kernel_id = _text(fields, "kernel_id")
    if not _KERNEL_ID.fullmatch(kernel_id):
        raise ConfigError(
            f"kernel_id {kernel_id[:140]!r} is not usable",
            hint="up to 128 letters, digits, dots, dashes and underscores",
        )
    timeout_s = fields.get("start_timeout_s")
    if timeout_s is not None and not (_is_number(timeout_s) and 0 < timeout_s <= 3600):
        raise ConfigError(f"start_timeout_s must be between 0 and 3600 seconds, not {timeout_s!r}")
    template, workspace = fields.get("template"), fields.get("workspace")
    return LaunchRequest(
        kernel_id=kernel_id,
        argv=_argv(fields.get("argv")),
        cwd=_absolute(_text(fields, "cwd"), "cwd"),
        client=parse_endpoints(fields.get("client")),
        kernel_name=_text(fields, "kernel_name", default=""),
        template=None if template is None else _text(fields, "template"),
        env=_env(fields.get("env")),
        workspace=None if workspace is None else _absolute(workspace, "workspace"),
        lease=bool(fields.get("lease", True)),
        start_timeout_s=None if timeout_s is None else float(timeout_s),
        env_allow=None if fields.get("env_allow") is None else _names(fields["env_allow"]),
    )


@dataclass(frozen=True, slots=True)
class GoldenRequest:
    """What kind of kernel a golden should serve: a ``LaunchRequest`` that is nobody's."""

    argv: tuple[str, ...]
    cwd: str
    kernel_name: str = ""
    template: str | None = None
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    workspace: str | None = None


def parse_golden_request(body: object) -> GoldenRequest:
    """Give the request in ``body``. Raises ConfigError, naming the field that is wrong."""
    fields = _mapping(body, "the golden request")
    template, workspace = fields.get("template"), fields.get("workspace")
    return GoldenRequest(
        argv=_argv(fields.get("argv")),
        cwd=_absolute(_text(fields, "cwd"), "cwd"),
        kernel_name=_text(fields, "kernel_name", default=""),
        template=None if template is None else _text(fields, "template"),
        env=_env(fields.get("env")),
        workspace=None if workspace is None else _absolute(workspace, "workspace"),
    )


def parse_endpoints(body: object) -> Endpoints:
    """Give the endpoints in ``body``. Raises ConfigError, naming the field that is wrong."""
    fields = _mapping(body, "client")
    transport = _text(fields, "transport")
    if transport not in ("tcp", "ipc"):
        raise ConfigError(f"transport {transport!r} is unknown", hint="tcp or ipc")
    ip = _text(fields, "ip")
    if transport == "ipc":
        _absolute(ip, "ip (a path prefix, for ipc)")
    scheme = _text(fields, "signature_scheme", default="hmac-sha256")
    if not _SCHEME.fullmatch(scheme):
        raise ConfigError(
            f"signature_scheme {scheme!r} is unknown", hint="hmac-sha256, for example"
        )
    public, secret = (_optional(fields, name) for name in ("curve_publickey", "curve_secretkey"))
    if (public is None) != (secret is None):
        raise ConfigError("curve_publickey and curve_secretkey go together; only one was given")
    ports = _mapping(fields.get("ports", {}), "client.ports")
    return Endpoints(
        transport=transport,
        ip=ip,
        ports={name: _port(ports.get(name, 0), name) for name in CHANNELS},
        key=_text(fields, "key", default=""),
        signature_scheme=scheme,
        curve_publickey=public,
        curve_secretkey=secret,
    )


def _mapping(value: object, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name} must be a JSON object")
    return value


def _text(fields: Mapping[str, Any], name: str, *, default: str | None = None) -> str:
    value = fields.get(name, default)
    if not isinstance(value, str) or "\0" in value:
        raise ConfigError(f"{name} must be a string without null bytes")
    return value


def _optional(fields: Mapping[str, Any], name: str) -> str | None:
    return None if fields.get(name) is None else _text(fields, name)


def _absolute(value: object, name: str) -> str:
    if not isinstance(value, str) or not PurePosixPath(value).is_absolute() or "\0" in value:
        raise ConfigError(f"{name} must be an absolute path, not {value!r:.200}")
    return value


def _argv(value: object) -> tuple[str, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise ConfigError("argv must be a list with at least the program to run")
    if not all(isinstance(item, str) and "\0" not in item for item in value) or not value[0]:
        raise ConfigError("argv must hold strings without null bytes, the first not empty")
    return tuple(value)


def _names(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ConfigError("env_allow must be a list of names")
    return tuple(value)


def _env(value: object) -> dict[str, str]:
    env = _mapping({} if value is None else value, "env")
    for name, text in env.items():
        if not name or "=" in name or "\0" in name or not isinstance(text, str) or "\0" in text:
            raise ConfigError(f"environment variable {name!r:.100} cannot be set to that value")
    return dict(env)


def _port(value: object, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 65535:
        raise ConfigError(f"port {name} must be between 0 and 65535, not {value!r:.40}")
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
