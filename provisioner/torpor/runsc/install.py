"""Get a runsc that is good enough: try one source after the other, and say plainly what happened.

The order is that of trust and cost: what is there already; gVisor's own release; a build from its
Go module; the distribution's package.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from torpor.errors import ConfigError
from torpor.paths import Paths
from torpor.runsc.install_distribution import install_package
from torpor.runsc.install_go import build_with_go
from torpor.runsc.install_release import BASE_URL, fetch_release
from torpor.runsc.install_staging import Report, SourceUnusable, place, staging
from torpor.runsc.version import GO_VERSION, RELEASE, Runsc, find_runsc, inspect_runsc


class Source(Enum):
    """Where a runsc can come from; the values are what ``--from`` takes."""

    EXISTING = "existing"
    RELEASE = "release"
    GO = "go"
    DISTRIBUTION = "distribution"


ORDER = tuple(Source)


@dataclass(frozen=True, slots=True)
class Options:
    """What an install may be told."""

    override: str | None = None
    """The runsc that the configuration names; counts as the existing one."""
    allow_old: bool = False
    release_url: str = BASE_URL
    release: str = RELEASE
    go_version: str = GO_VERSION


@dataclass(frozen=True, slots=True)
class Attempt:
    source: Source
    outcome: str
    """``ok``, or one line on why not."""


@dataclass(frozen=True, slots=True)
class Installed:
    """A runsc, where it came from, and what was tried before."""

    runsc: Runsc
    source: Source
    tried: tuple[Attempt, ...]

    def to_json(self) -> dict[str, Any]:
        tried = [{"source": one.source.value, "outcome": one.outcome} for one in self.tried]
        return {"runsc": self.runsc.to_json(), "source": self.source.value, "tried": tried}


def install_runsc(
    paths: Paths,
    *,
    report: Report,
    sources: Sequence[Source] = ORDER,
    options: Options | None = None,
) -> Installed:
    """Give a runsc from the first of ``sources`` that has one.

    Twice is fine. Interrupted or failed, the runsc that was in use before still is. With a single
    source the caller insists: it is used also when it is there already, and the distribution's
    package also when it is too old (the result is then not ``ok``).

    Raises:
        ConfigError: no source had one; the message tells of each.
    """
    options = options or Options()
    insists = len(sources) == 1
    tried: list[Attempt] = []
    for source in sources:
        try:
            runsc = _install_from(source, paths, report, options, insists)
        except (SourceUnusable, OSError) as exc:
            tried.append(Attempt(source, str(exc)))
            following = "" if source is sources[-1] else "; trying the next source"
            report(f"{source.value}: {exc}{following}")
        else:
            tried.append(Attempt(source, "ok"))
            return Installed(runsc, source, tuple(tried))
    reasons = "; ".join(f"{one.source.value}: {one.outcome}" for one in tried)
    raise ConfigError(
        f"no usable runsc could be installed ({reasons})",
        hint="repeat with a connection to gVisor's release server or with Go 1.26.3 or newer,"
        " or put a runsc of your own on PATH",
    )


def _install_from(
    source: Source, paths: Paths, report: Report, options: Options, insists: bool
) -> Runsc:
    if source is Source.EXISTING:
        found = find_runsc(paths, options.override, allow_old=options.allow_old)
        if not found.ok:
            raise SourceUnusable(found.reason)
        return found
    with staging(paths, report) as folder:
        if source is Source.DISTRIBUTION:
            accept_old = insists or options.allow_old
            program = install_package(folder, report=report, accept_old=accept_old)
            return inspect_runsc(program, allow_old=options.allow_old)
        unpacked = _unpacked(source, folder, report, options)
        return place(unpacked, paths, allow_old=options.allow_old)


def _unpacked(source: Source, folder: Path, report: Report, options: Options) -> Path:
    if source is Source.GO:
        return build_with_go(folder, report=report, version=options.go_version)
    url, release = options.release_url, options.release
    return fetch_release(folder, base_url=url, release=release, report=report)
