"""A static runsc built from gVisor's Go module with the Go tools of this machine.

Static (CGO off) because a dynamic one cannot re-execute itself inside its empty chroot, labelled
with its module version because an unlabelled build calls itself VERSION_MISSING and then nothing
can tell whether a checkpoint fits it. With its seccomp programs if they can be had (see
`torpor.runsc.install_go_filters`), else as the module is.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from torpor.runsc.install_go_filters import build_with_filters, linker_flags
from torpor.runsc.install_staging import Report, SourceUnusable, last_line, run_reporting
from torpor.runsc.smoke import warn_without_filters
from torpor.runsc.version import FLOOR, GO_MODULE, GO_VERSION, build_date

GO_FLOOR = (1, 26, 3)
"""What the go.mod of ``GO_VERSION`` asks for."""

_SWITCHES_SINCE = (1, 21)  # the first Go that can fetch a newer toolchain by itself
_USUAL_GO = Path("/usr/local/go/bin/go")
_LIST_TIMEOUT_S = 90.0
_BUILD_TIMEOUT_S = 1800.0
_MODULE_VERSION = re.compile(r"v\d+\.\d+\.\d+[0-9A-Za-z.+-]*")


def build_with_go(folder: Path, *, report: Report, version: str = GO_VERSION) -> Path:
    """Give the folder, inside ``folder``, that holds the built runsc. Takes one to three minutes.

    Where the module proxy refuses ``version`` the newest on offer is built instead, and said so.
    Raises SourceUnusable: no Go, too old a Go, nothing on offer, or the build failed.
    """
    go = _find_go()
    env = dict(os.environ, CGO_ENABLED="0", GOBIN=str(folder / "go"))
    asked = ("GOVERSION", "GOTOOLCHAIN")
    local = dict(zip(asked, _ask(go, ["env", *asked], env, folder).splitlines(), strict=False))
    env.update(toolchain_env(local.get("GOVERSION", ""), local.get("GOTOOLCHAIN", "")))
    chosen = _version_on_offer(go, version, env, folder, report)
    report(f"building runsc {chosen} with {local['GOVERSION']}: one to three minutes")
    (folder / "go").mkdir()
    try:
        ask = partial(_ask, go, env=env, folder=folder)
        build_with_filters(go, chosen, env, folder, ask=ask, report=report)
    except (SourceUnusable, OSError) as exc:
        report(f"building it without its seccomp filters, so each start takes longer: {exc}")
        _build_plainly(go, chosen, env, folder, report)
    else:
        program, needs_namespace = folder / "go" / "runsc", os.geteuid() != 0
        warn_without_filters(program, report, own_namespace=needs_namespace)
    return folder / "go"


def _build_plainly(
    go: str, version: str, env: Mapping[str, str], folder: Path, report: Report
) -> None:
    run_reporting(
        go_install_argv(go, version),
        env=env,
        log=folder / "go.log",
        timeout_s=_BUILD_TIMEOUT_S,
        report=report,
        what="building runsc",
    )


def go_install_argv(go: str, version: str) -> list[str]:
    """Give the command that builds runsc into GOBIN. Pure."""
    flags = ["-v", "-trimpath", "-ldflags", linker_flags(version)]
    return [go, "install", *flags, f"{GO_MODULE}/runsc@{version}"]


def toolchain_env(go_version: str, gotoolchain: str) -> Mapping[str, str]:
    """Give what to add to the environment so that Go is new enough. Pure.

    Args:
        go_version: as ``go env GOVERSION`` prints it, ``go1.26.8`` for example.
        gotoolchain: as ``go env GOTOOLCHAIN`` prints it.
    """
    found = re.match(r"go(\d+)\.(\d+)(?:\.(\d+))?", go_version)
    if not found:
        raise SourceUnusable(f"`go env GOVERSION` printed {go_version!r}, which is no Go version")
    have = tuple(int(part or 0) for part in found.groups())
    if have >= GO_FLOOR:
        return {}
    need = ".".join(map(str, GO_FLOOR))
    if have < _SWITCHES_SINCE:
        raise SourceUnusable(f"Go {need} or newer is needed, this is {go_version}: install it")
    if gotoolchain.startswith("local"):
        raise SourceUnusable(
            f"Go {need} or newer is needed, this is {go_version}, and GOTOOLCHAIN=local keeps it"
            " from fetching one: install a newer Go or set GOTOOLCHAIN=auto"
        )
    return {"GOTOOLCHAIN": f"go{need}+auto"}


def _find_go() -> str:
    go = shutil.which("go") or (str(_USUAL_GO) if os.access(_USUAL_GO, os.X_OK) else None)
    if go is None:
        raise SourceUnusable("no Go on this machine: `go` is not on PATH")
    return go


def _version_on_offer(
    go: str, wanted: str, env: Mapping[str, str], folder: Path, report: Report
) -> str:
    """Give ``wanted`` if it can be had, else the newest version that can."""
    try:
        return _resolve(go, wanted, env, folder)
    except SourceUnusable as refused:
        newest = _resolve(go, "latest", env, folder)
        date = build_date(newest)
        if date is None or date < FLOOR:
            reason = f"the newest {GO_MODULE} on offer is {newest}, older than {FLOOR}"
            raise SourceUnusable(reason) from refused
        report(f"the pinned {wanted} is refused ({refused})")
        report(f"building {newest} instead, the newest on offer")
        return newest


def _resolve(go: str, query: str, env: Mapping[str, str], folder: Path) -> str:
    answer = _ask(go, ["list", "-m", "-f", "{{.Version}}", f"{GO_MODULE}@{query}"], env, folder)
    version = answer.strip()
    if not _MODULE_VERSION.fullmatch(version):
        raise SourceUnusable(f"`go list` named {version!r} as a version of {GO_MODULE}")
    return version


def _ask(go: str, arguments: list[str], env: Mapping[str, str], folder: Path) -> str:
    """Give what a quick go command prints, run outside of any module."""
    try:
        ran = subprocess.run(
            [go, *arguments],
            env=dict(env),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_LIST_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as exc:
        raise SourceUnusable(f"{go} {arguments[0]} failed: {exc}") from exc
    if ran.returncode != 0:
        raise SourceUnusable(_first_reason(ran.stderr))
    return ran.stdout


def _first_reason(stderr: str) -> str:
    """Give the line of Go's error that says why; its later lines are the server's small talk."""
    lines = [line for line in stderr.splitlines() if line.startswith("go: ")]
    reasons = [line for line in lines if "downloading" not in line]
    return (reasons[0] if reasons else last_line(stderr))[:300]
