"""Modules that a warm-up may meet."""

from __future__ import annotations

from pathlib import Path

MODULES = {
    "raising": "raise RuntimeError('this module is broken')",
    "needing": "import not_there_at_all",
    "hanging": "import time\nwhile True: time.sleep(1)",
    "busy": "while True: pass",
    "exiting": "import os\nos._exit(3)",
    "crashing": "import ctypes\nctypes.string_at(0)",
    "leaving": "raise SystemExit(0)",
    "fine": "VALUE = 7",
}


def write_modules(folder: Path) -> None:
    """Put all of them into ``folder``."""
    for name, source in MODULES.items():
        (folder / f"{name}.py").write_text(source + "\n")
