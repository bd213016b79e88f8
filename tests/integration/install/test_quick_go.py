"""What the changes to gVisor's source do, in Go tests that are run within a copy that has them.

The tests are in ``quick_go``, one file for each package that is changed. Go builds what these need
with the flags with which runsc is built, so that it takes it from its cache where that is done.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from torpor.runsc.install_go_filters import copy_source
from torpor.runsc.install_go_quick import make_quick

from tests.integration.install.test_quick import module_folder

# Without a cache: it is less than one with it.
pytestmark = pytest.mark.timeout(600)

TESTS = Path(__file__).parent / "quick_go"
PACKAGES = {
    "state": "pkg/state",
    "pgalloc": "pkg/sentry/pgalloc",
    "stateio": "pkg/sentry/state/stateio",
    "systrap": "pkg/sentry/platform/systrap",
    "seccheck": "pkg/sentry/seccheck",
    "time": "pkg/sentry/time",
    "cpuid": "pkg/cpuid",
    "umount": "pkg/torpor/umount",
}
WRITER = "TestAnImageOfTheUnchangedSource"


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give a copy of the module with the changes, the tests, and images from before the changes."""
    module = module_folder()
    copy = tmp_path_factory.mktemp("quick") / "source"
    try:
        copy_source(module, copy)
        (copy / "images").mkdir()
        for name, package in PACKAGES.items():
            (copy / package).mkdir(exist_ok=True, parents=True)
            shutil.copyfile(TESTS / f"{name}_test.go", copy / package / "torpor_test.go")
        wrote = go_test(copy, PACKAGES["state"], f"-run=^{WRITER}$", TORPOR_WRITE="1")
        assert f"--- PASS: {WRITER}" in wrote
        make_quick(copy)
        yield copy
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def go_test(copy: Path, package: str, *more: str, **env: str) -> str:
    """Give what the tests of a package say."""
    flags = ["-trimpath", "-buildvcs=false", "-vet=off", "-count=1", "-timeout=60s", "-v"]
    # How many processors there are is not for tests to say, unless the linker looks away.
    flags += ["-ldflags=-checklinkname=0"]
    ran = subprocess.run(
        ["go", "-C", str(copy), "test", *flags, *more, f"./{package}"],
        env={
            **os.environ,
            "CGO_ENABLED": "0",
            "GOWORK": "off",
            "TMPDIR": str(copy.parent),
            "TORPOR_IMAGES": str(copy / "images"),
            **env,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=580,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout
    return ran.stdout


@pytest.mark.parametrize("name", PACKAGES)
def test_in_go(changed: Path, name: str) -> None:
    said = go_test(changed, PACKAGES[name])
    tests = re.findall(
        r"^func (Test(?!Main\b)\w+)", (TESTS / f"{name}_test.go").read_text(), re.MULTILINE
    )
    assert tests
    assert sorted(re.findall(r"^--- PASS: (\w+)", said, re.MULTILINE)) == sorted(tests)
