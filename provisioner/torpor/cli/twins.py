"""Sandboxed twins of kernelspecs: the same kernel, started by our provisioner. Pure.

The twin of ``python3`` is ``python3-torpor``, "Python 3 (gVisor)". Its kernel.json is the source's
with this added::

    "metadata": {
      "kernel_provisioner": {
        "provisioner_name": "torpor-provisioner",
        "config": {"template": "default"}
      },
      "supported_encryption": ["curve"]
    }

``supported_encryption`` holds for every kernel, because clients talk to the bridge, which can do
CURVE. ``interrupt_mode`` stays what the source says: both ways work, a signal through the guest
and a message through the bridge, and only the source knows which one its kernel understands.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

from torpor.errors import ConfigError

PROVISIONER = "torpor-provisioner"
SUFFIX = "-torpor"
_NAME = re.compile(r"[a-z0-9._-]+", re.IGNORECASE)
_PYTHON = re.compile(r"python(3(\.\d+)?)?")


def twin_name(source: str) -> str:
    """Give the name of the twin of kernelspec ``source``."""
    return f"{source}{SUFFIX}"


def twin_display_name(source: str, *, template: str | None) -> str:
    """Give an honest name: "Python 3 (ipykernel)" becomes "Python 3 (gVisor)".

    A template other than the default is named too: "Python 3 (gVisor, big)".
    """
    where = "gVisor" if template is None else f"gVisor, {template}"
    return f"{source.removesuffix(' (ipykernel)')} ({where})"


def twin_of(
    spec: Mapping[str, Any],
    *,
    template: str | None,
    python: str | None = None,
    display_name: str | None = None,
) -> dict[str, Any]:
    """Give the kernel.json of the twin of ``spec``.

    Args:
        template: the template to start from; None: the configured default.
        python: what a bare ``python`` in argv means. Needed where the twin is installed outside of
            its source's environment: each server puts its own interpreter there.
        display_name: instead of the derived one.
    """
    twin = copy.deepcopy(dict(spec))
    argv = list(twin.get("argv") or [])
    if not argv:
        raise ConfigError("this kernelspec has no argv: it can only be run by its own provisioner")
    if python is not None and _PYTHON.fullmatch(argv[0]):
        argv[0] = python
    given = str(spec.get("display_name") or "kernel")
    metadata = dict(twin.get("metadata") or {})
    config = {} if template is None else {"template": template}
    metadata["kernel_provisioner"] = {"provisioner_name": PROVISIONER, "config": config}
    metadata["supported_encryption"] = ["curve"]
    twin |= {
        "argv": argv,
        "display_name": display_name or twin_display_name(given, template=template),
        "metadata": metadata,
    }
    return twin


def provisioner_of(spec: Mapping[str, Any]) -> str | None:
    """Give the provisioner that a kernelspec names; None where it leaves that to the server."""
    metadata = spec.get("metadata")
    stanza = metadata.get("kernel_provisioner") if isinstance(metadata, Mapping) else None
    name = stanza.get("provisioner_name") if isinstance(stanza, Mapping) else None
    return str(name) if name else None


def checked_name(name: str) -> str:
    """Give ``name``, in lower case as Jupyter keeps it. Raises ConfigError when Jupyter refuses it."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} is no usable kernelspec name", hint="letters, digits, dots, - and _ only"
        )
    return name.lower()
