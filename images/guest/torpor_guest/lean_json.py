"""JSON by the C parts of ``json`` alone: the package itself compiles regular expressions, 25 ms in a sandbox."""

try:
    from _json import encode_basestring_ascii, make_encoder, make_scanner
except ImportError:  # not CPython: slower, the same
    make_encoder = make_scanner = None  # type: ignore[assignment, misc, unused-ignore]


class _Scan:
    """The attributes that the C scanner reads; values are those of ``json.loads``."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float

    def __init__(self) -> None:
        self.memo: dict[str, str] = {}


def loads(text: str | bytes) -> object:
    """Give the value in ``text``, as ``json.loads``.

    Raises:
        ValueError: not JSON, not UTF-8, or nested too deeply.
    """
    if isinstance(text, bytes):
        text = text.decode()
    text = text.strip(" \t\n\r")
    if make_scanner is None:
        import json

        try:
            value: object = json.loads(text)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        return value
    try:
        value, end = make_scanner(_Scan())(text, 0)  # type: ignore[arg-type, unused-ignore]
    except StopIteration as exc:
        raise ValueError(f"no JSON value at {exc.value}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if end != len(text):
        raise ValueError(f"more than one JSON value, the next at {end}")
    return value


def dumps(value: object) -> bytes:
    """Give ``value`` (of the types that ``json.loads`` gives) as ASCII JSON."""
    if make_encoder is None:
        import json

        return json.dumps(value).encode()
    encoder = make_encoder({}, _refuse, encode_basestring_ascii, None, ":", ",", False, False, True)
    return "".join(encoder(value, 0)).encode()


def _refuse(value: object) -> object:
    raise TypeError(f"{type(value).__name__} has no JSON form")
