"""What is shipped as an example is one."""

from __future__ import annotations

import json
from pathlib import Path

from torpor.config import load_settings
from torpor.paths import resolve_paths

ROOT = Path(__file__).parents[3]


def test_the_example_configuration_can_be_used_as_it_is(tmp_path: Path) -> None:
    paths = resolve_paths({"TORPOR_HOME": str(tmp_path)}, uid=1000, home=tmp_path)
    paths.config.mkdir()
    example = (ROOT / "examples" / "torpor_config.py").read_text()
    (paths.config / "torpor_config.py").write_text(example)
    settings = load_settings(paths, {})
    assert set(settings.templates) == {"default", "big", "instant", "scratch"}
    assert settings.template("big").memory_bytes == 16 << 30


def test_the_demo_has_all_that_it_promises() -> None:
    notebook = json.loads((ROOT / "examples" / "demo.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    source = "\n".join("".join(cell["source"]) for cell in cells)
    for promised in ("numpy", "plt.show()", "input(", "trange", "dmesg"):
        assert promised in source
    assert any("raises-exception" in cell["metadata"].get("tags", []) for cell in cells)
    assert not any(cell["outputs"] for cell in cells), "shipped without outputs"
