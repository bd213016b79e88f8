"""Goldens and builds that failed as people read them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from math import ceil
from typing import Any

from torpor.cli.pool import KEY_CHARACTERS, NOT_RUNNING, OFF, SWITCH_ON, building_text, first_line
from torpor.cli.text import age, size, table
from torpor.golden.failures import Failure

_NONE = """no golden yet: one is built in the background after the first start of a kernel,
or now by `torpor golden build`"""
_REASON_LINES = 6


def with_clones(
    goldens: list[dict[str, Any]], shapes: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Give ``goldens``, each with the number of clones of it that wait (``torpor pool``)."""
    return [
        {
            **golden,
            "clones": sum(each["ready"] for each in shapes if each["golden"] == golden["key"]),
        }
        for golden in goldens
    ]


def goldens_text(document: Mapping[str, Any], now: datetime | None = None) -> str:
    """Give what ``torpor golden list`` prints."""
    if not document["running"]:
        return f"goldens are not known now: {NOT_RUNNING},\nor now with `torpor daemon start`"
    if not document["enabled"]:
        return f"{OFF}: no golden is used\n  to switch it on: {SWITCH_ON}"
    now, goldens, lines = now or datetime.now(UTC), document["goldens"], [_NONE]
    if goldens:
        headers = ["KEY", "KERNEL", "TEMPLATE", "SIZE", "AGE", "LAST-USED", "CLONES", "WARM-UP"]
        lines = [table(headers, [_row(golden, now) for golden in goldens])]
    lines += [building_text(document)]
    lines += [failure_text(failure, now) for failure in document["failures"]]
    return "\n".join(line for line in lines if line)


def failure_text(failure: Mapping[str, Any], now: datetime) -> str:
    """Give in words why a golden could not be built, and when it is tried again."""
    reason, in_a_row = str(failure["reason"]), int(failure["in_a_row"])
    left_s = Failure(reason, failure["at"], in_a_row).left_s(now.timestamp())
    times = "" if in_a_row == 1 else f" {in_a_row} times in a row"
    again = (
        f"next try in {_wait(left_s)}" if left_s else "the next start of such a kernel tries again"
    )
    key, more = failure["key"][:KEY_CHARACTERS], reason.strip().splitlines()[1:]
    told = f"the build for key {key} failed{times}: {first_line(reason)}; {again}"
    return "\n    ".join([told, *more[-_REASON_LINES:]])


def golden_text(golden: Mapping[str, Any], *, built: bool, now: datetime | None = None) -> str:
    """Give what ``torpor golden build`` prints: the golden, and what it took."""
    took = f"built in {golden['build_seconds']:.1f} s"
    if not built:
        took = f"there already ({took}, {age(golden['created_at'], now)} ago)"
    return (
        f"golden {golden['key'][:KEY_CHARACTERS]} of {golden['kernel_name'] or 'a kernel'}, "
        f"template {golden['template']}: {took}, {size(golden['size_bytes'])}, "
        f"warm-up: {warm_up_text(golden)}"
    )


def warm_up_text(golden: Mapping[str, Any]) -> str:
    """Give the modules that clones have imported already, and those that were not there."""
    missing = golden["warm_up_failed"]
    modules = [each.removesuffix("?") for each in golden["warm_up"]]
    there = ", ".join(each for each in modules if each not in missing) or "-"
    return f"{there} (not installed: {', '.join(missing)})" if missing else there


def _row(golden: Mapping[str, Any], now: datetime) -> list[str]:
    used = datetime.fromtimestamp(golden["last_used"], UTC).isoformat()
    return [
        golden["key"][:KEY_CHARACTERS],
        golden["kernel_name"] or "-",
        golden["template"],
        size(golden["size_bytes"]),
        age(golden["created_at"], now),
        age(used, now),
        str(golden["clones"]),
        warm_up_text(golden),
    ]


def _wait(seconds: float) -> str:
    return f"{ceil(seconds)} s" if seconds < 120 else f"{ceil(seconds / 60)} min"
