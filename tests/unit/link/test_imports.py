"""The link runs in a sandbox that has this one folder of torpor and the standard library."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torpor.link

PROGRAM = """
import json, sys
sys.path.insert(0, sys.argv[1])
before = set(sys.modules)
import torpor.link, torpor.link.fifo
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_imports_nothing_but_itself_and_little_of_the_standard_library(tmp_path: Path) -> None:
    (tmp_path / "torpor").mkdir()
    (tmp_path / "torpor/link").symlink_to(torpor.link.__path__[0])
    ran = subprocess.run(
        [sys.executable, "-I", "-S", "-B", "-c", PROGRAM, str(tmp_path)],
        capture_output=True,
        check=True,
        timeout=30,
    )
    loaded = json.loads(ran.stdout)
    ours = {name for name in loaded if name.startswith("torpor")}
    assert all(name == "torpor" or name.startswith("torpor.link") for name in ours)
    tops = {name.partition(".")[0] for name in loaded} - {"torpor"}
    assert tops <= sys.stdlib_module_names
    # each of these costs a starting guest more than the whole link does
    assert not tops & {"dataclasses", "inspect", "asyncio", "socket", "logging", "pathlib"}
