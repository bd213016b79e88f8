"""Run the test suites of other projects with ``JUPYTER_DEFAULT_PROVISIONER_NAME=torpor-provisioner``.

``python -m tests.upstream.run [SUITE ...] [--without]`` fetches the source release of the installed version
from the package index, runs its suite through Torpor and, with ``--without``, on the plain provisioner too,
and compares test by test. What passes there must pass here; ``EXCEPTIONS`` lists what cannot, with the
reason. Nothing of the suites is changed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import subprocess
import sys
import tarfile
import time
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

from tests.home import torpor_home

FOLDER = Path("build/upstream")
TEST_TIMEOUT_S = 30
"""For tornado's asynchronous tests: their 5 s are for kernels that nobody waits for, while our start
returns when the kernel has answered; and some of them start three, each twice."""
ASYNCIO = ("-o", "asyncio_default_fixture_loop_scope=function")


@dataclass(frozen=True, slots=True)
class Suite:
    """``select``: paths below the source release; ``exceptions``: test id part -> why it differs."""

    package: str
    select: tuple[str, ...]
    exceptions: dict[str, str]
    options: tuple[str, ...] = ASYNCIO


ITS_OWN_CLASS = "asserts that the provisioner is an instance of jupyter_client's LocalProvisioner"
JUPYTER_CLIENT_EXCEPTIONS = {
    "test_local_provisioner_pre_launch_generates_curve_keys_under_transport": ITS_OWN_CLASS,
    "test_local_provisioner_pre_launch_generates_curve_keys_over_ipc": ITS_OWN_CLASS,
    "test_existing[no_provisioner]": ITS_OWN_CLASS,
    "restarter_gives_up": (
        "its kernel fails at its first start, which jupyter_client's provisioner does not notice;"
        " ours raises the reason from start_kernel (a restart that fails is given up as there:"
        " test_a_kernel_that_cannot_be_restarted_is_given_up)"
    ),
}
MEET_OUTSIDE = (
    "its two kernels meet in a host folder that is no workspace of theirs, and whose name they"
    " inherit from the test's environment: keeping both from a kernel is what a sandbox is for"
)
NBCLIENT_EXCEPTIONS = {
    "test_async_parallel_notebooks": MEET_OUTSIDE,
    "test_parallel_notebooks": MEET_OUTSIDE,
}
IPYKERNEL_EXCEPTIONS = {
    "test_save_history": "the kernel writes to a temporary folder of the host, no workspace of its",
    "test_sys_path_profile_dir": "the kernel is to use an IPython profile in the host's home folder",
    "test_parent_header_and_ident": (
        "reads a private field, where the route of a message is one hop longer: the relay's name"
        " comes before the client's"
    ),
}
SUITES = (
    Suite("jupyter_client", ("tests",), JUPYTER_CLIENT_EXCEPTIONS, ("-p", "no:asyncio")),
    Suite("nbclient", ("tests",), NBCLIENT_EXCEPTIONS),
    Suite(
        "ipykernel",
        (
            "tests/test_async.py",
            "tests/test_debugger.py",
            "tests/test_kernel.py",
            "tests/test_message_spec.py",
            "tests/test_subshells.py",
        ),
        IPYKERNEL_EXCEPTIONS,
    ),
)


def fetch(suite: Suite) -> Path:
    """Give the folder of the unpacked source release of the installed version."""
    version = importlib.metadata.version(suite.package)
    folder = FOLDER / f"{suite.package}-{version}"
    if folder.is_dir():
        return folder
    FOLDER.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:"]
    command += ["--no-build-isolation", "-d", str(FOLDER), f"{suite.package}=={version}"]
    subprocess.run(command, check=True)
    with tarfile.open(FOLDER / f"{folder.name}.tar.gz") as archive:
        archive.extractall(FOLDER, filter="data")
    return folder


def run(suite: Suite, folder: Path, label: str) -> dict[str, str]:
    """Run the suite; give test id -> passed | failed | skipped."""
    report = (FOLDER / f"{suite.package}-{label}.xml").resolve()
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"]
    command += ["-p", "no:hypothesispytest", f"--junitxml={report}"]
    began = time.monotonic()
    log = FOLDER / f"{suite.package}-{label}.log"
    with log.open("wb") as out:
        subprocess.run(
            [*command, *suite.options, *suite.select],
            cwd=folder,
            env={
                **os.environ,
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "ASYNC_TEST_TIMEOUT": str(TEST_TIMEOUT_S),
            },
            stdout=out,
            stderr=subprocess.STDOUT,
            check=False,
        )
    results = parse(report)
    counts = {w: list(results.values()).count(w) for w in ("passed", "failed", "skipped")}
    print(
        f"{suite.package} {label}: {counts} in {time.monotonic() - began:.0f} s ({log})", flush=True
    )
    return results


def parse(report: Path) -> dict[str, str]:
    """Read a JUnit report: test id -> passed | failed | skipped."""
    results = {}
    for case in ET.parse(report).iter("testcase"):
        tags = {child.tag for child in case}
        bad = tags & {"failure", "error"}
        outcome = "failed" if bad else "skipped" if "skipped" in tags else "passed"
        results[f"{case.get('classname')}::{case.get('name')}"] = outcome
    return results


def judge(suite: Suite, with_us: dict[str, str], without: dict[str, str] | None) -> int:
    """Print every difference that is not an exception; give how many there are."""
    wrong = 0
    for test, outcome in sorted(with_us.items()):
        reason = next((why for part, why in suite.exceptions.items() if part in test), None)
        plain = without.get(test) if without else None
        if outcome == "failed" and plain == "failed":
            print(f"  fails without Torpor too: {test}")
        elif outcome == "failed" and reason:
            print(f"  exception: {test}: {reason}")
        elif outcome == "failed" or (plain == "passed" and outcome != "passed" and not reason):
            wrong += 1
            print(f"  DIFFERS: {test}: {outcome}, plain {plain or 'not run'}")
    if without:
        missing = set(without) - set(with_us)
        wrong += len(missing)
        print(
            f"  {len(missing)} tests did not run: {sorted(missing)[:5]}" if missing else "  all ran"
        )
    return wrong


def main() -> int:
    """Exit 0 when no suite differs beyond its listed exceptions."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suites", nargs="*", default=[suite.package for suite in SUITES])
    parser.add_argument("--without", action="store_true", help="run on the plain provisioner too")
    options = parser.parse_args()
    wrong = 0
    for suite in SUITES:
        if suite.package not in options.suites:
            continue
        folder = fetch(suite)
        without = run(suite, folder, "plain") if options.without else None
        with torpor_home() as home:
            os.environ.pop("JUPYTER_PATH")
            os.environ["JUPYTER_DEFAULT_PROVISIONER_NAME"] = "torpor-provisioner"
            with_us = run(suite, folder, "torpor")
            (FOLDER / f"{suite.package}-torpord.log").write_bytes(
                b"".join(path.read_bytes() for path in sorted((home / "state").glob("*.log")))
            )
        wrong += judge(suite, with_us, without)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
