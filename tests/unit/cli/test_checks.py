"""What `torpor doctor` concludes from what it sees."""

from __future__ import annotations

from pathlib import Path

import pytest
from torpor.cli.checks import Check, State
from torpor.cli.checks.environment import check_configuration
from torpor.cli.checks.host import (
    check_disk,
    check_folders,
    check_kernel,
    check_memory,
    check_tracing,
    namespace_fix,
)
from torpor.cli.checks.runsc import check_runsc, check_sandbox
from torpor.cli.checks.store import check_store
from torpor.cli.doctor import _text, _verdict
from torpor.config import Settings
from torpor.paths import Paths, resolve_paths
from torpor.runsc.smoke import smoke_argv
from torpor.runsc.version import Runsc
from torpor.snapshot.remote.configured import parse_store
from torpor.template import Template

GIB = 1 << 30


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return resolve_paths({"TORPOR_HOME": str(tmp_path / "home")}, uid=1000, home=tmp_path)


@pytest.mark.parametrize(
    ("release", "machine", "state"),
    [
        ("6.18.44-generic", "x86_64", State.OK),
        ("5.3.0", "aarch64", State.OK),
        ("5.2.99", "x86_64", State.FAIL),
        ("4.9.0-12-amd64", "x86_64", State.FAIL),
        ("6.1.0", "riscv64", State.FAIL),
    ],
)
def test_kernel(release: str, machine: str, state: State) -> None:
    check = check_kernel(release, machine)
    assert check.state is state
    assert bool(check.fix) == (state is not State.OK)


@pytest.mark.parametrize(
    ("scope", "state"), [("", State.OK), ("0", State.OK), ("1", State.OK), ("3", State.FAIL)]
)
def test_tracing(scope: str, state: State) -> None:
    assert check_tracing(scope).state is state


@pytest.mark.parametrize(
    ("free", "state"), [(10 * GIB, State.OK), (GIB, State.WARN), (GIB // 8, State.FAIL)]
)
def test_disk_and_memory(paths: Paths, free: int, state: State) -> None:
    assert check_disk(paths, free).state is state
    kib = free // 8 * 4 // 1024
    check = check_memory(f"MemTotal: 1 kB\nMemAvailable:  {kib} kB\n")
    assert check.state is state
    assert check.fix


def test_memory_that_nobody_tells() -> None:
    assert check_memory("nothing").state is State.WARN


@pytest.mark.parametrize(
    ("sysctls", "says"),
    [
        ({"user.max_user_namespaces": "0"}, "max_user_namespaces=15000"),
        ({"kernel.unprivileged_userns_clone": "0"}, "unprivileged_userns_clone=1"),
        ({"kernel.apparmor_restrict_unprivileged_userns": "1"}, "AppArmor"),
        ({"user.max_user_namespaces": "100"}, "container or security policy"),
        ({}, "container or security policy"),
    ],
)
def test_every_reason_for_missing_namespaces_has_its_fix(
    sysctls: dict[str, str], says: str
) -> None:
    assert says in namespace_fix(sysctls)


def test_folders(paths: Paths, tmp_path: Path) -> None:
    assert check_folders(paths).state is State.OK
    long = resolve_paths({"TORPOR_HOME": f"/{'x' * 100}"}, uid=0, home=tmp_path)
    assert "too long for sockets" in check_folders(long).found
    (tmp_path / "home").write_text("a file")
    check = check_folders(paths)
    assert check.state is State.FAIL
    assert check.fix


def test_runsc() -> None:
    good = Runsc(Path("/x/runsc"), "release-20260907.0", True)
    assert check_runsc(good).state is State.OK
    allowed = Runsc(Path("/x/runsc"), "0.0~2", True, "old", "newer")
    assert check_runsc(allowed) == Check("runsc", State.WARN, "old", "newer")
    missing = Runsc(None, "", False, "none found", "run x")
    assert check_runsc(missing) == Check("runsc", State.FAIL, "none found", "run x")
    assert check_sandbox(missing).state is State.FAIL


def test_a_sandbox_that_does_not_start_is_told_in_runscs_words(tmp_path: Path) -> None:
    broken = tmp_path / "runsc"
    broken.write_text("#!/bin/sh\necho the platform is broken >&2\nexit 128\n")
    broken.chmod(0o755)
    check = check_sandbox(Runsc(broken, "release-20260907.0", True))
    assert check.state is State.FAIL
    assert "the platform is broken" in check.found
    assert check.fix


def test_a_program_that_only_pretends_is_found_out(tmp_path: Path) -> None:
    fake = tmp_path / "runsc"
    fake.write_text("#!/bin/sh\ncat /proc/version\n")
    fake.chmod(0o755)
    check = check_sandbox(Runsc(fake, "release-20260907.0", True))
    assert check.state is State.FAIL
    assert "host's own kernel" in check.found


def test_smoke_argv() -> None:
    argv = smoke_argv(Path("/r"), Path("/root"), own_namespace=True)
    assert argv[:5] == ["unshare", "--user", "--map-root-user", "--mount", "--"]
    assert "--network=none" in argv
    assert smoke_argv(Path("/r"), Path("/root"), own_namespace=False)[0] == "/r"


def test_a_broken_configuration_is_a_failure(paths: Paths) -> None:
    assert check_configuration(paths)[0].state is State.OK
    paths.config.mkdir(parents=True)
    (paths.config / "torpor_config.py").write_text("c.Torpor.templates = {'x': {'nope': 1}}")
    check, settings = check_configuration(paths)
    assert check.state is State.FAIL
    assert settings is None
    assert "nope" in check.found
    assert check.fix


def test_text_and_verdict() -> None:
    good, bad = Check("a", State.OK, "fine"), Check("b", State.FAIL, "broken", "mend it")
    assert "fix" not in _text(good, colour=False)
    assert _text(bad, colour=False).splitlines()[1].endswith("fix: mend it")
    assert "\033[31m" in _text(bad, colour=True)
    assert _verdict([good]).strip() == "all is well"
    assert "1 to fix" in _verdict([good, bad])
    assert "1 could be better" in _verdict([Check("c", State.WARN, "so", "so")])


def test_no_store_is_fine() -> None:
    assert check_store(None).state is State.OK
    assert "none configured" in check_store(Settings({"default": Template()})).found


def test_a_store_that_can_be_used_and_one_that_cannot(tmp_path: Path) -> None:
    there = parse_store({"url": f"file://{tmp_path}/s"})
    found = check_store(Settings({}, store=there))
    assert found == Check(
        "snapshot store",
        State.OK,
        f"file://{tmp_path}/s, writable, not encrypted, local: keep",
    )
    assert list((tmp_path / "s").iterdir()) == []
    (tmp_path / "file").write_text("")
    for body, said in (
        ({"url": f"file://{tmp_path}/file/s"}, "failed 1 times at writing"),
        ({"url": f"file://{tmp_path}/s", "key_file": "/no/key"}, "cannot be read"),
        ({"url": "nosuchthing://x"}, "nosuchthing"),
    ):
        found = check_store(Settings({}, store=parse_store(body)))
        assert (found.state, said in found.found) == (State.WARN, True), found
        assert found.fix
