"""Byte code of the guest, where a sandbox can read it.

A sandbox sees the guest's folders read-only, so it cannot keep what it compiles: without byte code each
one compiles 25 modules again, 0.4 s of its start.
"""

from __future__ import annotations

import compileall
import contextlib
from collections.abc import Iterable
from pathlib import Path

_CACHE = "__pycache__"


def compile_folders(folders: Iterable[str]) -> None:
    """Bring the byte code of the modules in ``folders`` up to date, readable for every uid.

    For the running Python. A folder of somebody else's stays as it is: installers compile what they
    install. Sources that are unchanged cost a look each.
    """
    for folder in folders:
        with contextlib.suppress(OSError):
            compileall.compile_dir(folder, maxlevels=0, quiet=2)
            _make_readable(Path(folder) / _CACHE)


def _make_readable(cache: Path) -> None:
    # whoever made it may have a stricter umask; the sources themselves are no secret
    cache.chmod(0o755)
    for entry in cache.iterdir():
        if entry.suffix == ".pyc" and not entry.is_symlink():
            entry.chmod(0o644)
