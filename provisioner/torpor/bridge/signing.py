"""Message signatures of the Jupyter protocol, and the memory that refuses a repeated one.

A signature is the lower-case hex HMAC of the four JSON parts (header, parent, metadata, content),
in this order; an empty key means "unsigned" and then signatures are neither made nor looked at
(https://jupyter-client.readthedocs.io/en/stable/messaging.html#wire-protocol).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from torpor.errors import ConfigError

Part = bytes | bytearray | memoryview
_HASHES = frozenset({"md5", "sha1", "sha224", "sha256", "sha384", "sha512"})


class Signer:
    """Signs and verifies with one key; stateless, so one instance serves all channels."""

    __slots__ = ("_inner", "_outer", "enabled")

    def __init__(self, key: bytes, scheme: str = "hmac-sha256") -> None:
        """Prepare the two half-finished hashes of HMAC (RFC 2104), so a message costs two copies.

        ``hmac.HMAC.copy`` is twice as slow, and this runs twice per relayed message.

        Raises:
            ConfigError: ``scheme`` is not ``hmac-`` and a hash that every Python has.
        """
        prefix, _, name = scheme.partition("-")
        if prefix != "hmac" or name not in _HASHES:
            raise ConfigError(
                f"signature scheme {scheme!r} is not supported",
                hint="use hmac-sha256, or leave the key empty for unsigned messages",
            )
        block_bytes = hashlib.new(name).block_size
        if len(key) > block_bytes:
            key_block = hashlib.new(name, key).digest().ljust(block_bytes, b"\0")
        else:
            key_block = key.ljust(block_bytes, b"\0")
        self._inner = hashlib.new(name, bytes(byte ^ 0x36 for byte in key_block))
        self._outer = hashlib.new(name, bytes(byte ^ 0x5C for byte in key_block))
        self.enabled = bool(key)

    def sign(self, body: Sequence[Part]) -> bytes:
        """Give the hex signature of ``body`` (the four JSON parts), or ``b""`` when unsigned."""
        if not self.enabled:
            return b""
        inner = self._inner.copy()
        for part in body:
            inner.update(part)
        outer = self._outer.copy()
        outer.update(inner.digest())
        return outer.hexdigest().encode()

    def verify(self, signature: bytes, body: Sequence[Part]) -> bool:
        """Say, in constant time, whether ``signature`` is right (always, when unsigned)."""
        return not self.enabled or hmac.compare_digest(signature, self.sign(body))


class SeenSignatures:
    """Remembers the last accepted signatures, at least ``remembered`` and at most twice as many.

    jupyter_client keeps 65,536 per session and every kernel refuses what it has seen. The bridge
    needs its own memory because a kernel forgets when it is restarted, while the client's key and
    the endpoints stay: without it, whoever recorded an ``execute_request`` could run it again in
    the next kernel process. Two sets in turn, so that forgetting costs nothing per message.
    """

    __slots__ = ("_new", "_old", "_remembered")

    def __init__(self, remembered: int = 32_768) -> None:
        self._remembered = remembered
        self._new: set[bytes] = set()
        self._old: set[bytes] = set()

    def first_time(self, signature: bytes) -> bool:
        """Record a *verified* signature (others would let anybody push out the real ones)."""
        short = signature[:32]
        if short in self._new or short in self._old:
            return False
        if len(self._new) >= self._remembered:
            self._old, self._new = self._new, set()
        self._new.add(short)
        return True
