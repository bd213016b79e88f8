"""HMAC-SHA256 of a Jupyter message, without OpenSSL: ``hmac`` would load it for 10 ms and 4 MiB."""

from __future__ import annotations

TYPE_CHECKING = False  # as mypy knows it; typing itself takes 20 ms to import
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any


_BLOCK_BYTES = 64


def _sha256(first: bytes) -> Any:
    try:
        from _sha2 import sha256  # type: ignore[import-not-found, unused-ignore]  # 3.12 and later
    except ImportError:
        try:
            from _sha256 import sha256  # type: ignore[import-not-found, unused-ignore]
        except ImportError:
            from hashlib import sha256
    return sha256(first)


def sign(key: bytes, parts: Iterable[bytes | bytearray | memoryview]) -> bytes:
    """Give the hex signature over ``parts``, or nothing when the key is empty (as Jupyter does)."""
    if not key:
        return b""
    if len(key) > _BLOCK_BYTES:
        key = _sha256(key).digest()
    block = key.ljust(_BLOCK_BYTES, b"\0")
    inner = _sha256(bytes(byte ^ 0x36 for byte in block))
    for part in parts:
        inner.update(part)
    outer = _sha256(bytes(byte ^ 0x5C for byte in block) + inner.digest())
    return bytes(outer.hexdigest(), "ascii")
