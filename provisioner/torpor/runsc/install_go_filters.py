"""A runsc from gVisor's Go module whose seccomp programs are compiled already.

gVisor's own build, with Bazel, compiles them once; the Go module has none, and such a runsc builds
them anew at every start of a sandbox. So the module's source is copied, a small generator
(``filters/*.go``) writes the compiled programs into the copy, and runsc is built from that. The
rules are the same as without: gVisor finds a program by all options that shape it, and builds it as
before where none fits.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path

from torpor.runsc.install_go_quick import make_quick
from torpor.runsc.install_staging import Report, SourceUnusable, run_reporting
from torpor.runsc.version import FILTERS_SUFFIX, GO_MODULE, QUICK_SUFFIX

Ask = Callable[[list[str]], str]
"""Gives what a quick go command prints, or raises SourceUnusable."""

_CONFIGS = ("runsc/boot/filter/config", "runsc/fsgofer/filter/config")
_GENERATOR = "torpor_filters"
_DOWNLOAD_TIMEOUT_S = 600.0
_GENERATE_TIMEOUT_S = 1200.0
_BUILD_TIMEOUT_S = 1800.0


def build_with_filters(
    go: str, version: str, env: Mapping[str, str], folder: Path, *, ask: Ask, report: Report
) -> None:
    """Build ``folder``/go/runsc with compiled programs; takes ten seconds more than without.

    Raises SourceUnusable or OSError; the plain build may then be tried.
    """
    # The user's data folder may lie in a Go workspace, which is none of ours.
    env = dict(env, GOWORK="off")

    def run(argv: list[str], timeout_s: float, what: str) -> None:
        log = folder / "go-filters.log"
        run_reporting(argv, env=env, log=log, timeout_s=timeout_s, report=report, what=what)

    download = ["mod", "download", "-json", f"{GO_MODULE}@{version}"]
    run([go, *download], _DOWNLOAD_TIMEOUT_S, "downloading gVisor's Go module")
    copy = folder / "source"
    try:
        copy_source(module_folder(ask(download)), copy)
        add_generator(copy)
        label = version + _suffix(copy, report)
        run(generate_argv(go, copy), _GENERATE_TIMEOUT_S, "compiling runsc's seccomp filters")
        target = folder / "go" / "runsc"
        run(build_argv(go, label, copy, target), _BUILD_TIMEOUT_S, "building runsc")
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def generate_argv(go: str, copy: Path) -> list[str]:
    """Give the command that writes the programs into ``copy``. Pure.

    With the flags of the build, so that what it compiles is not compiled again for that.
    """
    return [go, "-C", str(copy), "run", "-trimpath", "-buildvcs=false", f"./{_GENERATOR}"]


def _suffix(copy: Path, report: Report) -> str:
    """Make what is in ``copy`` quicker if that can be; give what its label ends in."""
    try:
        make_quick(copy)
    except SourceUnusable as exc:
        report(f"building it without what makes saves and restores quicker: {exc}")
        return FILTERS_SUFFIX
    return QUICK_SUFFIX


def build_argv(go: str, label: str, copy: Path, target: Path) -> list[str]:
    """Give the command that builds ``target`` from ``copy``. Pure."""
    flags = ["-v", "-trimpath", "-buildvcs=false", "-ldflags", linker_flags(label)]
    return [go, "-C", str(copy), "build", *flags, "-o", str(target), "./runsc"]


def linker_flags(label: str) -> str:
    """Give what the linker is told: no debug tables, and what the build calls itself. Pure."""
    return f"-s -w -X {GO_MODULE}/runsc/version.version={label}"


def module_folder(answer: str) -> Path:
    """Give where the source is, from what ``go mod download -json`` printed. Pure.

    Raises SourceUnusable with Go's own reason where it is nowhere.
    """
    try:
        module = json.loads(answer)
        return Path(module["Dir"])
    except (ValueError, TypeError, KeyError) as exc:
        raise SourceUnusable(f"`go mod download` printed {answer[:200]!r}") from exc


def copy_source(source: Path, target: Path) -> None:
    """Copy the files of ``source``; unlike there, everything in ``target`` may be written.

    Raises OSError when not all could be copied.
    """
    for parent, _, names in os.walk(source, onerror=_raise):
        into = target / Path(parent).relative_to(source)
        into.mkdir()
        for name in names:
            shutil.copyfile(Path(parent, name), into / name)


def add_generator(copy: Path) -> None:
    """Put the generator's files where in ``copy`` they belong. Raises OSError if nowhere."""
    ours = files("torpor.runsc") / "filters"
    for config in _CONFIGS:
        (copy / config / "torpor_precompile.go").write_bytes((ours / "precompile.go").read_bytes())
    (copy / _GENERATOR).mkdir()
    (copy / _GENERATOR / "main.go").write_bytes((ours / "main.go").read_bytes())


def _raise(error: OSError) -> None:
    raise error
