"""What a sandbox is made from. Requests choose a template by its name and nothing else.

Values are checked here once; whoever holds a `Template` need not check them again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any

from torpor.errors import ConfigError

MIB = 1 << 20
GIB = 1 << 30

ENV_ALLOW = (
    "LANG",
    "LANGUAGE",
    "LC_*",
    "TZ",
    "TERM",
    "COLORTERM",
    "NO_COLOR",
    "MPLBACKEND",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "PYDEVD_*",
    "IPYKERNEL_*",
    "PYTHONPATH",  # its folders are bound too, read-only; a whole home or secrets never are
)


ENV_AT_START = (
    "PYTHON*",
    "LD_*",
    "LANG",
    "LANGUAGE",
    "LC_*",
    "MALLOC_*",
    "GLIBC_TUNABLES",
    "OMP_*",
    "OPENBLAS_*",
    "MKL_*",
    "NUMEXPR_*",
    "NUMBA_*",
    "NPY_*",
    "TORCH_*",
    "PYTORCH_*",
    "TF_*",
    "JAX_*",
    "XLA_*",
    "ARROW_*",
    "POLARS_*",
    "BLIS_*",
    "KMP_*",
    "MPL*",
    "IPYTHON*",
    "IPYKERNEL_*",
    "PYDEVD_*",
    "TORPOR_*",
)
"""Variables that programs and libraries read once, when they start or are imported."""


class WorkspaceMode(StrEnum):
    """How the user's folder appears in the sandbox, under its host path."""

    READ_WRITE = "rw"
    READ_ONLY = "ro"
    OVERLAY = "overlay"
    """Writable, but what is written stays in the sandbox's memory."""
    NONE = "none"


class Network(StrEnum):
    """What the sandbox reaches besides its own loopback."""

    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """What a sandbox is made from: limits, mounts, environment.

    ``memory_bytes``  all memory of the sandbox, gVisor's own and the private file systems' included
    ``cpu_milli``     thousandths of a core; 0 = no limit
    ``pids``          processes and threads
    ``home_bytes``, ``tmp_bytes``, ``shm_bytes``  sizes of the private ``~``, ``/tmp`` and
    ``/dev/shm``
    ``env_allow``     names, or prefixes ending in ``*``, taken over from the client's environment
    ``env``           fixed variables; a request's explicit ones win over them
    ``read_only``     further host folders, bound read-only under their host path
    ``pool_least``, ``pool_most``  clones that wait to be claimed: kept without any demand, and at
    most for one kind of kernel; ``pool_most`` 0 = no clones, every start is a cold one
    ``pool_keep_s``   seconds after the last start of a kind in which clones of it still wait
    ``warm_up``       modules that a golden has imported; with a ``?`` one may be missing
    ``env_at_start``  names, or prefixes ending in ``*``, that count when the kernel's program starts:
    kernels that differ in them come from different goldens. All others are set at the claim
    ``freeze_after_s``, ``hibernate_after_s``  seconds without activity after which a kernel is stopped
    and keeps its memory, and after which only its snapshot is kept; 0 = never
    ``expire_after_s``  seconds of sleep after which kernel and snapshot are deleted; 0 = never
    ``count_background``  threads that use the processor keep a kernel awake
    ``claim_code``    for kernels other than ipykernel: code in the kernel's language that a claim
    runs silently; ``{claim}`` in it becomes a JSON object with ``env`` and ``cwd``

    Raises:
        ConfigError: a value is impossible; the message names the template and the field.
    """

    name: str = "default"
    description: str = "Private home, no network, the notebook's folder read-write"
    workspace: WorkspaceMode = WorkspaceMode.READ_WRITE
    memory_bytes: int = 4 * GIB
    cpu_milli: int = 0
    pids: int = 1024
    home_bytes: int = GIB
    tmp_bytes: int = GIB
    shm_bytes: int = 512 * MIB
    open_files: int = 16384
    env_allow: tuple[str, ...] = ENV_ALLOW
    env: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    read_only: tuple[str, ...] = ()
    network: Network = Network.NONE
    start_timeout_s: float = 60.0
    pool_least: int = 0
    pool_most: int = 4
    pool_keep_s: float = 1800.0
    warm_up: tuple[str, ...] = ("numpy?",)
    env_at_start: tuple[str, ...] = ENV_AT_START
    claim_code: str = ""
    freeze_after_s: float = 60.0
    hibernate_after_s: float = 1800.0
    expire_after_s: float = 0.0
    count_background: bool = True

    def __post_init__(self) -> None:
        if not self.name or not self.name.replace("-", "").replace("_", "").isalnum():
            raise ConfigError(
                f"template name {self.name!r} is not usable",
                hint="letters, digits, - and _ only",
            )
        self._settle("workspace", WorkspaceMode)
        self._settle("network", Network)
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise self._wrong(name, f"must be at least {least}")
        if self.cpu_milli < 0 or 0 < self.cpu_milli < 10:
            raise self._wrong("cpu_milli", "must be 0 (no limit) or at least 10")
        if not self.start_timeout_s > 0:
            raise self._wrong("start_timeout_s", "must be more than 0")
        if self.pool_least > self.pool_most:
            raise self._wrong("pool_least", f"is more than pool_most ({self.pool_most})")
        for module in self.warm_up:
            if not all(part.isidentifier() for part in module.removesuffix("?").split(".")):
                raise self._wrong("warm_up", f"{module!r} is not the name of a module")
        for path in self.read_only:
            pure = PurePosixPath(path)
            if not pure.is_absolute() or ".." in pure.parts or pure == PurePosixPath("/"):
                raise self._wrong("read_only", f"{path!r} must be an absolute folder other than /")

    def _settle(self, name: str, kind: type[StrEnum]) -> None:
        value = getattr(self, name)
        try:
            object.__setattr__(self, name, kind(value))
        except ValueError as exc:
            known = ", ".join(kind)
            raise self._wrong(name, f"{value!r} is not one of {known}") from exc

    def _wrong(self, name: str, why: str) -> ConfigError:
        return ConfigError(f"template {self.name!r}: {name} {why}")

    def to_json(self) -> dict[str, Any]:
        """Give the JSON shape of ``GET /v1/templates``: every field under its own name."""
        shape: dict[str, Any] = {name: getattr(self, name) for name in self.__dataclass_fields__}
        shape["workspace"] = self.workspace.value
        shape["network"] = self.network.value
        shape["env"] = dict(self.env)
        return shape


_LEAST = {
    "memory_bytes": 256 * MIB,
    "pids": 32,
    "home_bytes": MIB,
    "tmp_bytes": MIB,
    "shm_bytes": MIB,
    "open_files": 256,
    "pool_least": 0,
    "pool_most": 0,
    "pool_keep_s": 1,
    "freeze_after_s": 0,
    "hibernate_after_s": 0,
    "expire_after_s": 0,
}
