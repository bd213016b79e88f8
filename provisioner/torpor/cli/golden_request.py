"""From a kernelspec to the request for its golden, as a start from this shell would make it. Pure.

The provisioner sends the same argv and environment, so the golden has the key that it looks for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from string import Template
from typing import Any

from torpor.cli.twins import PROVISIONER, provisioner_of, twin_name
from torpor.errors import ConfigError
from torpor.kernel_request import explicit_env, kernel_argv

_DEFAULT_PROVISIONER = "JUPYTER_DEFAULT_PROVISIONER_NAME"
_INSTALL = "`torpor kernelspec install` adds a sandboxed twin of it"


def chosen_kernel(specs: Mapping[str, Any], name: str | None, environ: Mapping[str, str]) -> str:
    """Give the kernelspec to build for: ``name``, else the twin of python3, else the first sandboxed.

    Raises:
        ConfigError: there is none, or it does not run sandboxed.
    """
    default = environ.get(_DEFAULT_PROVISIONER)
    sandboxed = sorted(
        each
        for each, one in specs.items()
        if (provisioner_of(one["spec"]) or default) == PROVISIONER
    )
    installed = ", ".join(sorted(specs)) or "none"
    if name is None:
        if not sandboxed:
            raise ConfigError(
                "no sandboxed kernel is installed",
                hint=f"add some with `torpor kernelspec install`; installed kernels: {installed}",
            )
        usual = twin_name("python3")
        return usual if usual in sandboxed else sandboxed[0]
    if name not in specs:
        known = ", ".join(sandboxed) or f"none; others: {installed}"
        raise ConfigError(f"there is no kernel {name!r}", hint=f"sandboxed kernels: {known}")
    if name not in sandboxed:
        known = f"sandboxed kernels: {', '.join(sandboxed)}" if sandboxed else _INSTALL
        raise ConfigError(f"kernel {name!r} does not run sandboxed", hint=known)
    return name


def template_of_spec(spec: Mapping[str, Any]) -> str | None:
    """Give the template that a kernelspec names; None where it leaves that to the configuration."""
    stanza = (spec.get("metadata") or {}).get("kernel_provisioner") or {}
    return (stanza.get("config") or {}).get("template") or None


def golden_request(
    name: str,
    kernelspec: Mapping[str, Any],
    *,
    template: str | None,
    folder: str,
    environ: Mapping[str, str],
    allowed: Iterable[str],
    prefix: str,
    python: str,
) -> dict[str, Any]:
    """Give the request for the golden of ``kernelspec`` (``{"resource_dir", "spec"}``).

    Args:
        folder: where the kernel would be started: its cwd and its workspace.
        environ: this process's environment, of which ``allowed`` may go in by name or pattern.
        prefix, python: what ``{prefix}`` and a bare ``python`` in argv mean.
    """
    spec = kernelspec["spec"]
    own = spec.get("env") or {}
    # jupyter_client fills in ${NAME} in a kernelspec's variables from the environment.
    set_by_spec = {each: Template(text).safe_substitute(environ) for each, text in own.items()}
    fields = {"prefix": prefix, "resource_dir": kernelspec["resource_dir"]}
    env = {**environ, **set_by_spec}
    return {
        "template": template,
        "kernel_name": name,
        "argv": kernel_argv(spec["argv"], fields, python=python),
        "env": explicit_env(env, environ, spec_names=own, allowed=allowed),
        "cwd": folder,
        "workspace": folder,
    }
