"""Which runsc, which build, is it good enough."""

from __future__ import annotations

from pathlib import Path

import pytest
from torpor.errors import ConfigError
from torpor.paths import Paths, resolve_paths
from torpor.runsc.version import (
    FILTERS_SUFFIX,
    FLOOR,
    GO_VERSION,
    RELEASE,
    build_date,
    find_runsc,
    judge_build,
    parse_build,
    speaks_control,
)

RECORDED = Path(__file__).parents[2] / "recorded" / "runsc"
GOOD = "release-20260907.0"
OLD = "0.0~20240729.0"


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return resolve_paths({"TORPOR_HOME": str(tmp_path / "home")}, uid=1000, home=tmp_path)


def fake_runsc(path: Path, build: str = GOOD, *, script: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    body = script or f"echo 'runsc version {build}'\necho 'spec: 1.2.1'\n"
    path.write_text(f"#!/bin/sh\n{body}")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("recorded", "build", "date"),
    [
        ("version-go-20260905.txt", GO_VERSION, 20260905),
        ("version-debian-0.0~20221219.0-2.txt", "0.0~20221219.0", 20221219),
    ],
)
def test_recorded_output_is_understood(recorded: str, build: str, date: int) -> None:
    assert parse_build((RECORDED / recorded).read_text()) == build
    assert build_date(build) == date


@pytest.mark.parametrize(
    ("build", "date"),
    [
        (GOOD, 20260907),
        ("release-20260406.0", FLOOR),
        ("release-20260907.0-12-gabcdef012", 20260907),
        (GO_VERSION, 20260905),
        (GO_VERSION + FILTERS_SUFFIX, 20260905),
        ("torpor-20260905", 20260905),
        ("0.0~20240729.0-4~bpo12+2", 20240729),
        ("VERSION_MISSING", None),
        ("v1.2.3", None),
        ("my-20260905", None),
        ("release-202609050", None),
        ("", None),
    ],
)
def test_date_of_a_build(build: str, date: int | None) -> None:
    assert build_date(build) == date


@pytest.mark.parametrize(
    ("build", "known"),
    [
        (GO_VERSION, True),
        (GO_VERSION + FILTERS_SUFFIX, True),
        (GO_VERSION + "+anything", True),
        (GO_VERSION + "0", False),
        (GO_VERSION[:-1] + "8", False),
        ("v0.0.0-20260905035102-abcdefabcdef", False),
        (GOOD, False),
        ("release-20260905.0", False),
        ("torpor-20260905", False),
        ("0.0~20260905.0-2", False),
        (FILTERS_SUFFIX, False),
        ("", False),
    ],
)
def test_only_the_source_that_is_known_is_asked_directly(build: str, known: bool) -> None:
    assert speaks_control(build) is known


@pytest.mark.parametrize("output", ["", "runc version 1.1.12\n", "runsc version\n", "garbage"])
def test_other_programs_are_not_runsc(output: str) -> None:
    assert parse_build(output) is None


def test_the_pinned_builds_are_at_or_above_the_floor() -> None:
    for build in (f"release-{RELEASE}", GO_VERSION):
        assert judge_build(Path("/x/runsc"), build).ok


def test_too_old_is_refused_unless_allowed() -> None:
    refused = judge_build(Path("/x/runsc"), OLD)
    assert not refused.ok
    assert "20240729" in refused.reason
    assert "torpor install-runsc" in refused.hint
    with pytest.raises(ConfigError, match="older than 20260406"):
        refused.require()
    allowed = judge_build(Path("/x/runsc"), OLD, allow_old=True)
    assert allowed.ok
    assert allowed.reason == refused.reason
    assert allowed.require() == Path("/x/runsc")


def test_a_label_without_a_date_is_refused_even_when_old_builds_are_allowed() -> None:
    assert not judge_build(Path("/x/runsc"), "VERSION_MISSING", allow_old=True).ok


def test_none_found_says_what_to_do(paths: Paths, tmp_path: Path) -> None:
    found = find_runsc(paths, search_path=str(tmp_path))
    assert (found.ok, found.path) == (False, None)
    assert str(paths.runsc) in found.reason
    assert found.hint == "run `torpor install-runsc`"
    with pytest.raises(ConfigError, match="no runsc found"):
        found.require()


def test_ours_comes_before_the_one_on_path(paths: Paths, tmp_path: Path) -> None:
    on_path = fake_runsc(tmp_path / "bin" / "runsc")
    search = str(on_path.parent)
    assert find_runsc(paths, search_path=search).path == on_path
    ours = fake_runsc(paths.runsc)
    assert find_runsc(paths, search_path=search).path == ours


def test_a_good_one_on_path_is_better_than_an_old_one_of_ours(paths: Paths, tmp_path: Path) -> None:
    fake_runsc(paths.runsc, OLD)
    on_path = fake_runsc(tmp_path / "bin" / "runsc")
    assert find_runsc(paths, search_path=str(on_path.parent)).path == on_path
    assert find_runsc(paths, search_path="/nowhere").build == OLD


def test_the_override_is_the_only_one_looked_at(paths: Paths, tmp_path: Path) -> None:
    fake_runsc(paths.runsc)
    named = fake_runsc(tmp_path / "mine" / "runsc", OLD)
    assert find_runsc(paths, str(named)).ok is False
    assert find_runsc(paths, named, allow_old=True).path == named
    missing = find_runsc(paths, tmp_path / "nothing")
    assert not missing.ok
    assert "does not exist" in missing.reason


def test_the_path_is_that_of_the_real_file(paths: Paths) -> None:
    real = fake_runsc(paths.data / "gvisor" / GOOD / "runsc")
    paths.runsc.symlink_to(real)
    assert find_runsc(paths).path == real


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo hello", "it is no runsc"),
        ("exit 3", "--version failed"),
        ("kill -9 $$", "--version failed"),
    ],
)
def test_a_broken_one_is_named_with_its_fault(paths: Paths, script: str, reason: str) -> None:
    fake_runsc(paths.runsc, script=script)
    found = find_runsc(paths, search_path="/nowhere")
    assert not found.ok
    assert reason in found.reason
    assert found.hint


def test_one_that_may_not_be_executed(paths: Paths) -> None:
    fake_runsc(paths.runsc).chmod(0o644)
    found = find_runsc(paths, search_path="/nowhere")
    assert not found.ok
    assert "may not be executed" in found.reason
    assert "chmod" in found.hint
