"""The distribution's package, with stand-ins for apt that answer as the real ones were recorded to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from torpor.errors import ConfigError
from torpor.paths import Paths, resolve_paths
from torpor.runsc.install import Installed, Source, install_runsc

RECORDED = Path(__file__).parents[2] / "recorded" / "runsc" / "apt-policy-bookworm.txt"


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return resolve_paths({"TORPOR_HOME": str(tmp_path / "home")}, uid=0, home=tmp_path)


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with apt on it, and root's right to use it; gives the folder that packages land in."""
    folder = tmp_path / "bin"
    folder.mkdir()
    offer(folder, RECORDED.read_text())
    script(
        folder / "apt-get",
        f"""echo "$*" >> {folder}/asked
        [ "$1" = install ] || exit 0
        printf '#!/bin/sh\\necho runsc version 0.0~20221219.0\\n' > {folder}/runsc
        chmod 755 {folder}/runsc""",
    )
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return folder


def script(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def offer(folder: Path, policy: str) -> None:
    (folder / "policy").write_text(policy)
    script(folder / "apt-cache", f"cat {folder}/policy")


def install(paths: Paths, *sources: Source) -> tuple[Installed, list[str]]:
    lines: list[str] = []
    return install_runsc(paths, report=lines.append, sources=sources), lines


def test_who_insists_gets_it_with_a_plain_warning(paths: Paths, apt: Path) -> None:
    installed, lines = install(paths, Source.DISTRIBUTION)
    assert installed.runsc.path == apt / "runsc"
    assert not installed.runsc.ok
    assert "older than 20260406" in installed.runsc.reason
    assert any(line.startswith("warning: ") and "cannot hibernate" in line for line in lines)
    assert (apt / "asked").read_text() == "install --yes runsc\n"


def test_as_the_last_of_several_it_is_left_alone_when_it_is_too_old(
    paths: Paths, apt: Path
) -> None:
    with pytest.raises(ConfigError, match=r"20221219.* is older than 20260406.*: not installed"):
        install(paths, Source.EXISTING, Source.DISTRIBUTION)
    assert not (apt / "asked").exists()


def test_package_lists_are_fetched_where_there_are_none(paths: Paths, apt: Path) -> None:
    offer(apt, "")
    with pytest.raises(ConfigError, match="this distribution has no package runsc"):
        install(paths, Source.DISTRIBUTION)
    assert (apt / "asked").read_text() == "update\n"


def test_only_root_can(paths: Paths, apt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ConfigError, match="sudo apt-get install runsc"):
        install(paths, Source.DISTRIBUTION)


def test_a_failed_install_is_told_in_apts_words(paths: Paths, apt: Path) -> None:
    script(apt / "apt-get", "echo 'E: dpkg was interrupted' >&2; exit 100")
    with pytest.raises(ConfigError, match="E: dpkg was interrupted"):
        install(paths, Source.DISTRIBUTION)


def test_no_apt(paths: Paths, apt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match="no apt-get on this machine"):
        install(paths, Source.DISTRIBUTION)
