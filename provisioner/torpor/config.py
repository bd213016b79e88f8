"""The configuration: traitlets at the edge, frozen values inside.

``torpor_config.py`` or ``torpor_config.json`` in the config folder, with the habits of Jupyter::

    c.Torpor.templates = {"big": {"memory_bytes": "16G", "workspace": "ro"}}
    c.Torpor.store = {"url": "s3://bucket/torpor", "key_file": "/home/ada/torpor.key"}
    c.TorporDaemon.idle_exit_s = 60

Nothing else in Torpor reads traits (the provisioner's own excepted) or the environment of the
process.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from traitlets import Bool, Dict, Float, Int, TraitError, Unicode
from traitlets.config import Config, Configurable
from traitlets.config.loader import (
    ConfigFileNotFound,
    ConfigLoader,
    JSONFileConfigLoader,
    PyFileConfigLoader,
)

from torpor.config_problem import config_problem
from torpor.errors import ConfigError
from torpor.paths import Paths, resolve_paths
from torpor.snapshot.remote.configured import StoreSettings, parse_store
from torpor.template import Template
from torpor.template_values import meant, template_of

C = TypeVar("C", bound=Configurable)
FILES = ("torpor_config.py", "torpor_config.json")
Files = Mapping[Path, Config]


class Torpor(Configurable):
    """What sandboxes are made from."""

    templates: Dict[str, Any] = Dict(
        help="""Templates by name; each names the fields that differ from the built-in
        default (see `torpor templates`). Sizes are bytes, or text such as "2G". A template
        named "default" changes the default itself.""",
    ).tag(config=True)
    default_template: Unicode[str, str | bytes] = Unicode(
        "default",
        help="The template of a kernel that names none. 'default' always exists.",
    ).tag(config=True)
    store: Dict[str, Any] = Dict(
        help="""Where snapshots go besides this disk: {"url": "s3://bucket/folder", "options": {...},
        "key_file": "/full/path"} or "key_command": [...], "keep": 2, "keep_days": None, "after_s": 0,
        "local": "keep" or "drop", "timeout_s": 30}. Empty, the default: nowhere. Needs
        `pip install torpor[stores]`; `torpor doctor` tries it.""",
    ).tag(config=True)
    runsc_path: Unicode[str, str | bytes] = Unicode(
        "",
        help="""The runsc to use. Empty: the one that `torpor install-runsc` installed, else that
        on PATH. The environment variable TORPOR_RUNSC wins over this.""",
    ).tag(config=True)
    allow_old_runsc: Bool[bool, bool | int] = Bool(
        False,
        help="""Use a runsc below the tested floor. Off, because restoring a kernel with an old one
        can crash it.""",
    ).tag(config=True)


class TorporDaemon(Configurable):
    """How torpord behaves. Read when it starts."""

    idle_exit_s: Float[float, float] = Float(
        300.0,
        min=0.1,
        help="""Seconds without any kernel after which torpord ends. Five minutes: starting it
        costs a fraction of a second, keeping it a few tens of MiB.""",
    ).tag(config=True)
    concurrent_starts: Int[int, int] = Int(
        0,
        min=0,
        help="""Kernels that may be starting at the same time; the others wait for their turn. 0: as
        many as there are processors, at least 2, because more only slow each other down.""",
    ).tag(config=True)
    pool: Bool[bool, bool | int] = Bool(
        True,
        help="""Keep goldens and let clones of them wait, as many as recent demand deserves. Off:
        every kernel is started cold. Templates bound it (`pool_most`).""",
    ).tag(config=True)
    reserve_bytes: Int[int, int] = Int(
        1 << 30,
        min=0,
        help="""Memory that no waiting clone and no new kernel may take: 1 GiB for everything else
        on this machine. A start that would is refused as "at capacity".""",
    ).tag(config=True)
    most_kernels: Int[int, int] = Int(
        0, min=0, help="Kernels that may exist at the same time; 0: as many as memory allows."
    ).tag(config=True)
    goldens_max_bytes: Int[int, int] = Int(
        4 << 30,
        min=0,
        help="""Disk space for goldens, of which each has some 50 MiB and what its warm-up loads.
        Beyond it those go that were not used for longest.""",
    ).tag(config=True)
    snapshots_max_bytes: Int[int, int] = Int(
        64 << 30,
        min=0,
        help="""Disk space for the memory of hibernated kernels. To stay below it only copies go that
        a store surely has; else kernels are not put to sleep any more, and say so.""",
    ).tag(config=True)
    keep_free_bytes: Int[int, int] = Int(
        2 << 30, min=0, help="Space on that disk that snapshots leave to everything else."
    ).tag(config=True)
    wake_ahead: Int[int, int] = Int(
        0,
        min=0,
        help="""Hibernated kernels, those that fell asleep or were looked at last, whose sandbox stands
        ready without its memory: they wake quicker. Each costs some 40 MiB and four processes.""",
    ).tag(config=True)
    log_max_bytes: Int[int, int] = Int(
        8 << 20, min=1 << 12, help="Size in bytes at which the log is rotated: about 40,000 lines."
    ).tag(config=True)
    log_keep: Int[int, int] = Int(
        3, min=0, help="Rotated logs to keep: enough for some days of heavy use."
    ).tag(config=True)


@dataclass(frozen=True, slots=True)
class DaemonSettings:
    """``TorporDaemon`` as values."""

    idle_exit_s: float = 300.0
    concurrent_starts: int = 2
    log_max_bytes: int = 8 << 20
    log_keep: int = 3
    pool: bool = True
    reserve_bytes: int = 1 << 30
    most_kernels: int = 0
    goldens_max_bytes: int = 4 << 30
    snapshots_max_bytes: int = 64 << 30
    keep_free_bytes: int = 2 << 30
    wake_ahead: int = 0


@dataclass(frozen=True, slots=True)
class Settings:
    """The whole configuration as values."""

    templates: Mapping[str, Template]
    default_template: str = "default"
    runsc_path: str | None = None
    allow_old_runsc: bool = False
    daemon: DaemonSettings = DaemonSettings()
    store: StoreSettings | None = None

    def template(self, name: str | None) -> Template:
        """Give the template of that name, the default one for None. Raises ConfigError."""
        wanted = self.default_template if name is None else name
        try:
            return self.templates[wanted]
        except KeyError:
            known = ", ".join(sorted(self.templates))
            raise ConfigError(
                f"there is no template {wanted!r}", hint=f"known templates: {known}"
            ) from None


def user_paths(environ: Mapping[str, str] | None = None) -> Paths:
    """Give the folders of the user that runs this process. Creates nothing."""
    home = Path("~").expanduser()
    return resolve_paths(os.environ if environ is None else environ, uid=os.geteuid(), home=home)


def process_environment() -> dict[str, str]:
    """Give a copy of this process's environment."""
    return dict(os.environ)


def load_settings(paths: Paths, environ: Mapping[str, str] | None = None) -> Settings:
    """Read the configuration files; those that do not exist count as empty. Blocks.

    Raises:
        ConfigError: a file cannot be read, names something unknown, or gives it an impossible
        value.
    """
    env = os.environ if environ is None else environ
    files = {paths.config / name: _load_file(paths.config, name) for name in FILES}
    torpor, daemon = _configured(Torpor, files), _configured(TorporDaemon, files)
    with _named(files, "Torpor", "templates"):
        templates = {"default": Template()} | {
            name: template_of(name, body) for name, body in torpor.templates.items()
        }
    with _named(files, "Torpor", "store"):
        store = parse_store(torpor.store)
    settings = Settings(
        templates=MappingProxyType(templates),
        default_template=torpor.default_template,
        runsc_path=env.get("TORPOR_RUNSC") or torpor.runsc_path or None,
        allow_old_runsc=torpor.allow_old_runsc,
        store=store,
        daemon=DaemonSettings(
            idle_exit_s=daemon.idle_exit_s,
            concurrent_starts=daemon.concurrent_starts or max(2, os.cpu_count() or 2),
            log_max_bytes=daemon.log_max_bytes,
            log_keep=daemon.log_keep,
            pool=daemon.pool,
            reserve_bytes=daemon.reserve_bytes,
            most_kernels=daemon.most_kernels,
            goldens_max_bytes=daemon.goldens_max_bytes,
            snapshots_max_bytes=daemon.snapshots_max_bytes,
            keep_free_bytes=daemon.keep_free_bytes,
            wake_ahead=daemon.wake_ahead,
        ),
    )
    with _named(files, "Torpor", "default_template"):
        settings.template(None)  # a wrong default is an error now, not at the first launch
    return settings


class SettingsSource:
    """The settings as the files have them now: read again whenever one of the files has changed."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._read: tuple[object, Settings] | None = None
        """The stamp of the files, and what they said; replaced as one: threads read at the same time."""

    async def current(self) -> Settings:
        """Give the settings. Raises ConfigError as long as the files are wrong."""
        return await asyncio.to_thread(self.read)

    def read(self) -> Settings:
        """Give the settings, blocking. Raises ConfigError as long as the files are wrong."""
        stamp = tuple(_stamp(self._paths.config / name) for name in FILES)
        known = self._read
        if known is None or stamp != known[0]:
            known = self._read = (stamp, load_settings(self._paths))
        return known[1]


def _load_file(folder: Path, name: str) -> Config:
    loader: ConfigLoader
    if name.endswith(".py"):
        loader = PyFileConfigLoader(name, path=str(folder))
    else:
        loader = JSONFileConfigLoader(name, path=str(folder))
    try:
        return loader.load_config()
    except ConfigFileNotFound:
        return Config()
    except Exception as exc:  # the file is a program: it can raise anything
        raise config_problem(str(folder / name), exc) from exc


def _configured(cls: type[C], files: Files) -> C:
    known, config = cls.class_trait_names(config=True), Config()
    for path, content in files.items():
        section = content.get(cls.__name__, {})
        for name in section:
            if name not in known:
                raise ConfigError(
                    f"{path} sets {cls.__name__}.{name}, which does not exist{meant(name, known)}",
                    hint=f"{cls.__name__} has: {', '.join(sorted(known))}",
                )
        try:
            cls(config=content)
        except TraitError as exc:
            raise ConfigError(f"{path} has a wrong value: {exc}") from exc
        config.merge(content)
    return cls(config=config)


@contextmanager
def _named(files: Files, section: str, trait: str) -> Iterator[None]:
    """Have an error name the file that sets the trait: the last that does."""
    try:
        yield
    except ConfigError as exc:
        setting = [path for path, content in files.items() if trait in content.get(section, {})]
        if not setting:
            raise
        raise ConfigError(f"{setting[-1]}: {exc.message}", hint=exc.hint) from exc


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        seen = path.stat()
    except OSError:
        return None
    return (seen.st_mtime_ns, seen.st_size, seen.st_ino)
