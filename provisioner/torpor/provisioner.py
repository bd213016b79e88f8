"""The jupyter_client provisioner: its contract, turned into calls on the control API.

It holds nothing that matters. Every call opens and closes its own connection, so that it does not
care which event loop it runs on (synchronous managers use several) or how long its process lives.
What makes a kernel stay or go:

* ``launch_kernel`` is all or nothing: jupyter_client calls nothing after it has failed.
* only ``cleanup(restart=False)`` destroys; ``kill`` and ``terminate`` are also part of restarts,
  and their ``restart`` argument cannot be relied on.
* ``poll`` says None, alive, unless the daemon says that the kernel has ended: a daemon that cannot
  be asked must not make a restarter throw the kernel's memory away.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning.provisioner_base import KernelProvisionerBase
from traitlets import Unicode

from torpor.api import LaunchRequest
from torpor.client import Client
from torpor.config import process_environment, user_paths
from torpor.connection import Connection
from torpor.errors import (
    BackendUnavailable,
    ConfigError,
    SandboxError,
    SandboxGone,
    TemplateChanged,
)
from torpor.http_errors import shown_by_servers
from torpor.kernel_request import choose_workspace, explicit_env, kernel_argv, within
from torpor.lifecycle import run_to_end

_UNDO_S = 90.0
_WAIT_S = 30.0
_INFO_VERSION = 1


class TorporProvisioner(KernelProvisionerBase):
    """Starts every kernel in a gVisor sandbox. Select it as ``torpor-provisioner``."""

    template = Unicode(
        "",
        help="""The template to make the sandbox from; `torpor templates` lists them. Empty, the
        default: the one that the Torpor configuration names.""",
    ).tag(config=True)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.connection_info: KernelConnectionInfo = {}  # the base's is one for all instances
        self._connection = Connection(self.parent)
        self._client = Client(user_paths())
        self._running = False
        self._held = ""
        """Whose kernel the daemon holds for us, dead or alive (``Endpoints.holder``); or none."""
        self._inherited: dict[str, str] | None = None
        self._cwd = ""
        self._workspace: str | None = None

    @property
    def has_process(self) -> bool:
        return self._running

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Work out command and environment, and write the connection file. Twice is fine.

        Raises:
            ConfigError: the manager's address is none of this machine's.
        """
        with shown_by_servers():
            self._connection.prepare(kwargs.pop("transport_encryption", None))
        km = self.parent
        extra = kwargs.pop("extra_arguments", [])
        fields: dict[str, Any] = {"prefix": sys.prefix}
        if km is not None:
            fields |= {"resource_dir": self.kernel_spec.resource_dir, **(km._launch_args or {})}
        cmd = kernel_argv([*self.kernel_spec.argv, *extra], fields, python=sys.executable)
        if self._inherited is None:
            # Kept for restarts: they pass the first start's environment again, and what this
            # process has changed of its own meanwhile does not make that somebody's explicit wish.
            self._inherited = process_environment()
        kwargs = await super().pre_launch(cmd=cmd, **kwargs)
        self.connection_info = self._connection.write(
            _session(kwargs), self.connection_info if self._held else {}
        )
        return kwargs

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Start the kernel, or restart it in its sandbox, and give where its clients connect.

        Returns once the kernel has answered. After a failure or a cancel nothing is left of a first
        start; of a failed restart the sandbox stays, without a kernel in it.

        Raises:
            LaunchError, LaunchTimeout, ConfigError, BackendUnavailable: readable, with what to do;
            each is a ``tornado.web.HTTPError`` too.
        """
        with shown_by_servers():
            return await self._launch(cmd, kwargs)

    async def poll(self) -> int | None:
        if not self._running:
            return 0
        try:
            state = await self._client.kernel(self.kernel_id)
        except SandboxGone:
            return -int(signal.SIGKILL)
        except BackendUnavailable as exc:
            self.log.warning("torpor: cannot ask after kernel %s: %s", self.kernel_id, exc)
            return None
        code = state.get("exit_code")
        return code if isinstance(code, int) else None

    async def wait(self) -> int | None:
        code: int | None = 0
        if self._running:
            code = None
            while code is None:
                try:
                    code = await self._client.wait(self.kernel_id, timeout_s=_WAIT_S)
                except SandboxGone:
                    code = -int(signal.SIGKILL)
            self._running = False
        return code

    async def send_signal(self, signum: int) -> None:
        if not self._running or signum == 0:
            return
        try:
            await self._client.signal(self.kernel_id, int(signum))
        except SandboxGone:
            return

    async def kill(self, restart: bool = False) -> None:
        if self._running:
            try:
                await self._client.kill(self.kernel_id)
            except SandboxGone:
                return

    async def terminate(self, restart: bool = False) -> None:
        if self._running:
            try:
                await self._client.terminate(self.kernel_id)
            except SandboxGone:
                return

    async def cleanup(self, restart: bool = False) -> None:
        """Destroy the kernel, unless it is about to be restarted. Twice is fine.

        If cancelled, finishes first.
        """
        if restart or not self._held:
            return
        await run_to_end(
            self._client.delete(self.kernel_id, holder=self._held),
            within_s=_UNDO_S,
            name=f"delete {self.kernel_id}",
        )
        self._held, self._running = "", False
        self._connection.forget()

    async def get_provisioner_info(self) -> dict[str, Any]:
        """Give what another process needs to take this kernel over: JSON-able, with its key."""
        info = await super().get_provisioner_info()
        connection: dict[str, Any] = dict(self.connection_info)
        if isinstance(connection.get("key"), bytes):
            connection["key"] = connection["key"].decode()
        if "ip" in connection:
            connection["ip"] = self._connection.absolute(connection["ip"])
        info["connection_info"] = connection
        info["torpor"] = {
            "version": _INFO_VERSION,
            "template": self.template,
            "cwd": self._cwd,
            "workspace": self._workspace,
            "holder": self._held,
        }
        return info

    async def load_provisioner_info(self, provisioner_info: dict[str, Any]) -> None:
        """Take over the kernel that ``get_provisioner_info`` described; its lease becomes ours.

        Raises:
            SandboxGone: it does not exist any more.
            ConfigError: the description is not of this version.
        """
        ours = provisioner_info.get("torpor", {})
        if ours.get("version") != _INFO_VERSION:
            raise ConfigError("this kernel was not started by this version of Torpor")
        await super().load_provisioner_info(provisioner_info)
        connection = dict(provisioner_info["connection_info"])
        if isinstance(connection.get("key"), str):
            connection["key"] = connection["key"].encode()
        self.connection_info = connection  # type: ignore[assignment]
        self._connection.adopt(self.connection_info)
        self.template, self._cwd = ours["template"], ours["cwd"]
        self._workspace = ours["workspace"]
        await self._client.adopt(self.kernel_id, lease=True)
        self._held, self._running = ours["holder"], True

    def resolve_path(self, path: str) -> str | None:
        """Give the host's path of a file that the kernel names, as far as it sees the same file."""
        expanded = os.path.normpath(os.path.join(self._cwd, path))
        if self._workspace is None or not within(expanded, self._workspace):
            return None
        return Path(expanded).as_posix() if os.path.exists(expanded) else None

    async def _launch(self, cmd: list[str], kwargs: dict[str, Any]) -> KernelConnectionInfo:
        first = not self._held
        if first:
            self._connection.hide()
        try:
            request = await self._request(cmd, kwargs)
            self._held = request.client.holder
            try:
                state = await self._client.launch(request)
            except TemplateChanged:
                self._client.forget_templates()
                request = await self._request(cmd, kwargs)
                state = await self._client.launch(request)
            self._started(request, state, _session(kwargs))
        except BaseException as exc:
            self._running = False
            if first:
                self._connection.withdraw()
            elif isinstance(exc, SandboxError):
                self._let_restarter_go_on()
            if first and self._held:
                await self._undo()
            raise
        self._running = True
        return self.connection_info

    def _let_restarter_go_on(self) -> None:
        """Have the manager's restarter try again after a failed restart, and give up one day.

        A restart stops it until the kernel is there again, and it counts only restarts that
        returned: those of jupyter_client's own provisioner always do. Without this nobody would
        ever be told that the kernel is dead.
        """
        restarter = getattr(self.parent, "_restarter", None)
        if restarter is not None:
            restarter._restarting = True
            restarter.start()

    async def _request(self, cmd: list[str], kwargs: dict[str, Any]) -> LaunchRequest:
        cwd = os.path.abspath(os.path.expanduser(kwargs.get("cwd") or os.getcwd()))
        root = getattr(getattr(self.parent, "parent", None), "root_dir", None)
        root = os.path.abspath(root) if isinstance(root, str) and root else None
        self._cwd = cwd
        allowed = await self._allowed_names()
        return LaunchRequest(
            kernel_id=self.kernel_id,
            template=self.template or None,
            kernel_name=getattr(self.parent, "kernel_name", "") or self.kernel_spec.display_name,
            argv=tuple(cmd),
            env=explicit_env(
                kwargs.get("env", {}),
                self._inherited or {},
                spec_names=self.kernel_spec.env,
                allowed=allowed,
            ),
            env_allow=tuple(allowed),
            cwd=cwd,
            workspace=choose_workspace(cwd, root, home=str(Path.home())),
            client=self._connection.endpoints(),
            lease=True,
        )

    async def _allowed_names(self) -> list[str]:
        templates = {each["name"]: each for each in await self._client.known_templates()}
        chosen = templates.get(self.template) or {}
        if not self.template:
            chosen = next((each for each in templates.values() if each.get("is_default")), {})
        return list(chosen.get("env_allow", ()))

    def _started(self, request: LaunchRequest, state: dict[str, Any], session: str) -> None:
        self.connection_info = self._connection.settle(
            request.client, state["client"], kernel_name=request.kernel_name, session=session
        )
        workspace = state.get("workspace") or {}
        self._workspace = workspace.get("path")
        if workspace.get("reason"):
            self.log.warning("torpor: kernel %s: %s", self.kernel_id, workspace["reason"])

    async def _undo(self) -> None:
        """Leave nothing of a first start; why that failed is logged, the first error stands."""
        try:
            await run_to_end(
                self._client.delete(self.kernel_id, holder=self._held),
                within_s=_UNDO_S,
                name=f"undo {self.kernel_id}",
            )
            self._held = ""
        except Exception as exc:
            self.log.warning("torpor: kernel %s is left to its lease: %s", self.kernel_id, exc)


def _session(kwargs: dict[str, Any]) -> str:
    return str(kwargs.get("env", {}).get("JPY_SESSION_NAME", ""))
