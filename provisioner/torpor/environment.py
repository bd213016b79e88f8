"""Finds the folders of the host that a kernel's program needs: venv, conda, pyenv, user site.

Static: files are read, nothing is executed, so a broken or hostile environment can at worst be
bound. Everything found is bound read-only under its host path. Never bound are `/`, a home folder,
a place in it where programs keep secrets, or anything that contains one of these.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torpor.errors import ConfigError, ProgramNotFound
from torpor.python_prefix import (
    base_folders,
    editable_folders,
    is_prefix,
    site_folders,
    symlink_chain,
    within,
)

SYSTEM_FOLDERS = (
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/nix/store",
    "/gnu/store",
)
"""Bound whole in every sandbox, as far as the host has them."""

_KEEPERS = (".local/share", ".local/state", ".config", ".cache", ".jupyter")
"""Below a home: many programs' folders in one. A single program's folder in it may be bound."""

_SECRETS = (".ssh", ".gnupg", ".aws", ".azure", ".kube", ".docker", ".netrc", ".pki")
_BIN = ("bin", "sbin", "condabin", "Scripts")


@dataclass(frozen=True, slots=True)
class Environment:
    """What a program needs to run in the sandbox.

    ``prefixes`` are Python environments and other installed code: read-only even inside a writable
    workspace, because the host runs them too. ``sources`` are folders that `.pth` files,
    ``PYTHONPATH`` and the argv name: bound where the workspace does not show them already. Both
    hold absolute host paths, none below another or below a system folder. ``live`` are those folders
    in a prefix or a system folder into which packages are installed while sandboxes run. ``env``
    makes the program look in the right places; ``path`` are the folders of its ``PATH``.
    """

    executable: str
    prefixes: tuple[str, ...]
    sources: tuple[str, ...]
    live: tuple[str, ...]
    path: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)


def find_environment(
    argv: Sequence[str],
    interpreter: str,
    *,
    homes: Iterable[str],
    home: str,
    search_path: str,
    python_path: str = "",
) -> Environment:
    """Give what ``argv`` needs in the sandbox, and the guest's ``interpreter`` besides.

    ``homes`` are the home folders of this machine, ``home`` the caller's own; ``search_path`` is
    the ``PATH`` for an ``argv[0]`` without a slash, ``python_path`` an explicit ``PYTHONPATH``.

    Raises:
        ProgramNotFound: ``argv[0]`` does not exist.
        ConfigError: it is not executable, or would not be visible.
    """
    executable = _executable(argv, search_path)
    finder = _Finder(frozenset(os.path.realpath(each) for each in homes if each not in ("", "/")))
    finder.add_program(executable)
    live, env = _installed_into(finder, argv, executable, home)
    finder.add_program(interpreter)
    for argument in argv[1:]:
        if os.path.isabs(argument) and os.path.isfile(argument):
            finder.add(os.path.dirname(argument), finder.sources)
    for folder in python_path.split(":"):
        if os.path.isabs(folder):
            finder.add(folder, finder.sources)
    prefixes = _outermost(finder.prefixes, SYSTEM_FOLDERS)
    shown = (*SYSTEM_FOLDERS, *prefixes)
    sources = _outermost(finder.sources, shown)
    for hop in symlink_chain(executable):
        if not any(within(hop, each) for each in (*shown, *sources)):
            raise ConfigError(
                f"{hop} is not visible in the sandbox",
                hint="a program directly in a home folder cannot be bound; use an environment",
            )
    path = dict.fromkeys((os.path.dirname(executable), "/usr/local/bin", "/usr/bin", "/bin"))
    return Environment(executable, prefixes, sources, _outermost(live, ()), tuple(path), env)


@dataclass(slots=True)
class _Finder:
    homes: frozenset[str]
    prefixes: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)

    def forbidden(self, path: str) -> bool:
        """Tell whether binding ``path`` would show secrets of a home folder, or all of it."""
        return path == "/" or any(
            within(home, path)
            or any(within(f"{home}/{each}", path) for each in _KEEPERS)
            or any(within(path, f"{home}/{each}") for each in _SECRETS)
            for home in self.homes
        )

    def add(self, path: str, to: list[str]) -> None:
        """Add a folder under the name it was found by and under its real one."""
        for each in dict.fromkeys((path, os.path.realpath(path))):
            if os.path.isdir(each) and not self.forbidden(os.path.realpath(each)):
                to.append(each)

    def add_program(self, executable: str) -> None:
        """Add the prefix of every file on the symlink chain of ``executable``, and their bases."""
        for hop in symlink_chain(executable):
            self.add_prefix(_prefix_of(hop), os.path.dirname(hop))

    def add_prefix(self, prefix: str, folder: str) -> None:
        """Add ``prefix`` with what it builds on, or only ``folder`` where that is too much."""
        if self.forbidden(os.path.realpath(prefix)):
            prefix = folder
        if prefix in self.prefixes:
            return
        self.add(prefix, self.prefixes)
        for base in base_folders(prefix):
            self.add_prefix(os.path.dirname(base), base)
        for site in site_folders(prefix):
            self.add_site(site)

    def add_site(self, site: str) -> None:
        for folder in editable_folders(site):
            self.add(folder, self.sources)


def _executable(argv: Sequence[str], search_path: str) -> str:
    hint = "is its environment still there? run: jupyter kernelspec list"
    if not argv or not argv[0]:
        raise ConfigError("the kernel's argv is empty", hint="check its kernel.json")
    name = argv[0]
    found = shutil.which(name, path=search_path) if "/" not in name else name
    if found is None or not os.path.isabs(found):
        raise ProgramNotFound(f"the kernel's program {name!r} was not found on the PATH", hint=hint)
    try:
        mode = os.stat(found).st_mode
    except OSError as exc:
        error = ProgramNotFound if isinstance(exc, FileNotFoundError) else ConfigError
        raise error(
            f"the kernel's program {name!r} cannot be used: {exc.strerror}", hint=hint
        ) from exc
    if not stat.S_ISREG(mode) or not os.access(found, os.X_OK):
        raise ConfigError(f"the kernel's program {name!r} is not an executable file", hint=hint)
    return os.path.abspath(found)


def _prefix_of(executable: str) -> str:
    """Give the folder that was installed as a whole together with ``executable``."""
    folder = os.path.dirname(executable)
    parent = os.path.dirname(folder)
    if os.path.basename(folder) == "shims" and os.path.isdir(f"{parent}/versions"):
        return parent  # pyenv's shims run pyenv, which looks at all of its root
    return parent if os.path.basename(folder) in _BIN and is_prefix(parent) else folder


def _installed_into(
    finder: _Finder, argv: Sequence[str], executable: str, home: str
) -> tuple[list[str], dict[str, str]]:
    """Give the folders that ``pip`` or ``conda`` beside ``executable`` install into, and variables."""
    prefix = _prefix_of(executable)
    if os.path.isdir(f"{prefix}/conda-meta"):
        return [prefix], {"CONDA_PREFIX": prefix}
    if os.path.isfile(f"{prefix}/pyvenv.cfg"):
        return site_folders(prefix), {}
    live = [each for base in _bases_of(executable) for each in site_folders(base)]
    if not os.path.basename(executable).startswith("python") or _isolated(argv):
        return live, {}
    own = site_folders(f"{home}/.local")
    for site in own:
        finder.add(os.path.dirname(site), finder.prefixes)
        finder.add_site(site)
    return [*live, *own], {"PYTHONUSERBASE": f"{home}/.local"} if own else {}


def _bases_of(executable: str) -> tuple[str, ...]:
    prefix = _prefix_of(os.path.realpath(executable))
    return (prefix, "/usr/local") if prefix == "/usr" else (prefix,)


def _isolated(argv: Sequence[str]) -> bool:
    """Tell whether ``python`` is told to ignore the user's own packages (``-I`` or ``-s``)."""
    for each in argv[1:]:
        if not each.startswith("-") or each in ("-m", "-c", "-"):
            return False
        if re.match(r"-[bBdEhiOqRStuvx]*[Is]", each):
            return True
    return False


def _outermost(paths: Iterable[str], covered: Iterable[str]) -> tuple[str, ...]:
    """Give ``paths`` sorted, without those that lie in another one or in ``covered``."""
    kept: list[str] = []
    for path in sorted(set(paths)):
        if not any(within(path, each) for each in (*covered, *kept)):
            kept.append(path)
    return tuple(kept)
