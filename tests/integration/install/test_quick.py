"""The changes to gVisor's source, made to the real one, and what they leave of any other."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from torpor.runsc.install_go_quick import make_quick
from torpor.runsc.install_staging import SourceUnusable
from torpor.runsc.version import GO_MODULE, GO_VERSION

CHANGED = ("runsc/boot/controller.go", "pkg/sighandling/sighandling.go")
ADDED = {"pkg/torpor", "runsc/boot/torpor_quick.go", "pkg/sighandling/torpor_quick.go"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Give the files that are changed, as they are in the module that runsc is built from."""
    go = shutil.which("go")
    if go is None:
        pytest.skip("no Go here")
    asked = subprocess.run([go, "env", "GOMODCACHE"], capture_output=True, text=True, check=True)
    module = Path(asked.stdout.strip()) / f"{GO_MODULE}@{GO_VERSION}"
    if not module.is_dir():
        pytest.skip("runsc was not built from the Go module here")
    for each in CHANGED:
        (tmp_path / each).parent.mkdir(parents=True)
        shutil.copyfile(module / each, tmp_path / each)
    return tmp_path


def lines_of(source: Path) -> dict[str, list[str]]:
    return {each: (source / each).read_text().splitlines() for each in CHANGED}


def test_the_real_source(source: Path) -> None:
    before = lines_of(source)
    make_quick(source)
    after = lines_of(source)
    assert after[CHANGED[0]].count("\ttorporQuiet()") == 2
    assert [each for each in after[CHANGED[0]] if "torpor" not in each] == before[CHANGED[0]]
    differ = [
        each
        for each in zip(before[CHANGED[1]], after[CHANGED[1]], strict=True)
        if len(set(each)) > 1
    ]
    assert [new.strip() for _, new in differ] == [
        "torporLater(func() { signal.Notify(sigchan, unix.Signal(sig)) })"
    ]
    assert all((source / each).exists() for each in ADDED)


@pytest.mark.parametrize("changed", CHANGED)
def test_another_source_stays_as_it_is(source: Path, changed: str) -> None:
    path = source / changed
    path.write_text(
        path.read_text().replace("containerManager) R", "manager) R").replace("Notify(", "N(")
    )
    before = lines_of(source)
    with pytest.raises(SourceUnusable, match=changed):
        make_quick(source)
    assert lines_of(source) == before
    assert not any((source / each).exists() for each in ADDED)


def test_changed_already_it_is_another_source(source: Path) -> None:
    path = source / CHANGED[1]
    path.write_text(path.read_text() * 2)
    with pytest.raises(SourceUnusable, match="is not as it was"):
        make_quick(source)
