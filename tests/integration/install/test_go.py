"""The Go source, with a stand-in for ``go`` that answers as the real one was seen to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torpor.errors import ConfigError
from torpor.paths import Paths, resolve_paths
from torpor.runsc.install import Source, install_runsc
from torpor.runsc.install_go_quick import _CHANGES
from torpor.runsc.version import GO_VERSION

NEWEST = "v0.0.0-20261101000000-0123456789ab"
REFUSAL = (
    "go: gvisor.dev/gvisor@%s: reading PROXY/%s.info: 403 Forbidden\\n"
    "\\tserver response: This module version is not available.\\n"
)
LOADED = "Loaded precompiled seccomp instructions for options GOARCH"
BUILT_ANEW = "No precompiled program found for config options GOARCH"
FAKE_RUNSC = """#!/bin/sh
for word in "$@"; do
    case "$word" in
    --version) echo runsc version LABEL; exit ;;
    --debug-log=*) echo "LOG" > "${word#*=}runsc.log.boot" ;;
    do) echo Linux version 4.4.0; exit ;;
    esac
done
"""


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return resolve_paths({"TORPOR_HOME": str(tmp_path / "home")}, uid=1000, home=tmp_path)


def fake_go(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    on_offer: str,
    newest: str = NEWEST,
    version: str = "go1.26.8",
    build: str = "",
    download: str = "",
    generate: str = "",
    log: str = LOADED,
    known: bool = True,
) -> None:
    """Put a ``go`` on PATH that offers one version besides ``latest`` and builds with ``build``.

    Args:
        download: instead of giving a folder with the two packages that get the generator.
        generate: instead of looking for the generator's files.
        log: what a sandbox of the build with filters writes into its debug log.
        known: whether the source is as ``make_quick`` wants it.
    """
    if known:
        write_known_source(folder / "module")
    for package in ("boot", "fsgofer"):
        config = folder / "module" / "runsc" / package / "filter" / "config"
        config.mkdir(parents=True)
        (config / "config.go").write_text("package config\n")
        (config / "config.go").chmod(0o444)  # as in the module cache
    refusal = REFUSAL.replace("%s", "$5")
    install = build or (
        'version="${6##*@}"\n'
        'printf "#!/bin/sh\\necho runsc version $version\\n" > "$GOBIN/runsc"\n'
        'chmod 755 "$GOBIN/runsc"\n'
    )
    download = download or f'echo \'{{"Dir": "{folder}/module"}}\''
    generate = generate or (
        'cd "$2" && grep -q TorporPrecompile runsc/boot/filter/config/torpor_precompile.go'
        " runsc/fsgofer/filter/config/torpor_precompile.go && grep -q 'package main' $6/main.go"
    )
    with_filters = build or (
        'label="${8##*=}"\ncp "$FAKE_RUNSC" "${10}"\nsed -i "s/LABEL/$label/" "${10}"\n'
    )
    fake_runsc = folder / "fake-runsc"
    fake_runsc.write_text(FAKE_RUNSC.replace("LOG", log))
    fake_runsc.chmod(0o755)
    monkeypatch.setenv("FAKE_RUNSC", str(fake_runsc))
    script = f"""#!/bin/sh
case "$1 $2" in
"env GOVERSION") printf '{version}\\nlocal\\n' ;;
"list -m") case "$5" in
    *@{on_offer}) echo {on_offer} ;;
    *@latest) echo {newest} ;;
    *) printf "{refusal}" >&2; exit 1 ;;
    esac ;;
"mod download") {download} ;;
"-C "*) case "$3" in run) {generate} ;; build) {with_filters} ;; esac ;;
"install -v") {install} ;;
esac
"""
    bin_folder = folder / "bin"
    bin_folder.mkdir()
    (bin_folder / "go").write_text(script)
    (bin_folder / "go").chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_folder}:{os.environ['PATH']}")


def write_known_source(module: Path) -> None:
    """Write the lines of gVisor's source that are changed, and no others."""
    for change in _CHANGES:
        path = module / change.path
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(f"{change.before}\n")


def install(paths: Paths) -> tuple[str, list[str]]:
    lines: list[str] = []
    installed = install_runsc(paths, report=lines.append, sources=[Source.GO])
    return installed.runsc.build, lines


def test_the_pinned_version(tmp_path: Path, paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_go(tmp_path, monkeypatch, on_offer=GO_VERSION)
    build, lines = install(paths)
    assert build == f"{GO_VERSION}+filters.quick3"
    assert lines == [f"building runsc {GO_VERSION} with go1.26.8: one to three minutes"]
    assert {entry.name for entry in paths.data.iterdir()} == {"runsc", "gvisor", ".install.lock"}


def test_where_it_is_refused_the_newest_on_offer_is_built_and_said(
    tmp_path: Path, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_go(tmp_path, monkeypatch, on_offer=NEWEST)
    build, lines = install(paths)
    assert build == f"{NEWEST}+filters.quick3"
    assert f"the pinned {GO_VERSION} is refused" in lines[0]
    assert "403 Forbidden" in lines[0]
    assert lines[1] == f"building {NEWEST} instead, the newest on offer"


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"download": "echo '{}'"}, "`go mod download` printed '{}"),
        ({"download": "echo no space left >&2; exit 1"}, "module failed: no space left"),
        ({"download": 'echo \'{"Dir": "/nowhere"}\''}, "/nowhere"),
        ({"generate": "echo undefined: rules; exit 1"}, "filters failed: undefined: rules"),
    ],
)
def test_without_filters_the_module_is_built_as_it_is_and_that_is_said(
    tmp_path: Path,
    paths: Paths,
    monkeypatch: pytest.MonkeyPatch,
    kwargs: dict[str, str],
    says: str,
) -> None:
    fake_go(tmp_path, monkeypatch, on_offer=GO_VERSION, **kwargs)
    build, lines = install(paths)
    assert build == GO_VERSION
    told = [line for line in lines if "without its seccomp filters" in line]
    assert len(told) == 1
    assert says in told[0]
    assert {entry.name for entry in paths.data.iterdir()} == {"runsc", "gvisor", ".install.lock"}


def test_a_source_that_is_not_known_is_built_with_filters_and_that_is_said(
    tmp_path: Path, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_go(tmp_path, monkeypatch, on_offer=GO_VERSION, known=False)
    build, lines = install(paths)
    assert build == f"{GO_VERSION}+filters"
    told = [line for line in lines if "without what makes saves and restores quicker" in line]
    assert len(told) == 1
    assert "runsc/boot/controller.go" in told[0]


@pytest.mark.parametrize(
    ("log", "says"),
    [
        (LOADED + "\n" + BUILT_ANEW, "one is built at the start"),
        ("nothing about it", "none was loaded"),
    ],
)
def test_a_build_that_does_not_use_its_filters_is_kept_with_a_warning(
    tmp_path: Path, paths: Paths, monkeypatch: pytest.MonkeyPatch, log: str, says: str
) -> None:
    fake_go(tmp_path, monkeypatch, on_offer=GO_VERSION, log=log)
    build, lines = install(paths)
    assert build == f"{GO_VERSION}+filters.quick3"
    assert lines[-1].startswith("warning: this runsc does not use its seccomp filters")
    assert says in lines[-1]


def test_a_plain_build_that_is_there_still_counts(
    tmp_path: Path, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        fake_go(tmp_path, patch, on_offer=GO_VERSION, generate="exit 1")
        install(paths)
    monkeypatch.setenv("PATH", "/nowhere")
    again = install_runsc(paths, report=print)
    assert (again.source, again.runsc.build) == (Source.EXISTING, GO_VERSION)


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        (
            {"on_offer": "none", "newest": "v0.0.0-20240101000000-0123456789ab"},
            "on offer is v0.0.0-20240101000000-0123456789ab, older than 20260406",
        ),
        ({"on_offer": "none", "newest": "-flag"}, "named '-flag' as a version"),
        ({"on_offer": GO_VERSION, "version": "go1.25.0"}, "GOTOOLCHAIN=local"),
        (
            {"on_offer": GO_VERSION, "build": "echo compiling; echo no space left >&2; exit 1"},
            "building runsc failed: no space left",
        ),
        ({"on_offer": GO_VERSION, "build": "true"}, "runsc does not exist"),
    ],
)
def test_failures_leave_nothing_and_say_why(
    tmp_path: Path,
    paths: Paths,
    monkeypatch: pytest.MonkeyPatch,
    kwargs: dict[str, str],
    says: str,
) -> None:
    fake_go(tmp_path, monkeypatch, **kwargs)
    with pytest.raises(ConfigError, match=says):
        install(paths)
    assert {entry.name for entry in paths.data.iterdir()} == {".install.lock"}


def test_no_go_at_all(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("torpor.runsc.install_go._USUAL_GO", Path("/nowhere/go"))
    with pytest.raises(ConfigError, match="no Go on this machine"):
        install(paths)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_build_leaves_nothing(
    tmp_path: Path, paths: Paths, monkeypatch: pytest.MonkeyPatch, signum: int, code: int
) -> None:
    pids = tmp_path / "pids"
    build = f"sleep 60 & echo $! $$ > {pids}.new; mv {pids}.new {pids}; wait"
    fake_go(tmp_path, monkeypatch, on_offer=GO_VERSION, build=build)
    monkeypatch.setenv("TORPOR_HOME", str(tmp_path / "home"))
    argv = [sys.executable, "-m", "torpor", "install-runsc", "--from", "go"]
    with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as running:
        deadline = time.monotonic() + 20
        while not pids.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        running.send_signal(signum)
        assert running.wait(20) == code
    started, ends_at = pids.read_text().split(), time.monotonic() + 10
    while any(map(is_alive, started)):  # all are killed, and only their leader is waited for
        assert time.monotonic() < ends_at
        time.sleep(0.02)
    assert {entry.name for entry in paths.data.iterdir()} == {".install.lock"}


def is_alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
