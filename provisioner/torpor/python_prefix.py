"""Reads how a Python installation is laid out on disk, without running it."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path

_MAX_HOPS = 40
_MAX_TEXT_BYTES = 1 << 20
_SITES = ("site-packages", "dist-packages")
_MAPPING = re.compile(r"^MAPPING(?:\s*:[^=]*)?\s*=\s*(\{.*\})\s*$", re.MULTILINE)


def is_prefix(folder: str) -> bool:
    """Tell whether ``folder`` looks like the root of an installation, with its libraries in it."""
    names = ("pyvenv.cfg", "conda-meta", "lib", "lib64", "libexec")
    return any(os.path.exists(f"{folder}/{each}") for each in names)


def symlink_chain(path: str) -> Iterator[str]:
    """Yield ``path`` and where each of its links leads, the last with no link anywhere in it."""
    seen = set()
    for _ in range(_MAX_HOPS):
        seen.add(path)
        yield path
        try:
            path = os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(path)))
        except OSError:
            break
    real = os.path.realpath(path)
    if real not in seen:
        yield real


def base_folders(prefix: str) -> list[str]:
    """Give the ``bin`` folders of what ``pyvenv.cfg`` says this environment was made from."""
    found = []
    for line in lines_of(f"{prefix}/pyvenv.cfg"):
        key, _, value = (each.strip() for each in line.partition("="))
        if key.lower() == "home":
            found.append(value)
        elif key.lower() in ("executable", "base-executable"):
            found.append(os.path.dirname(value))
    return [each for each in dict.fromkeys(found) if os.path.isabs(each) and os.path.isdir(each)]


def site_folders(prefix: str) -> list[str]:
    """Give the folders below ``prefix`` that packages are installed into."""
    found = []
    for lib in (f"{prefix}/lib", f"{prefix}/lib64"):
        if os.path.islink(lib):
            continue
        try:
            versions = sorted(each for each in os.listdir(lib) if each.startswith("python3"))
        except OSError:
            continue
        found += [f"{lib}/{each}/{site}" for each in versions for site in _SITES]
    return [each for each in found if os.path.isdir(each)]


def editable_folders(site: str) -> Iterator[str]:
    """Yield the folders that `.pth` files and setuptools' editable finders of ``site`` name."""
    try:
        names = sorted(os.listdir(site))
    except OSError:
        return
    for name in names:
        if name.endswith(".pth"):
            for line in lines_of(f"{site}/{name}"):
                if line and not line.startswith(("#", "import ", "import\t")):
                    yield os.path.normpath(os.path.join(site, line))
        elif name.startswith("__editable__") and name.endswith("_finder.py"):
            yield from _mapped_folders("\n".join(lines_of(f"{site}/{name}")))


def _mapped_folders(source: str) -> Iterator[str]:
    match = _MAPPING.search(source)
    try:
        mapping = ast.literal_eval(match.group(1)) if match else {}
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return
    for target in mapping.values():
        if isinstance(target, str) and os.path.isabs(target):
            yield target if os.path.isdir(target) else os.path.dirname(target)


def within(path: str, folder: str) -> bool:
    """Tell whether ``path`` is ``folder`` or lies in it; both absolute, without ``..``."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def lines_of(path: str) -> list[str]:
    """Give the stripped lines of a small text file; none when it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            text = file.read(_MAX_TEXT_BYTES).decode("utf-8", "replace")
    except OSError:
        return []
    return [line.strip() for line in text.splitlines()]
