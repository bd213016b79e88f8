"""What the host wants from the guest, parsed from boot.json and from the ``start`` request.

Plain classes instead of dataclasses, and the C scanner instead of ``json``: this module runs before
the kernel is spawned, and in a sandbox those two imports cost 50 ms of everybody's cold start.

::

    {"version": 1, "key": str, "start": StartParams | null, "stderr_tail_bytes": int,
     "buffer_bytes": int, "golden": bool}
    StartParams = {"argv": [str], "env": {str: str}, "cwd": "/abs", "start_timeout_s": number,
                   "kernel_name": str}
"""

from torpor_guest.lean_json import loads

VERSION = 1


class BootError(ValueError):
    """boot.json or a StartParams is not what the contract says; the message names the field."""


class StartParams:
    """One way to start a kernel: argv (may hold ``{connection_file}``), its whole env, cwd."""

    __slots__ = ("argv", "cwd", "env", "kernel_name", "start_timeout_s")

    def __init__(
        self,
        argv: tuple[str, ...],
        env: dict[str, str],
        cwd: str,
        start_timeout_s: float,
        kernel_name: str,
    ) -> None:
        self.argv = argv
        self.env = env
        self.cwd = cwd
        self.start_timeout_s = start_timeout_s
        self.kernel_name = kernel_name


class Boot:
    """The parsed boot.json; ``key`` signs the private connection and is never logged.

    ``golden``: this sandbox will be checkpointed, and its clones claimed (see ``golden``).
    """

    __slots__ = ("buffer_bytes", "golden", "key", "start", "stderr_tail_bytes")

    def __init__(
        self,
        key: str,
        start: StartParams | None,
        stderr_tail_bytes: int,
        buffer_bytes: int,
        golden: bool = False,
    ) -> None:
        self.key = key
        self.start = start
        self.stderr_tail_bytes = stderr_tail_bytes
        self.buffer_bytes = buffer_bytes
        self.golden = golden


def parse_boot(text: str) -> Boot:
    """Give the boot order in ``text``.

    Raises:
        BootError: not JSON, another version, or a field of the wrong type.
    """
    try:
        body = loads(text)
    except ValueError as exc:
        raise BootError(f"boot.json is not JSON: {exc}") from exc
    if not isinstance(body, dict):
        raise BootError("boot.json is not a JSON object")
    if body.get("version") != VERSION:
        raise BootError(f"boot.json has version {body.get('version')!r}, not {VERSION}")
    key = body.get("key")
    if not isinstance(key, str) or not key.isascii():
        raise BootError("key is not an ASCII string")
    start = body.get("start")
    return Boot(
        key,
        None if start is None else parse_start(start),
        _positive(body, "stderr_tail_bytes", 8192),
        _positive(body, "buffer_bytes", 268435456),
        body.get("golden") is True,
    )


def parse_start(body: object) -> StartParams:
    """Give the StartParams in a decoded JSON value.

    Raises:
        BootError: a field is missing, of the wrong type, or cannot be passed to exec.
    """
    if not isinstance(body, dict):
        raise BootError("start is not an object")
    argv, env, cwd = body.get("argv"), body.get("env"), body.get("cwd")
    if not isinstance(argv, list) or not argv or not all(_is_word(word) for word in argv):
        raise BootError("argv is not a list of at least one string without NUL")
    if not argv[0]:
        raise BootError("argv[0] is empty")
    if not isinstance(env, dict) or not all(
        _is_word(name) and name and "=" not in name and _is_word(value)
        for name, value in env.items()
    ):
        raise BootError("env is not an object of names to strings without NUL")
    if not _is_word(cwd) or not isinstance(cwd, str) or not cwd.startswith("/"):
        raise BootError("cwd is not an absolute path")
    timeout_s = body.get("start_timeout_s", 30)
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not timeout_s > 0:
        raise BootError("start_timeout_s is not a positive number")
    kernel_name = body.get("kernel_name", "")
    if not isinstance(kernel_name, str):
        raise BootError("kernel_name is not a string")
    return StartParams(tuple(argv), dict(env), cwd, float(timeout_s), kernel_name)


def _is_word(value: object) -> bool:
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def _positive(body: dict[str, object], name: str, default: int) -> int:
    value = body.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise BootError(f"{name} is not a positive integer")
    return value
