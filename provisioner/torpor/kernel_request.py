"""What jupyter_client asks for, as parts of a launch request. Pure."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

NEVER = frozenset(
    {
        "JPY_PARENT_PID",  # ipykernel ends itself when this is not its parent
        "PYTHONEXECUTABLE",
        "PYTHONHOME",
    }
)
_PYTHONS = ("python", f"python{sys.version_info[0]}", "python{}.{}".format(*sys.version_info[:2]))
_FIELD = re.compile(r"\{([A-Za-z0-9_]+)\}")


def kernel_argv(argv: Sequence[str], fields: Mapping[str, Any], *, python: str) -> list[str]:
    """Give a kernelspec's command with its ``{fields}`` filled in.

    ``{connection_file}`` stays: it names a file in the sandbox, which the guest fills in. A bare
    ``python`` becomes the running interpreter, as in jupyter_client's ``format_kernel_cmd``.
    """

    def filled(match: re.Match[str]) -> str:
        name = match.group(1)
        return str(fields[name]) if name in fields and name != "connection_file" else match.group()

    command = [_FIELD.sub(filled, word) for word in argv]
    if command and command[0] in _PYTHONS:
        command[0] = python
    return command


def explicit_env(
    env: Mapping[str, str],
    inherited: Mapping[str, str],
    *,
    spec_names: Iterable[str],
    allowed: Iterable[str],
) -> dict[str, str]:
    """Give the part of ``env`` that somebody meant the kernel to have.

    That is what the kernelspec sets (``spec_names``), what the caller added to or changed of its own
    process's environment (``inherited``), and what is merely inherited as far as ``allowed`` names
    or patterns say so. A server's environment holds its tokens.
    """
    named, patterns = set(spec_names), tuple(allowed)
    return {
        name: value
        for name, value in env.items()
        if name not in NEVER
        and (
            name in named
            or inherited.get(name) != value
            or any(fnmatchcase(name, pattern) for pattern in patterns)
        )
    }


def choose_workspace(cwd: str, root: str | None, *, home: str) -> str:
    """Give the folder that the kernel should see: the server's root where the cwd lies in it.

    A root that is, or holds, the home folder would not be shown whole; then it is the cwd itself.
    """
    if root and within(cwd, root) and not within(home, root):
        return root
    return cwd


def within(path: str, folder: str) -> bool:
    """Whether ``path`` is ``folder`` or lies in it. Both absolute; links are not followed."""
    inner, outer = os.path.normpath(path), os.path.normpath(folder)
    return inner == outer or inner.startswith(outer.rstrip("/") + "/")
