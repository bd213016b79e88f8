"""Whether a real runsc has its seccomp programs compiled, and whether its label tells the truth."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from torpor.runsc.smoke import warn_without_filters
from torpor.runsc.version import FILTERS_SUFFIX, inspect_runsc

from tests.home import find_runsc


@pytest.mark.runsc
def test_the_label_says_whether_the_programs_are_compiled() -> None:
    found = find_runsc()
    if found is None:
        if os.environ.get("REQUIRE_RUNSC"):
            pytest.fail("no runsc: run `torpor install-runsc` or set TORPOR_TEST_RUNSC")
        pytest.skip("no runsc")
    build = inspect_runsc(Path(found)).build
    if build.startswith("release-"):
        pytest.skip("an official release has them without saying so")
    lines: list[str] = []
    warn_without_filters(Path(found), lines.append, own_namespace=os.geteuid() != 0)
    assert (lines == []) == (FILTERS_SUFFIX in build), lines


def test_where_no_sandbox_starts_it_says_that_it_could_not_be_seen(tmp_path: Path) -> None:
    broken = tmp_path / "runsc"
    broken.write_text("#!/bin/sh\necho no user namespaces here >&2; exit 1\n")
    broken.chmod(0o755)
    lines: list[str] = []
    warn_without_filters(broken, lines.append, own_namespace=False)
    assert len(lines) == 1
    assert "could not be seen: " in lines[0]
    assert "no user namespaces here" in lines[0]
