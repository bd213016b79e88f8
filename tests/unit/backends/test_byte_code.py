"""Byte code of the guest is there, current, and readable for the uid of a sandbox."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from torpor.backends.local_byte_code import compile_folders


def test_byte_code_is_made_readable_whatever_the_umask(tmp_path: Path) -> None:
    source = tmp_path / "module.py"
    source.write_text("x = 1\n")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "not_this.py").write_text("")
    before = os.umask(0o077)
    try:
        compile_folders([str(tmp_path)])
    finally:
        os.umask(before)
    made = Path(importlib.util.cache_from_source(str(source)))
    assert made.stat().st_mode & 0o777 == 0o644
    assert made.parent.stat().st_mode & 0o777 == 0o755
    assert not (tmp_path / "inner" / "__pycache__").exists()
    first = made.read_bytes()
    source.write_text("x = 22\n")
    os.utime(source, (1, 1))
    compile_folders([str(tmp_path)])
    assert made.read_bytes() != first


def test_a_folder_that_is_not_there_is_no_error(tmp_path: Path) -> None:
    compile_folders([str(tmp_path / "gone")])
    assert not (tmp_path / "gone").exists()
