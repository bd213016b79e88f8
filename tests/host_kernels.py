"""The environment of kernels that tests run on the host itself, without a sandbox."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

_IPYTHON = tempfile.mkdtemp(prefix="torpor-ipython-")
atexit.register(shutil.rmtree, _IPYTHON, ignore_errors=True)


def host_env(**more: str) -> dict[str, str]:
    """Give the whole environment of such a kernel. IPython leaves nothing in its home."""
    return {"PATH": os.environ["PATH"], "HOME": "/tmp", "IPYTHONDIR": _IPYTHON, **more}
