"""What the clients of one kernel manager connect to, and the connection file that tells them."""

from __future__ import annotations

import os
from typing import Any

import zmq
from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.localinterfaces import is_local_ip, local_ips

from torpor.api import CHANNELS, Endpoints
from torpor.errors import ConfigError


class Connection:
    """The endpoints of a kernel as ``km``, its manager, wants them; or of nobody in particular.

    Before the first launch the file is written as jupyter_client's own provisioner does, with ports
    that are free at that moment; they are only a guess, since another program may take them. While
    the kernel starts there is none, because people and programs take a file for a kernel that is
    there. Then it is written with what was really bound.
    """

    def __init__(self, km: Any) -> None:
        self._km = km
        self._wished: dict[str, int] = {}
        """The ports that the manager asked for before any was found; 0 for any."""
        self._prefix = ""
        """The absolute path of ipc sockets; the manager's may be relative, and stays so."""

    def prepare(self, encryption: str | None) -> None:
        """Settle transport, address and CURVE keys. ``encryption`` overrides the manager's policy.

        Raises:
            ConfigError: the address is none of this machine's.
        """
        km = self._km
        if km is None:
            return
        if km.transport == "tcp" and not is_local_ip(km.ip):
            raise ConfigError(
                f"kernels listen on local interfaces only; {km.ip} is not one",
                hint=f"this machine has: {', '.join(local_ips())}",
            )
        if km.transport == "ipc" and not self._prefix:
            self._prefix = os.path.abspath(km.ip)
        policy = km._transport_encryption_policy(encryption)
        wanted = policy == "required" or (
            policy == "auto" and km._kernel_supports_curve_encryption()
        )
        if wanted and km.curve_publickey is None:
            km.curve_publickey, km.curve_secretkey = zmq.curve_keypair()

    def write(self, session: str, bound: KernelConnectionInfo) -> KernelConnectionInfo:
        """Write the manager's connection file unless it is there; give what it says.

        ``session`` is the name of the Jupyter session, ``bound`` what the kernel already has.
        """
        km = self._km
        if km is None:
            return bound
        if bound:
            self._set_ports({name: bound[f"{name}_port"] for name in CHANNELS})  # type: ignore[literal-required]
        elif not self._wished:
            self._wished = self._ports()
        km.write_connection_file(jupyter_session=session)
        info: KernelConnectionInfo = km.get_connection_info()
        return info

    def endpoints(self) -> Endpoints:
        """Give what to ask the daemon for."""
        km = self._km
        if km is None:
            return Endpoints("tcp", "127.0.0.1", dict.fromkeys(CHANNELS, 0), os.urandom(16).hex())
        return Endpoints(
            transport=km.transport,
            ip=self.absolute(km.ip),
            ports=self._wished or self._ports(),
            key=km.session.key.decode(),
            signature_scheme=km.session.signature_scheme,
            curve_publickey=_text(km.curve_publickey),
            curve_secretkey=_text(km.curve_secretkey),
        )

    def settle(
        self, asked: Endpoints, bound: dict[str, Any], *, kernel_name: str, session: str
    ) -> KernelConnectionInfo:
        """Take over what was ``bound`` for ``asked``; the file then names it. Give all of it."""
        info: dict[str, Any] = {
            **{f"{name}_port": bound["ports"][name] for name in CHANNELS},
            "ip": bound["ip"] if self._km is None else self._km.ip,
            "transport": bound["transport"],
            "signature_scheme": asked.signature_scheme,
            "key": asked.key.encode(),
            "kernel_name": kernel_name,
        }
        if asked.curve_publickey is not None:
            info["curve_publickey"] = asked.curve_publickey
            info["curve_secretkey"] = asked.curve_secretkey
        km = self._km
        if km is not None and self._ports() != bound["ports"]:
            self._set_ports(bound["ports"])
            km._connection_file_written = False
        if km is not None:
            km.write_connection_file(jupyter_session=session)
        self._wished = {}
        return info  # type: ignore[return-value]

    def absolute(self, ip: str) -> str:
        """Give ``ip`` as every process understands it."""
        return self._prefix or ip

    def adopt(self, info: KernelConnectionInfo) -> None:
        """Continue with the endpoints that another process has had."""
        self._prefix = info["ip"] if info.get("transport") == "ipc" else ""

    def hide(self) -> None:
        """Remove the file with the guess until ``settle`` writes it anew."""
        if self._km is not None:
            self._km.cleanup_connection_file()

    def forget(self) -> None:
        """Let the next kernel of this manager have other ports. Twice is fine."""
        self._wished, self._prefix = {}, ""

    def withdraw(self) -> None:
        """Remove the file of a kernel that did not start, and the ports that were found for it."""
        self.hide()
        if self._km is not None and self._wished:
            self._set_ports(self._wished)
        self.forget()

    def _ports(self) -> dict[str, int]:
        return {name: getattr(self._km, f"{name}_port") for name in CHANNELS}

    def _set_ports(self, ports: dict[str, int]) -> None:
        for name in CHANNELS:
            setattr(self._km, f"{name}_port", ports[name])


def _text(key: bytes | None) -> str | None:
    return None if key is None else key.decode()
