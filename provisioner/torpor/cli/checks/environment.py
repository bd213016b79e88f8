"""The Python environment and what is configured in it."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import cache_from_source, find_spec
from pathlib import Path

from torpor.cli.checks import Check, State
from torpor.cli.twins import PROVISIONER, provisioner_of
from torpor.config import Settings, load_settings
from torpor.errors import ConfigError
from torpor.paths import Paths

_WARM = ("ipykernel", "IPython", "zmq", "traitlets", "tornado", "jupyter_client")
"""What a Python kernel imports before it answers."""


def check_configuration(paths: Paths) -> tuple[Check, Settings | None]:
    """Can the configuration be read; give it too."""
    try:
        settings = load_settings(paths)
    except ConfigError as exc:
        fix = exc.hint or f"repair or remove it in {paths.config}"
        return Check("configuration", State.FAIL, exc.message, fix), None
    count = len(settings.templates)
    found = f"{count} template{'s' if count != 1 else ''}, default {settings.default_template!r}"
    return Check("configuration", State.OK, found), settings


def check_python() -> Check:
    """Which Python is this."""
    return Check("python", State.OK, f"{platform.python_version()} at {sys.executable}")


def check_pyzmq() -> Check:
    """Is pyzmq there: bridge and guest need it, and CURVE where a server asks for encryption."""
    try:
        import zmq
    except ImportError as exc:
        return Check("pyzmq", State.FAIL, f"cannot be imported: {exc}", "`pip install pyzmq`")
    found = f"{zmq.__version__} with libzmq {zmq.zmq_version()}"
    if not zmq.has("curve"):
        fix = "`pip install --force-reinstall pyzmq` (its wheels have it)"
        return Check("pyzmq", State.WARN, f"{found}, without CURVE encryption", fix)
    return Check("pyzmq", State.OK, found)


def check_ipykernel() -> Check:
    """Is there a Python kernel in this environment."""
    try:
        return Check("python kernel", State.OK, f"ipykernel {version('ipykernel')}")
    except PackageNotFoundError:
        fix = "`pip install ipykernel`, unless your kernels are in other environments"
        return Check("python kernel", State.WARN, "no ipykernel in this environment", fix)


def check_byte_code() -> Check:
    """Is what a kernel imports compiled: sandboxes see it read-only and cannot do it themselves."""
    folders = [Path(os.path.dirname(os.__file__))]
    for name in _WARM:
        spec = find_spec(name)
        if spec is not None and spec.origin:
            folders.append(Path(spec.origin).parent)
    sources = [source for folder in folders for source in folder.glob("*.py")]
    missing = [source for source in sources if not Path(cache_from_source(str(source))).exists()]
    found = f"{len(sources) - len(missing)} of {len(sources)} modules looked at are compiled"
    if len(missing) * 20 > len(sources):
        where = " ".join(sorted({str(source.parent) for source in missing}))
        fix = f"kernels start 2 s later without: `{sys.executable} -m compileall -q {where}`"
        return Check("byte code", State.WARN, found, fix)
    return Check("byte code", State.OK, found)


def check_kernelspecs() -> Check:
    """Is there a kernel that servers and clients can choose to be sandboxed."""
    from jupyter_client.kernelspec import KernelSpecManager

    specs = KernelSpecManager().get_all_specs()
    twins = [name for name, one in specs.items() if provisioner_of(one["spec"]) == PROVISIONER]
    if not twins:
        fix = "`torpor kernelspec install`"
        return Check("kernelspecs", State.WARN, "no sandboxed kernel is installed", fix)
    return Check("kernelspecs", State.OK, ", ".join(sorted(twins)))
