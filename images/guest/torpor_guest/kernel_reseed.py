"""Renews what the copies of one process share and must not: every source of randomness that can be reached.

Runs in the user's Python. Only what is loaded is renewed; nothing large is imported for it. What was seeded
on purpose is renewed too where that cannot be told (``random``), and left where it can (``numpy``).

What no claim can make different, because it is spread over the memory or nobody can reach it:

* the hash seed of str and bytes, the order of sets that were filled; the same in Rust's hash maps;
* the address layout, the stack canaries and the pointer guard of the C library;
* ``id()`` of what exists, and the memory that the next objects will be given;
* generators inside of libraries that give no way to them: Rust's thread_rng, C++ engines (TensorFlow,
  Arrow), torch.Generator objects, BoringSSL (grpc), OpenSSL linked into other libraries without an API;
* the session ticket keys of an ``ssl.SSLContext`` for servers, and all other keys that exist already;
* ipykernel's signing key, its ``kernel.ident`` (a prefix of iopub topics and ``engine`` in the metadata of
  replies; nobody routes by it), the ids of its inner sockets, and debugpy's.

``rand()`` of the C library is equal in fresh processes too, and is left.
"""

from __future__ import annotations

import gc
import os
import sys
import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_SEED_BYTES = 64
_MERSENNE_BYTES = 624 * 4
_MULTICAST = 1 << 40  # of a node that is no network card's address
# The entropy that numpy takes from the system has 128 bits; a seed that somebody chose is shorter.
_CHOSEN_BITS = 64


def mapped_files() -> Iterator[str]:
    """Give the path of every mapping of this process that has one; the file may be gone."""
    with open("/proc/self/maps", "rb") as maps:
        for mapping in maps:
            fields = mapping.split(maxsplit=5)
            if len(fields) == 6 and fields[5].startswith(b"/"):
                yield os.fsdecode(fields[5].rstrip(b"\n").replace(b"\\012", b"\n"))


def function_in(path: str | None, name: str, mode: int = 0) -> Any:
    """Give a C function of a library, or of the process for None; None without ctypes or the function."""
    try:
        import ctypes
    except ImportError:
        return None
    return getattr(ctypes.CDLL(path, mode=mode | os.RTLD_NOW), name, None)


class Sources:
    """The generators of this process. ``record`` before the checkpoint, ``renew`` in each copy."""

    def __init__(self) -> None:
        self._recorded = False
        self._randoms: dict[int, Callable[[], Any]] = {}
        # numpy's cannot be referenced weakly: those that were there at the checkpoint stay
        self._bits: dict[int, Any] = {}
        self._states: dict[int, Any] = {}
        self._rand_adds: list[Any] = []
        self._sqlite_randomness: Any = None
        self._renewals = {
            "random": self._random,
            "numpy": self._numpy,
            "openssl": self._openssl,
            "cryptography": _cryptography,
            "sqlite3": self._sqlite3,
            "tempfile": _tempfile,
            "multiprocessing": _multiprocessing,
            "uuid": _uuid,
            "torch": _torch,
        }

    def record(self) -> None:
        """Find all generators, and renew them once so that what cannot be renewed is known now."""
        self._find_objects()
        self._find_functions()
        self._recorded = True
        self._rehearse()
        history = _history(_kernel())
        if history is not None:
            history.end_session()  # the claim then has only the new one to write

    def renew(self) -> list[str]:
        """Renew everything and give the names. Raises RuntimeError, after which copies may be alike."""
        if not self._recorded:
            self.record()
        done = self._rehearse()
        return [*done, "ipykernel"] if _named("ipykernel", _ipykernel) else done

    def settle(self) -> None:
        """Tell IPython where this process is now and which notebook it belongs to."""
        _named("ipykernel", _settle)

    def _rehearse(self) -> list[str]:
        return [name for name, renew in self._renewals.items() if _named(name, renew)]

    def _find_objects(self) -> None:
        plain = getattr(sys.modules.get("random"), "Random", ())
        system = getattr(sys.modules.get("random"), "SystemRandom", ())
        numpy = sys.modules.get("numpy.random")
        bits = getattr(numpy, "BitGenerator", ())
        states = getattr(numpy, "RandomState", ())
        # the one behind numpy.random.seed needs nothing else
        shared = getattr(sys.modules.get("numpy.random.mtrand"), "_rand", None)
        apart = {id(shared), id(getattr(shared, "_bit_generator", None))}
        for thing in gc.get_objects():
            kind = type(thing)  # not isinstance: it would wake up proxies
            if issubclass(kind, plain) and not issubclass(kind, system):
                self._randoms[id(thing)] = weakref.ref(thing)
            elif issubclass(kind, (bits, states)) and id(thing) not in apart:
                self._keep_numpy(thing)

    def _keep_numpy(self, thing: Any) -> None:
        bits = getattr(thing, "_bit_generator", None)
        if _is_by_chance(thing if bits is None else bits):
            (self._bits if bits is None else self._states)[id(thing)] = thing

    def _find_functions(self) -> None:
        """Find the OpenSSL libraries and SQLite. Their state is the library's, not some object's."""
        libraries = {path for path in mapped_files() if "libcrypto" in path.rpartition("/")[2]}
        adds = [function_in(path, "RAND_add", os.RTLD_NOLOAD) for path in sorted(libraries)]
        self._rand_adds = [add for add in adds if add is not None]
        if self._rand_adds:
            import ctypes

            for add in self._rand_adds:
                add.argtypes, add.restype = (ctypes.c_char_p, ctypes.c_int, ctypes.c_double), None
        sqlite3 = sys.modules.get("_sqlite3")
        if sqlite3 is not None:
            path = getattr(sqlite3, "__file__", None)
            self._sqlite_randomness = function_in(path, "sqlite3_randomness")

    def _random(self) -> bool:
        for reference in self._randoms.values():
            generator = reference()
            if generator is not None:
                generator.seed()  # from the system: as much as its state holds
        return "random" in sys.modules

    def _numpy(self) -> bool:
        numpy = sys.modules.get("numpy")
        random = sys.modules.get("numpy.random")
        if numpy is None or not hasattr(random, "seed"):
            return False
        for bits in self._bits.values():
            # not ``state``: what it will spawn from is no part of that
            type(bits).__init__(bits)
        for states in self._states.values():
            state = states.get_state(legacy=False)
            states.set_state({**state, "has_gauss": 0, "gauss": 0.0})
        entropy = numpy.frombuffer(os.urandom(_MERSENNE_BYTES), dtype=numpy.uint32)
        random.seed(entropy)  # type: ignore[union-attr]
        return True

    def _openssl(self) -> bool:
        """Reseed the first generator of each OpenSSL; those of the threads follow it when next used."""
        ssl = sys.modules.get("_ssl")
        if ssl is not None:
            ssl.RAND_add(os.urandom(_SEED_BYTES), float(_SEED_BYTES))
        for add in self._rand_adds:
            add(os.urandom(_SEED_BYTES), _SEED_BYTES, float(_SEED_BYTES))
        return ssl is not None or bool(self._rand_adds)

    def _sqlite3(self) -> bool:
        """Let ``random()`` and ``randomblob()`` of SQL begin anew with what the system gives."""
        if self._sqlite_randomness is None:
            return False
        self._sqlite_randomness(0, None)
        return True


def _named(name: str, renew: Callable[[], bool]) -> bool:
    try:
        return renew()
    except Exception as error:
        raise RuntimeError(f"{name} cannot be renewed: {type(error).__name__}: {error}") from error


def _is_by_chance(bits: Any) -> bool:
    """Tell whether numpy seeded this generator itself; one with a chosen seed is to repeat itself."""
    seeds = getattr(bits, "seed_seq", None) or getattr(bits, "_seed_seq", None)
    entropy = getattr(seeds, "entropy", None)
    return isinstance(entropy, int) and entropy.bit_length() > _CHOSEN_BITS


def _cryptography() -> bool:
    """Reseed the OpenSSL that is inside of the wheels of cryptography: it is not the one of ``ssl``."""
    rust = sys.modules.get("cryptography.hazmat.bindings._rust")
    lib = getattr(getattr(rust, "_openssl", None), "lib", None)
    if not hasattr(lib, "RAND_add"):
        return False
    lib.RAND_add(os.urandom(_SEED_BYTES), _SEED_BYTES, float(_SEED_BYTES))  # type: ignore[union-attr]
    return True


def _tempfile() -> bool:
    tempfile = sys.modules.get("tempfile")
    if tempfile is None:
        return False
    tempfile._name_sequence = None  # type: ignore[attr-defined]
    return True


def _multiprocessing() -> bool:
    process = sys.modules.get("multiprocessing.process")
    if process is None:
        return False
    process.current_process().authkey = os.urandom(32)
    synchronize = sys.modules.get("multiprocessing.synchronize")
    if synchronize is not None:
        names = type(synchronize.SemLock._rand)
        synchronize.SemLock._rand = names()
    return True


def _uuid() -> bool:
    """Take uuid1 from the C library, which keeps node and clock sequence, and give it a node of chance."""
    uuid: Any = sys.modules.get("uuid")
    if uuid is None:
        return False
    uuid._generate_time_safe = None
    uuid._node = int.from_bytes(os.urandom(6), "big") | _MULTICAST
    for name in [name for name in vars(uuid) if name.startswith("_last_timestamp")]:
        setattr(uuid, name, None)  # 3.14 has one for each version
    return True


def _torch() -> bool:
    torch: Any = sys.modules.get("torch")
    generator = getattr(torch, "default_generator", None)
    if generator is None:
        return False
    generator.manual_seed(int.from_bytes(os.urandom(8), "big"))
    cuda = getattr(torch, "cuda", None)
    if cuda is not None and cuda.is_initialized():  # otherwise it seeds itself when it is
        cuda.manual_seed_all(int.from_bytes(os.urandom(8), "big"))
    return True


def _kernel() -> Any:
    """Give ipykernel's kernel if one runs in this process."""
    app = getattr(sys.modules.get("ipykernel.kernelapp"), "IPKernelApp", None)
    return getattr(getattr(app, "_instance", None), "kernel", None)


def _history(kernel: Any) -> Any:
    return getattr(getattr(kernel, "shell", None), "history_manager", None)


def _settle() -> bool:
    shell = getattr(_kernel(), "shell", None)
    if shell is None:
        return False
    shell.starting_dir = os.getcwd()
    shell.user_ns.pop("__session__", None)
    if "JPY_SESSION_NAME" in os.environ:
        shell.user_ns["__session__"] = os.environ["JPY_SESSION_NAME"]
    history = getattr(shell, "history_manager", None)
    if history is not None:
        history.dir_hist[:] = [os.getcwd()]
    return True


def _ipykernel() -> bool:
    """Give the kernel a session of its own, and IPython's history one that begins now."""
    kernel = _kernel()
    if kernel is None:
        return False
    kernel.session.session = os.urandom(16).hex()  # its bytes follow
    kernel.session.message_count = 0
    history = _history(kernel)
    if history is not None:
        # a row lost with the machine is no loss, and waiting for the disk is most of a claim
        before = history.db.execute("PRAGMA synchronous").fetchone()[0] if history.enabled else None
        if before is not None:
            history.db.execute("PRAGMA synchronous = OFF")
        history.reset()
        if before is not None:
            history.db.execute(f"PRAGMA synchronous = {int(before)}")
    return True
