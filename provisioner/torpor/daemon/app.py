"""The daemon as a whole: what it is made of, how it starts, when it ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tornado import web

from torpor._version import __version__
from torpor.api import API_VERSION, LaunchRequest
from torpor.backends.base import Backend
from torpor.config import DaemonSettings, Settings, SettingsSource
from torpor.daemon.backend import ConfiguredBackend
from torpor.daemon.bridge_keeper import BridgeKeeper
from torpor.daemon.capacity import check_room
from torpor.daemon.completing import keep_completing
from torpor.daemon.describe import kernel_state
from torpor.daemon.forking import Forker
from torpor.daemon.handlers import routes
from torpor.daemon.listen import listen
from torpor.daemon.logs import log
from torpor.daemon.machine import available_bytes
from torpor.daemon.parts import Parts
from torpor.daemon.pool_handlers import pool_routes
from torpor.daemon.processes import Process
from torpor.daemon.recovery import recover
from torpor.daemon.registry import Registry
from torpor.daemon.server import PeerCheckedServer, serve
from torpor.daemon.settling import Settling
from torpor.daemon.sleep_handlers import sleep_routes
from torpor.daemon.snapshots import Snapshots
from torpor.daemon.store_handlers import store_routes
from torpor.daemon.stores import Stores
from torpor.daemon.supervisor import Supervisor
from torpor.daemon.tiering import Tiering
from torpor.daemon.tiers import Tiers
from torpor.daemon.warm import Warm, make_warm
from torpor.errors import Busy, ConfigError, TemplateChanged
from torpor.paths import Paths, private_folder
from torpor.snapshot.store import SnapshotStore
from torpor.template import Template

_SWEEP_S = 5.0


class Daemon:
    """One user's torpord. ``run`` is its whole life; the caller holds the lock meanwhile.

    ``starter``: how the bridge may start the next one, should this one die (``bridge.protocol``).
    """

    def __init__(
        self,
        paths: Paths,
        source: SettingsSource,
        settings: DaemonSettings,
        make_backend: Callable[[SettingsSource, Paths], Backend],
        starter: Mapping[str, Any] | None = None,
    ) -> None:
        self._paths = paths
        self._starter = starter
        self._source = source
        self._settings = settings
        self._make_backend = make_backend
        self._started_at = datetime.now(UTC).isoformat()
        self._stop = asyncio.Event()
        self._requests = 0
        self._socket: tuple[int, int] | None = None
        self.parts: Parts
        self._settling: Settling
        self.supervisor: Supervisor
        self.tiers: Tiers
        self.tiering: Tiering
        self.forker: Forker
        self.warm: Warm | None = None

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Recover, serve, end when asked or when nothing is held for long enough.

        ``on_ready`` is called once requests are answered. Kernels that run when it ends go on, and
        the next daemon takes them over.

        Raises:
            ConfigError: the registry or a folder cannot be used; nothing was changed.
        """
        async with AsyncExitStack() as stack:
            for folder in (self._paths.state, self._paths.kernels, self._paths.client_sockets):
                await asyncio.to_thread(private_folder, folder)
            registry = Registry(self._paths.registry)
            stack.callback(registry.close)
            bridge = BridgeKeeper(
                self._paths,
                on_event=lambda kernel_id, event: self.supervisor.heard(kernel_id, event),
                on_return=lambda: settling.all(),
                starter=self._starter,
            )
            stack.push_async_callback(self._leave_bridge, bridge)
            backend = self._make_backend(self._source, self._paths)
            stack.push_async_callback(backend.aclose)
            snapshots = Snapshots(
                SnapshotStore(
                    self._paths.snapshots,
                    self._settings.snapshots_max_bytes,
                    keep_free_bytes=self._settings.keep_free_bytes,
                )
            )
            stores = Stores(
                lambda: self._source.read().store, snapshots.store, self._paths.store_marks
            )
            self.parts = Parts(self._paths, registry, backend, bridge, snapshots, stores)
            settling = self._settling = Settling(self.parts)
            stack.push_async_callback(settling.aclose)
            at_once = self._settings.concurrent_starts
            self.warm = self._make_warm()
            self.supervisor = Supervisor(
                self.parts,
                settling,
                at_once=at_once,
                templates=self._template,
                warm=self.warm,
                ahead=self._settings.wake_ahead,
                reserve_bytes=self._settings.reserve_bytes,
                room=self._room,
            )
            self.forker = Forker(self.parts, settling, self.supervisor.sleeper, room=self._room)
            await recover(self.parts, settling, self.supervisor)
            self.tiers = Tiers(self.parts, self.supervisor, self._template, settling.tasks)
            settling.tasks.start(self.tiers.run(), name="tiers")
            self.tiering = Tiering(stores, settling.kernels, settling.tasks)
            settling.tasks.start(self.tiering.run(), name="tiering")
            settling.tasks.start(
                keep_completing(snapshots, settling.kernels), name="digests of snapshots"
            )
            settling.always = 3
            if self.warm is not None:
                await stack.enter_async_context(self.warm.running())
            stack.push_async_callback(self.supervisor.aclose)
            bridge.find()  # the first launch will need it, and it takes a while to start
            server = self._serve()
            stack.push_async_callback(self._close_server, server)
            loop = asyncio.get_running_loop()
            for signum in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(signum, self._stop.set)
            log("started", pid=os.getpid(), version=__version__)
            on_ready()
            await self._until_done()
            log("stopping")

    def _make_warm(self) -> Warm | None:
        if not self._settings.pool:
            return None
        return make_warm(self.parts, self._settings, self._known_template)

    def _known_template(self, name: str) -> Template | None:
        """Give the template that the configuration has now; None when it has none, or is wrong."""
        try:
            return self._source.read().templates.get(name)
        except ConfigError:
            return None

    def _serve(self) -> PeerCheckedServer:
        sock = listen(self._paths.daemon_socket)
        self._socket = _inode(self._paths.daemon_socket)
        return serve(
            web.Application(routes(self, [*pool_routes(), *sleep_routes(), *store_routes()])), sock
        )

    async def _until_done(self) -> None:
        loop = asyncio.get_running_loop()
        idle_since = loop.time()
        pause_s = min(_SWEEP_S, max(self._settings.idle_exit_s / 4, 0.05))
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._stop.wait()
            if _inode(self._paths.daemon_socket) != self._socket:
                # Nobody can reach us, so the next client starts another daemon: make room for it.
                log("socket is gone", level=logging.ERROR)
                return
            if self._settling.unsettled:
                self._settling.all()
            if self._requests or not self._settling.idle:
                idle_since = loop.time()
            elif loop.time() - idle_since >= self._settings.idle_exit_s:
                log("idle", seconds=self._settings.idle_exit_s)
                return

    def _room(self, kernel_id: str, starting: int | None) -> None:
        """Refuse a kernel for which there is no room; ``starting`` None: it takes no new memory."""
        earlier = list(self.supervisor.kernels).index(kernel_id)
        check_room(
            available_bytes=available_bytes() if starting is not None else sys.maxsize,
            reserve_bytes=self._settings.reserve_bytes,
            starting=starting or 0,
            kernels=earlier,  # first come, first served
            most_kernels=self._settings.most_kernels,
        )

    async def _close_server(self, server: PeerCheckedServer) -> None:
        server.stop()
        if _inode(self._paths.daemon_socket) == self._socket:
            self._paths.daemon_socket.unlink()
        await server.close_all_connections()

    async def _leave_bridge(self, bridge: BridgeKeeper) -> None:
        await bridge.aclose(stop=not bridge.held, on_purpose=self._stop.is_set())

    def request_stop(self, *, force: bool) -> None:
        """End soon. Raises Busy when there are kernels, unless ``force``; those then go on."""
        held = len(self.supervisor.kernels)
        if held and not force:
            raise Busy(
                f"torpord holds {held} kernel{'s' if held > 1 else ''}",
                hint="stop them first, or use force: they go on and the next daemon finds them",
            )
        asyncio.get_running_loop().call_later(0.05, self._stop.set)  # after the answer

    async def launch(self, request: LaunchRequest, owner: Process | None) -> dict[str, Any]:
        """Start or restart a kernel and give its state. Raises as ``Supervisor.launch``."""
        settings = await self._source.current()
        template = settings.template(request.template)
        if request.env_allow not in (None, template.env_allow):
            raise TemplateChanged(f"env_allow of template {template.name!r} has changed")
        kernel = await self.supervisor.launch(request, template, owner)
        return kernel_state(kernel, self.parts, {})  # quicker than to ask the bridge again

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Have torpord not end meanwhile for want of kernels: somebody waits for something."""
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1

    async def _template(self, name: str) -> Template:
        return (await self._source.current()).template(name)

    async def settings(self) -> Settings:
        """Give the configuration as it is now. Raises ConfigError."""
        return await self._source.current()

    async def status(self) -> dict[str, Any]:
        """Give what ``torpor daemon status`` shows."""
        seen = self.parts.bridge.seen
        return {
            "version": __version__,
            "api": API_VERSION,
            "pid": os.getpid(),
            "started_at": self._started_at,
            "kernels": len(self.supervisor.kernels),
            "bridge": None if seen is None else {"pid": seen["pid"], "version": seen["version"]},
            "runsc": await self._runsc(),
            "backend": self.parts.backend.name,
            "state_dir": str(self._paths.state),
            "log": str(self._paths.log),
        }

    async def _runsc(self) -> dict[str, Any]:
        if not isinstance(self.parts.backend, ConfiguredBackend):
            return {"path": None, "build": "", "ok": False, "reason": "not used", "hint": ""}
        try:
            return (await self.parts.backend.runsc()).to_json()
        except ConfigError as exc:  # whoever asks how we are must get an answer
            return {"path": None, "build": "", "ok": False, "reason": exc.message, "hint": exc.hint}


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        seen = path.lstat()
    except OSError:
        return None
    return (seen.st_dev, seen.st_ino)
