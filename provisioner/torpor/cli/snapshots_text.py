"""What people see of snapshots. Pure."""

from __future__ import annotations

from typing import Any

from torpor.cli.text import age, size, table


def overview_text(snapshots: list[dict[str, Any]], store: dict[str, Any] | None) -> str:
    """Give what `torpor snapshots` shows."""
    if snapshots:
        headers = [
            "KERNEL",
            "GENERATION",
            "NAME",
            "KIND",
            "TEMPLATE",
            "SIZE",
            "WHERE",
            "STORED",
            "MADE",
        ]
        here = sum(each["bytes"] for each in snapshots if "disk" in each["on"])
        lines = [table(headers, [_row(each) for each in snapshots]), f"{size(here)} on this disk"]
        lines += [
            f"{each['kernel_id']} {each['generation']}: {each['trouble']}"
            for each in snapshots
            if each["trouble"]
        ]
    else:
        lines = ["no snapshots"]
    if store:
        sealed = "encrypted" if store["encrypted"] else "not encrypted"
        stored = sum(each["stored_bytes"] or 0 for each in snapshots)
        lines.append(f"store {store['url']} ({sealed}): {size(stored)}")
        if store["note"]:
            lines.append(f"  {store['note']}")
    return "\n".join(lines)


def where(each: dict[str, Any]) -> str:
    """Give where a snapshot is: disk, store, or both."""
    return " + ".join(each["on"])


def removal_question(rows: list[dict[str, Any]], place: str) -> str:
    """Ask whether these are to go, from ``place`` or, for "", from wherever they are."""
    kernels = len({each["kernel_id"] for each in rows})
    bytes_ = size(sum(each["bytes"] for each in rows))
    where_from = {"": ",", "disk": ", from this disk", "store": ", from the store"}[place]
    about = f"{len(rows)} snapshot(s) of {kernels} kernel(s), {bytes_}"
    lines: list[str] = []
    names = sorted({each["name"] for each in rows if each["name"]})
    if names:
        lines.append(f"Checkpoints among them: {', '.join(names)}.")
    if place != "disk" and any("store" in each["on"] and not each["has_kernel"] for each in rows):
        lines.append("A kernel of another machine that sleeps in one of them is lost.")
    return " ".join([*lines, f"Remove {about}{where_from} for good?"])


def _row(each: dict[str, Any]) -> list[str]:
    stored = each["stored_bytes"]
    return [
        each["kernel_id"] + ("" if each["has_kernel"] else " (no kernel any more)"),
        str(each["generation"]),
        each["name"] or "-",
        each["kernel_name"] or "-",
        each["template"] or "-",
        size(each["bytes"]),
        where(each),
        "-" if stored is None else size(stored),
        age(each["created_at"]),
    ]
