"""Finds the folders of the host that a kernel's program needs: venv, conda, pyenv, user site,
editables.

Static: files are read, nothing is executed, so a broken or hostile environment can at worst be
bound. Everything found is bound read-only under its host path. Never `/`, a home folder or what
contains one.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torpor.errors import ConfigError

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

_MAX_HOPS = 40
_MAX_PTH_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Environment:
    """What a program needs to run in the sandbox.

    ``prefixes`` are Python environments and other installed code: read-only even inside a writable
    workspace, because the host runs them too. ``sources`` are folders that `.pth` files and the
    argv name: bound where the workspace does not show them already. Both hold absolute host paths,
    none below another or below a system folder. ``env`` makes the program look in the right
    places.
    """

    executable: str
    prefixes: tuple[str, ...]
    sources: tuple[str, ...]
    path: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Finder:
    homes: frozenset[str]
    prefixes: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)

    def forbidden(self, path: str) -> bool:
        """Tell whether binding ``path`` would show a whole home folder, or more."""
        if path == "/":
            return True
        return any(_within(home, path) for home in self.homes)

    def add(self, path: str, to: list[str]) -> None:
        for each in dict.fromkeys((path, os.path.realpath(path))):
            if not self.forbidden(each) and os.path.isdir(each):
                to.append(each)

    def add_program(self, executable: str) -> None:
        """Add the prefix of every file on the symlink chain of ``executable``, and their bases."""
        for hop in _symlink_chain(executable):
            self.add_prefix_of(hop)

    def add_prefix_of(self, executable: str) -> None:
        folder = os.path.dirname(executable)
        prefix = os.path.dirname(folder) if os.path.basename(folder) in _BIN else folder
        if os.path.basename(folder) == "shims" and os.path.isdir(f"{prefix}/versions"):
            folder = prefix  # pyenv's shims run pyenv, which looks at all of its root
        elif self.forbidden(prefix) or os.path.basename(folder) == "shims":
            prefix = folder
        if prefix in self.prefixes:
            return
        self.add(prefix, self.prefixes)
        for base in _bases(prefix):
            self.add_prefix_of(os.path.join(base, "python"))
        for site in _site_folders(prefix):
            self.add_site(site)

    def add_site(self, site: str) -> None:
        for folder in _editable_folders(site):
            self.add(folder, self.sources)


_BIN = ("bin", "sbin", "Scripts")


def find_environment(
    argv: Sequence[str],
    interpreter: str,
    *,
    homes: Iterable[str],
    home: str,
    search_path: str,
    user_site: bool = True,
) -> Environment:
    """Give what ``argv`` needs in the sandbox, and the guest's ``interpreter`` besides.

    ``homes`` are the home folders of this machine, ``home`` the caller's own; ``search_path`` is
    the
    ``PATH`` for an ``argv[0]`` without a slash.

    Raises:
        ConfigError: ``argv[0]`` does not exist, is not executable, or would not be visible.
    """
    executable = _executable(argv, search_path)
    finder = _Finder(frozenset(os.path.realpath(each) for each in homes if each not in ("", "/")))
    for program in dict.fromkeys((executable, interpreter)):
        finder.add_program(program)
    for argument in argv[1:]:
        if os.path.isabs(argument) and os.path.isfile(argument):
            finder.add(os.path.dirname(argument), finder.sources)
    env = _user_site(finder, argv, executable, home) if user_site else {}
    prefixes = _outermost(finder.prefixes, SYSTEM_FOLDERS)
    sources = _outermost(finder.sources, (*SYSTEM_FOLDERS, *prefixes))
    if not any(_within(executable, each) for each in (*SYSTEM_FOLDERS, *prefixes, *sources)):
        raise ConfigError(
            f"{executable} is not visible in the sandbox",
            hint="a program directly in a home folder cannot be bound; use an environment",
        )
    conda = next((each for each in prefixes if _is_conda(each) and _within(executable, each)), None)
    if conda:
        env["CONDA_PREFIX"] = conda
    path = dict.fromkeys((os.path.dirname(executable), "/usr/local/bin", "/usr/bin", "/bin"))
    return Environment(executable, prefixes, sources, tuple(path), env)


def _executable(argv: Sequence[str], search_path: str) -> str:
    if not argv or not argv[0]:
        raise ConfigError("the kernel's argv is empty", hint="check its kernel.json")
    name = argv[0]
    found = os.path.abspath(name) if os.path.isabs(name) else shutil.which(name, path=search_path)
    hint = "is its environment still there? run: jupyter kernelspec list"
    if found is None or ("/" in name and not os.path.isabs(name)):
        raise ConfigError(f"the kernel's program {name!r} was not found on the PATH", hint=hint)
    try:
        mode = os.stat(found).st_mode
    except OSError as exc:
        raise ConfigError(
            f"the kernel's program {name!r} cannot be used: {exc.strerror}", hint=hint
        ) from exc
    if not stat.S_ISREG(mode) or not os.access(found, os.X_OK):
        raise ConfigError(f"the kernel's program {name!r} is not an executable file", hint=hint)
    return os.path.abspath(found)


def _symlink_chain(path: str) -> Iterator[str]:
    """Yield ``path`` and where each of its links leads, the last with no link anywhere in it."""
    for _ in range(_MAX_HOPS):
        yield path
        try:
            path = os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(path)))
        except OSError:
            break
    yield os.path.realpath(path)


def _bases(prefix: str) -> list[str]:
    """Give the ``bin`` folders of what ``pyvenv.cfg`` says this environment was made from."""
    found = []
    for line in _lines(f"{prefix}/pyvenv.cfg"):
        key, _, value = line.partition("=")
        if key.strip().lower() in ("home", "base-executable", "executable") and value.strip():
            value = value.strip()
            found.append(value if key.strip().lower() == "home" else os.path.dirname(value))
    return [each for each in dict.fromkeys(found) if os.path.isdir(each)]


def _site_folders(prefix: str) -> list[str]:
    try:
        versions = [each for each in os.listdir(f"{prefix}/lib") if each.startswith("python3")]
    except OSError:
        return []
    names = (f"{prefix}/lib/{each}/{site}" for each in versions for site in _SITES)
    return [each for each in names if os.path.isdir(each)]


_SITES = ("site-packages", "dist-packages")
_MAPPING = re.compile(r"^MAPPING(?:\s*:[^=]*)?\s*=\s*(\{.*\})\s*$", re.MULTILINE)


def _editable_folders(site: str) -> Iterator[str]:
    """Yield the folders that `.pth` files and setuptools' editable finders of ``site`` name."""
    try:
        names = os.listdir(site)
    except OSError:
        return
    for name in names:
        if name.endswith(".pth"):
            for line in _lines(f"{site}/{name}"):
                if line and not line.startswith(("#", "import ", "import\t")):
                    yield os.path.normpath(os.path.join(site, line))
        elif name.startswith("__editable__") and name.endswith("_finder.py"):
            yield from _mapped_folders("\n".join(_lines(f"{site}/{name}")))


def _mapped_folders(source: str) -> Iterator[str]:
    match = _MAPPING.search(source)
    try:
        mapping = ast.literal_eval(match.group(1)) if match else {}
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return
    for target in mapping.values():
        if isinstance(target, str) and os.path.isabs(target):
            yield target if os.path.isdir(target) else os.path.dirname(target)


def _user_site(finder: _Finder, argv: Sequence[str], executable: str, home: str) -> dict[str, str]:
    """Add ``~/.local`` for a Python outside virtual environments; give the variable for it."""
    isolated = any(re.fullmatch(r"-[bBdEhiOqRsStuvWxX]*[Is]\w*", each) for each in argv[1:4])
    in_venv = any(
        os.path.isfile(f"{os.path.dirname(os.path.dirname(hop))}/pyvenv.cfg")
        for hop in _symlink_chain(executable)
    )
    user_base = f"{home}/.local"
    if isolated or in_venv or not os.path.basename(executable).startswith("python"):
        return {}
    sites = _site_folders(user_base)
    for site in sites:
        finder.add(site, finder.prefixes)
        finder.add_site(site)
    return {"PYTHONUSERBASE": user_base} if sites else {}


def _is_conda(prefix: str) -> bool:
    return os.path.isdir(f"{prefix}/conda-meta")


def _outermost(paths: Iterable[str], covered: Iterable[str]) -> tuple[str, ...]:
    """Give ``paths`` sorted, without those that lie in another one or in ``covered``."""
    kept: list[str] = []
    for path in sorted(set(paths)):
        if not any(_within(path, each) for each in (*covered, *kept)):
            kept.append(path)
    return tuple(kept)


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _lines(path: str) -> list[str]:
    try:
        with Path(path).open("rb") as file:
            text = file.read(_MAX_PTH_BYTES).decode("utf-8", "replace")
    except OSError:
        return []
    return [line.strip() for line in text.splitlines()]
