"""Where kernelspecs and the server's default live on disk, and the steps that change them."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torpor.errors import ConfigError

_SERVER_CONFIG = "jupyter_server_config.json"
_SECTION = "MappingKernelManager"
_TRAIT = "default_kernel_name"


@dataclass(frozen=True, slots=True)
class Place:
    """Where to install: the folder of kernelspecs and that of the server's configuration."""

    kernels: Path
    config: Path
    shared: bool
    """Whether servers of other Python environments see it too."""


def place_of(*, user: bool, sys_prefix: bool, prefix: str) -> Place:
    """Give the place that the flags choose; without any: the active environment, else the user.

    Raises ConfigError when they contradict each other.
    """
    from jupyter_core.paths import jupyter_config_dir, jupyter_data_dir

    if user + sys_prefix + bool(prefix) > 1:
        raise ConfigError("--user, --sys-prefix and --prefix exclude each other", hint="give one")
    in_environment = sys.prefix != sys.base_prefix or bool(os.environ.get("CONDA_PREFIX"))
    if prefix or sys_prefix or (in_environment and not user):
        root = Path(prefix or sys.prefix).absolute()
        return Place(
            kernels=root / "share" / "jupyter" / "kernels",
            config=root / "etc" / "jupyter",
            shared=root != Path(sys.prefix),
        )
    data, config = Path(jupyter_data_dir()), Path(jupyter_config_dir())
    return Place(kernels=data / "kernels", config=config, shared=True)


def write_kernelspec(target: Path, spec: dict[str, Any], resources: Path | None) -> None:
    """Put a kernelspec at ``target``, whole or not at all, with logos and the like of ``resources``.

    Raises ConfigError when it cannot be written; what was there before then still is.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".torpor-", dir=target.parent))
    except OSError as exc:
        raise _cannot_write(target, exc) from exc
    try:
        new = staging / "new"
        if resources is not None and resources.is_dir():
            shutil.copytree(resources, new, ignore=shutil.ignore_patterns("__pycache__"))
        new.mkdir(exist_ok=True)
        (new / "kernel.json").unlink(missing_ok=True)
        (new / "kernel.json").write_text(json.dumps(spec, indent=1) + "\n", encoding="utf-8")
        if target.is_symlink():
            target.unlink()
        elif target.exists():
            target.rename(staging / "old")
        new.rename(target)
    except OSError as exc:
        raise _cannot_write(target, exc) from exc
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def read_kernelspec(target: Path) -> dict[str, Any] | None:
    """Give the kernel.json in folder ``target``; None when there is none that can be read."""
    try:
        spec = json.loads((target / "kernel.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return spec if isinstance(spec, dict) else None


def remove_kernelspec(target: Path) -> None:
    """Remove a kernelspec; one that is not there is fine. Raises ConfigError when it cannot go."""
    try:
        if target.is_symlink():
            target.unlink()
        elif target.exists():
            shutil.rmtree(target)
    except OSError as exc:
        raise ConfigError(f"cannot remove {target}: {exc.strerror or exc}") from exc


def default_kernel(config: Path) -> str | None:
    """Give the kernel that servers reading ``config`` choose first; None where nothing says so."""
    section = _read_config(config / _SERVER_CONFIG).get(_SECTION)
    name = section.get(_TRAIT) if isinstance(section, dict) else None
    return str(name) if name else None


def set_default_kernel(config: Path, name: str | None) -> None:
    """Make ``name`` the first choice of servers reading ``config``; None takes our choice back.

    The rest of the file is kept. Raises ConfigError when it cannot be read or written.
    """
    path = config / _SERVER_CONFIG
    whole = _read_config(path)
    section = dict(whole.get(_SECTION) or {})
    if name is None:
        section.pop(_TRAIT, None)
    else:
        section[_TRAIT] = name
    whole[_SECTION] = section
    if not section:
        del whole[_SECTION]
    try:
        config.mkdir(parents=True, exist_ok=True)
        staged = path.with_name(f".{path.name}.{os.getpid()}")
        staged.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
        staged.replace(path)
    except OSError as exc:
        raise _cannot_write(path, exc) from exc


def _read_config(path: Path) -> dict[str, Any]:
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as exc:
        raise ConfigError(f"cannot read {path}: {exc}", hint="repair or remove that file") from exc
    if not isinstance(whole, dict):
        raise ConfigError(f"{path} holds no JSON object", hint="repair or remove that file")
    return whole


def _cannot_write(path: Path, exc: OSError) -> ConfigError:
    return ConfigError(
        f"cannot write {path}: {exc.strerror or exc}",
        hint="choose another place with --user, --sys-prefix or --prefix",
    )
