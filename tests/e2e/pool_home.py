"""A Torpor home with a pool, kernels started in it, and waiting for what the pool does by itself."""

from __future__ import annotations

import ast
import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager
from torpor.client import Client
from torpor.client_pool import PoolClient
from torpor.config import user_paths

from tests.e2e.cells import value
from tests.e2e.sleeping import events
from tests.home import KERNEL, start, stop, torpor_home, write_kernelspec
from tests.world import look, processes_of

POOL = "c.TorporDaemon.pool = True\n"
LIGHT = """
c.Torpor.templates = {"default": {"warm_up": ()}}
"""
"""A golden that loads nothing is built soonest: for tests of other things."""
WAIT_S = 60.0
"""A golden takes 5 s on two idle processors; other people's tests may keep them busy."""


class PoolHome:
    """One Torpor home whose pool is on; ``path`` is its folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def spec(self, name: str, *, template: str = "", **changes: object) -> str:
        """Write a kernelspec with that template; ``changes`` replace keys of kernel.json. Give its name."""
        stanza = {"provisioner_name": "torpor-provisioner", "config": {"template": template}}
        metadata = {
            "debugger": True,
            "supported_encryption": ["curve"],
            "kernel_provisioner": stanza,
        }
        write_kernelspec(self.path / "jupyter", name, metadata=metadata, **changes)
        return name

    def events(self, name: str) -> list[dict[str, Any]]:
        """Give what the daemon's log says of one kind of event, oldest first."""
        return events(self.path, name)

    def launched(self, kernel_id: str) -> dict[str, Any]:
        """Give the log's line of the only start of a kernel."""
        [line] = [each for each in self.events("launched") if each.get("kernel_id") == kernel_id]
        return line

    def pool(self) -> dict[str, Any]:
        """Give the state of the pool."""
        return asyncio.run(PoolClient(Client(user_paths())).pool())

    def goldens(self) -> list[dict[str, Any]]:
        """Give the goldens on disk."""
        return list(asyncio.run(PoolClient(Client(user_paths())).goldens())["goldens"])

    def counters(self) -> dict[str, int]:
        """Give what the pool has counted so far."""
        return dict(self.pool()["counters"])

    def ready(self, workspace: Path | None, kernel_name: str = KERNEL, golden: str = "") -> int:
        """Give how many clones (of that golden) wait for a workspace; None: for none at all."""
        return sum(
            shape["ready"]
            for shape in self.pool()["shapes"]
            if shape["workspace"] == (None if workspace is None else str(workspace))
            and shape["kernel_name"] == kernel_name
            and golden in ("", shape["golden"])
        )

    def wait_ready(
        self,
        workspace: Path | None,
        count: int = 1,
        kernel_name: str = KERNEL,
        golden: str = "",
    ) -> None:
        """Return once ``count`` clones wait for kernels of that name in that workspace."""
        self.wait(
            lambda: self.ready(workspace, kernel_name, golden) >= count,
            f"{count} clones of {kernel_name} in {workspace}",
        )

    def wait_golden(self, count: int = 1) -> None:
        """Return once so many goldens were built since the daemon started."""
        self.wait(lambda: len(self.events("golden built")) >= count, f"{count} goldens")

    def wait(self, reached: Callable[[], bool], what: str, within_s: float = WAIT_S) -> None:
        """Return once ``reached``; AssertionError when a golden cannot be built or it takes too long."""
        deadline = time.monotonic() + within_s
        before = len(self.events("golden not built"))
        while not reached():
            failed = self.events("golden not built")[before:]
            assert not [each for each in failed if "was written while" not in each["error"]]
            if time.monotonic() > deadline:
                log = (self.path / "state" / "torpord.log").read_text()[-3000:]
                raise AssertionError(f"no {what} in {within_s:g} s: {self.pool()}\n{log}")
            time.sleep(0.05)

    def kernels(self) -> set[str]:
        """Give the ids of the kernels that exist."""
        return {each["kernel_id"] for each in asyncio.run(Client(user_paths()).kernels())}

    def wait_settled(self, before: set[str] | None = None, within_s: float = 20) -> None:
        """Return once all that is left is the pool's, or of the kernels that were there ``before``."""
        deadline = time.monotonic() + within_s
        while (left := self._unexplained(before or set())) is not None:
            if time.monotonic() > deadline:
                raise AssertionError(f"left in the world: {left}")
            time.sleep(0.1)

    def _unexplained(self, before: set[str]) -> str | None:
        if more := self.kernels() - before:
            return f"kernels {more}"
        found, pool = look(self.path), self.pool()
        if found.mounts or found.cgroups:
            return str(found)
        explained = len(before) + len(pool["building"])
        explained += sum(shape["ready"] + shape["starting"] for shape in pool["shapes"])
        names = [Path(folder).name for folder in found.files]
        if len(names) > explained:
            return f"{len(names)} sandboxes where {explained} are accounted for: {pool}"
        running = processes_of(self.path, services=False)
        strays = [each for pid, each in running.items() if not _is_of(pid, names)]
        return f"processes {strays}" if strays else None


def _is_of(pid: int, sandboxes: list[str]) -> bool:
    """Whether a process belongs to one of these sandboxes; one that has ended does."""
    try:
        seen = [(Path("/proc") / str(pid) / name).read_bytes() for name in ("cmdline", "mountinfo")]
    except OSError:
        return True
    return any(name.encode() in each for name in sandboxes for each in seen)


@contextmanager
def pool_home(config: str = "", **environ: str) -> Iterator[PoolHome]:
    """Make a fresh home with a pool; afterwards its daemon is stopped and the world checked."""
    with torpor_home(POOL + config, **environ) as folder:
        yield PoolHome(folder)


def state_of(km: KernelManager) -> dict[str, Any]:
    """Give what torpord tells of a kernel."""
    assert km.kernel_id is not None
    return asyncio.run(Client(user_paths()).kernel(km.kernel_id))


def start_of(km: KernelManager) -> dict[str, Any]:
    """Give how a kernel was started, and why so."""
    return dict(state_of(km)["start"])


def told(kc: BlockingKernelClient, code: str) -> Any:
    """Execute ``code`` and give its last expression, which is of Python's literals, as an object."""
    return ast.literal_eval(value(kc, code))


@contextmanager
def kernel(
    cwd: Path, *, how: str | None = None, **kwargs: object
) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    """Start a kernel as ``tests.home.start`` does, check ``how`` it was started, and stop it."""
    km, kc = start(cwd, **kwargs)
    try:
        told = start_of(km)
        assert how in (None, told["how"]), told
        yield km, kc
    finally:
        stop(km, kc)


@contextmanager
def claimed(
    home: PoolHome, cwd: Path, *, workspace: Path | None = None, **kwargs: object
) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    """Claim a waiting clone for ``cwd``; ``warm`` has been there before."""
    name = str(kwargs.get("kernel_name", KERNEL))
    home.wait_ready(workspace or cwd, kernel_name=name)
    with kernel(cwd, how="claimed", **kwargs) as pair:
        yield pair


def warm(home: PoolHome, cwd: Path, **kwargs: object) -> str:
    """Start and stop one kernel, so that clones of its kind begin to wait in ``cwd``. Give its how."""
    with kernel(cwd, **kwargs) as (km, _):
        how = str(start_of(km)["how"])
    home.wait_ready(cwd, kernel_name=str(kwargs.get("kernel_name", KERNEL)))
    return how
