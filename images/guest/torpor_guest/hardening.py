"""Keep user code, which runs under the same uid, out of this process.

``/proc/1/fd/0`` would be a second end of the link, and ``/proc/1/mem`` the link's whole state. A
process that is not dumpable refuses both to its equals, in Linux and in gVisor. ``_ctypes`` alone
is used because the ``ctypes`` package takes 14 ms to import in a sandbox.
"""

import sys

_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36


_PR_CAPBSET_DROP = 24
_CAP_SETPCAP, _CAP_SYS_ADMIN = 8, 21


def harden(*, reap_orphans: bool, alone_with_rights: bool = False) -> None:
    """Make this process undumpable and, if asked, the parent of its orphaned descendants.

    ``alone_with_rights``: what it may do more than others (mount), no program it starts may.

    Raises:
        OSError: the system refused, or there is no way to ask it.
    """
    _prctl(_PR_SET_DUMPABLE, 0)
    if reap_orphans:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    if alone_with_rights:
        for capability in (_CAP_SYS_ADMIN, _CAP_SETPCAP):
            _prctl(_PR_CAPBSET_DROP, capability)


def _prctl(option: int, value: int) -> None:
    try:
        import _ctypes

        address = _ctypes.dlsym(_ctypes.dlopen(None, 0), "prctl")  # type: ignore
        answer = _ctypes.call_function(address, (option, value, 0, 0, 0))
    except (ImportError, AttributeError):
        import ctypes

        answer = ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
    if answer != 0:
        raise OSError(f"prctl({option}, {value}) was refused on {sys.platform}")
