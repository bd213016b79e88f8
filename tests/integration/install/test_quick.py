"""The changes to gVisor's source, made to the real one, and what they leave of any other."""

from __future__ import annotations

import difflib
import shutil
import subprocess
from pathlib import Path

import pytest
from torpor.runsc.install_go_quick import _CHANGES, _Change, make_quick
from torpor.runsc.install_staging import SourceUnusable
from torpor.runsc.version import GO_MODULE, GO_VERSION

# Everything that is changed, by the function that it is in.
CHANGES = Path(__file__).parent / "quick_go" / "changes.diff"
CHANGED = (
    "runsc/boot/controller.go",
    "pkg/sighandling/sighandling.go",
    "pkg/state/encode.go",
    "pkg/state/decode.go",
    "pkg/state/state.go",
    "pkg/sentry/pgalloc/save_restore.go",
    "runsc/boot/loader.go",
    "pkg/sentry/seccheck/config.go",
    "pkg/sentry/platform/systrap/metrics.go",
    "pkg/sentry/state/stateio/pagesfile.go",
    "pkg/sentry/time/calibrated_clock.go",
    "pkg/sentry/time/sampler.go",
    "pkg/cpuid/native_amd64.go",
    "runsc/cmd/sandboxsetup/process.go",
)
ADDED = {
    "pkg/torpor/quiet.go",
    "runsc/boot/torpor_quick.go",
    "pkg/sighandling/torpor_quick.go",
    "pkg/state/torpor_plain.go",
    "pkg/sentry/pgalloc/torpor_holes.go",
    "pkg/sentry/state/stateio/torpor_parallel.go",
    "pkg/sentry/platform/systrap/torpor_hurry.go",
    "pkg/sentry/time/torpor_early.go",
    "pkg/cpuid/torpor_once.go",
    "pkg/torpor/umount/umount.go",
}


def module_folder() -> Path:
    """Give where the module is that runsc is built from."""
    go = shutil.which("go")
    if go is None:
        pytest.skip("no Go here")
    asked = subprocess.run([go, "env", "GOMODCACHE"], capture_output=True, text=True, check=True)
    module = Path(asked.stdout.strip()) / f"{GO_MODULE}@{GO_VERSION}"
    if not module.is_dir():
        pytest.skip("runsc was not built from the Go module here")
    return module


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Give the files that are changed, as they are in that module."""
    module = module_folder()
    for each in CHANGED:
        (tmp_path / each).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(module / each, tmp_path / each)
    return tmp_path


def files_of(source: Path) -> dict[str, str]:
    """Give what is in each file that is there."""
    there = (path for path in source.rglob("*") if path.is_file())
    return {str(path.relative_to(source)): path.read_text() for path in there}


def told(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Give the lines that differ, each change below the function that it is in."""
    lines = []
    for path in CHANGED:
        old, new = before[path].splitlines(), after[path].splitlines()
        lines.append(f"--- {path}")
        differs = difflib.SequenceMatcher(None, old, new, autojunk=False)
        for kind, start, end, new_start, new_end in differs.get_opcodes():
            if kind != "equal":
                functions = ["import", *(line for line in old[:start] if line.startswith("func "))]
                lines.append(f"@@ {functions[-1]}")
                lines += [f"-{line}" for line in old[start:end]]
                lines += [f"+{line}" for line in new[new_start:new_end]]
    return lines


def test_the_real_source(source: Path) -> None:
    before = files_of(source)
    make_quick(source)
    after = files_of(source)
    assert told(before, after) == CHANGES.read_text().splitlines()
    assert set(after) - set(before) == ADDED


@pytest.mark.parametrize("change", _CHANGES, ids=lambda each: each.before.split("\n")[0].strip())
@pytest.mark.parametrize("times", [0, 2])
def test_another_source_stays_as_it_is(source: Path, change: _Change, times: int) -> None:
    path = source / change.path
    text = path.read_text()
    assert change.before in text
    path.write_text(text.replace(change.before, change.before * times))
    before = files_of(source)
    with pytest.raises(SourceUnusable, match=f"{change.path} is not as it was"):
        make_quick(source)
    assert files_of(source) == before


@pytest.mark.parametrize("missing", CHANGED)
def test_a_source_without_one_of_the_files_stays_as_it_is(source: Path, missing: str) -> None:
    (source / missing).unlink()
    before = files_of(source)
    with pytest.raises(SourceUnusable, match=f"there is no {missing}"):
        make_quick(source)
    assert files_of(source) == before


def test_changed_already_it_is_another_source(source: Path) -> None:
    make_quick(source)
    before = files_of(source)
    with pytest.raises(SourceUnusable, match="is not as it was"):
        make_quick(source)
    assert files_of(source) == before
