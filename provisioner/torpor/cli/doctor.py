"""``torpor doctor``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from torpor.cli.checks import Check, State, environment, host, idmap, runsc
from torpor.cli.checks.daemon import check_daemon
from torpor.cli.checks.store import check_store
from torpor.cli.command import Command

_COLOURS = {State.OK: "32", State.WARN: "33", State.FAIL: "31"}
_NAME_WIDTH = 17


class DoctorCommand(Command):
    name = "torpor doctor"
    description = """Check this machine and say what to fix.

    ok: as it should be. warn: kernels run, but something is missing. fail: no kernel can run before
    it is fixed. Exit code: 1 if anything fails, else 0."""

    def run(self) -> int:
        checks = []
        for check in self._checks():
            checks.append(check)
            if not self.json:
                print(_text(check, colour=_wants_colour()), flush=True)
        failed = [check for check in checks if check.state is State.FAIL]
        document = {"ok": not failed, "checks": [check.to_json() for check in checks]}
        if self.json:
            self.show(document, "")
        else:
            print(_verdict(checks))
        return 1 if failed else 0

    def _checks(self) -> Iterator[Check]:
        """Give the checks one by one, each when its answer is there."""
        paths = self.paths
        yield host.check_kernel()
        yield host.check_tracing()
        yield host.check_namespaces()
        yield host.check_cgroups()
        yield idmap.check_idmap(Path.cwd())
        yield host.check_disk(paths)
        yield host.check_memory()
        yield host.check_folders(paths)
        configured, settings = environment.check_configuration(paths)
        yield configured
        found = runsc.find(paths, settings)
        yield runsc.check_runsc(found)
        yield runsc.check_sandbox(found)
        yield environment.check_python()
        yield environment.check_pyzmq()
        yield environment.check_ipykernel()
        yield environment.check_byte_code()
        yield environment.check_kernelspecs()
        yield check_store(settings, paths.store_marks if paths.state.is_dir() else None)
        yield check_daemon(paths)


def _text(check: Check, *, colour: bool) -> str:
    state = f"{check.state.value:4}"
    if colour:
        state = f"\033[{_COLOURS[check.state]}m{state}\033[0m"
    fix = f"\n     {'':{_NAME_WIDTH}} fix: {check.fix}" if check.state is not State.OK else ""
    return f"{state} {check.name:{_NAME_WIDTH}} {check.found}{fix}"


def _verdict(checks: list[Check]) -> str:
    counts = {state: sum(check.state is state for check in checks) for state in State}
    if counts[State.FAIL]:
        return f"\n{counts[State.FAIL]} to fix before a kernel can run"
    if counts[State.WARN]:
        return f"\nkernels can run; {counts[State.WARN]} could be better"
    return "\nall is well"


def _wants_colour() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")
