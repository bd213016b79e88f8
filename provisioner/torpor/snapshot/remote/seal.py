"""How chunks and manifests are closed before they leave this machine, and opened after.

With a master key each upload has a random key of its own, wrapped with the master key. From it come
by HKDF: the key of the manifest, the key of the chunks' names, and for each attempt to send, after a
random salt, a key for chunks. So one key never meets a nonce twice, also where an upload is resumed
from files that have changed, or by another zstd. A closed chunk is ``salt (16), AES-256-GCM`` with
its place as nonce; its place, as data that goes with it, names the snapshot, the upload, the file, and
of how many chunks of which size it is. So nothing can be moved, cut or put in from elsewhere.

Without a key the same is only checked against accidents.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

from torpor.snapshot.errors import SnapshotUnusable
from torpor.snapshot.remote.extra import stores_extra
from torpor.snapshot.remote.header import FORMAT, Header
from torpor.snapshot.remote.keys import MasterKey

with stores_extra():
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_KEY_BYTES = 32
_SALT_BYTES = 16
_NONCE_BYTES = 12
_MARK_BYTES = 16


@dataclass(frozen=True, slots=True)
class Place:
    """Where a chunk belongs: the ``index``-th of ``total`` of the ``file_number``-th file by name."""

    file: str
    file_number: int
    index: int
    total: int
    size_bytes: int


class Seal(Protocol):
    """Closes and opens for one upload. What opens raises ValueError where it was tampered with."""

    def mark(self, place: Place, digest: bytes) -> str:
        """Give the hex digits that tell whether a chunk is the one that belongs to ``place``."""

    def content(self, manifest: bytes) -> str:
        """Give the hex digits that tell whether an upload is one of ``manifest``."""

    def close_chunk(self, raw: bytes, place: Place) -> bytes: ...

    def open_chunk(self, closed: bytes, place: Place) -> bytes: ...

    def close_manifest(self, raw: bytes, head: bytes) -> bytes: ...

    def open_manifest(self, closed: bytes, head: bytes) -> bytes: ...


class PlainSeal:
    """No key: nothing is hidden; what was changed by accident is found."""

    def mark(self, place: Place, digest: bytes) -> str:
        return hashlib.sha256(_place_bytes(place) + digest).digest()[:_MARK_BYTES].hex()

    def content(self, manifest: bytes) -> str:
        return hashlib.sha256(manifest).hexdigest()

    def close_chunk(self, raw: bytes, place: Place) -> bytes:
        return raw

    def open_chunk(self, closed: bytes, place: Place) -> bytes:
        return closed

    def close_manifest(self, raw: bytes, head: bytes) -> bytes:
        return hashlib.sha256(head + raw).digest() + raw

    def open_manifest(self, closed: bytes, head: bytes) -> bytes:
        if hashlib.sha256(head + closed[32:]).digest() != closed[:32]:
            raise ValueError("its sum is another")
        return closed[32:]


class GcmSeal:
    """One upload's key, for one attempt to send it: each place is closed at most once."""

    def __init__(self, data_key: bytes, header: Header) -> None:
        self._data_key = data_key
        self._of = _identity(header)
        self._names = _derived(data_key, b"names")
        self._manifest = AESGCM(_derived(data_key, b"manifest"))
        self._salt = os.urandom(_SALT_BYTES)
        self._chunks = lru_cache(16)(self._chunk_key)

    def mark(self, place: Place, digest: bytes) -> str:
        told = b"mark" + self._told(place) + digest
        return hmac.digest(self._names, told, hashlib.sha256)[:_MARK_BYTES].hex()

    def content(self, manifest: bytes) -> str:
        told = b"content" + hashlib.sha256(manifest).digest()
        return hmac.digest(self._names, told, hashlib.sha256).hex()

    def close_chunk(self, raw: bytes, place: Place) -> bytes:
        key = self._chunks(self._salt)
        return self._salt + key.encrypt(_nonce(place), raw, self._told(place))

    def open_chunk(self, closed: bytes, place: Place) -> bytes:
        salt = closed[:_SALT_BYTES]
        return _opened(self._chunks(salt), _nonce(place), closed[_SALT_BYTES:], self._told(place))

    def close_manifest(self, raw: bytes, head: bytes) -> bytes:
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._manifest.encrypt(nonce, raw, head)

    def open_manifest(self, closed: bytes, head: bytes) -> bytes:
        return _opened(self._manifest, closed[:_NONCE_BYTES], closed[_NONCE_BYTES:], head)

    def _chunk_key(self, salt: bytes) -> AESGCM:
        return AESGCM(_derived(self._data_key, b"chunks", salt))

    def _told(self, place: Place) -> bytes:
        return self._of + _place_bytes(place)


def new_seal(header: Header, key: MasterKey | None) -> tuple[Header, Seal]:
    """Give a seal for a new upload, and ``header`` with what opens it again."""
    if key is None:
        return header, PlainSeal()
    data_key, salt = os.urandom(_KEY_BYTES), os.urandom(_KEY_BYTES)
    header = replace(header, key_id=key.key_id, salt=salt.hex())
    # What a salt is used for once needs no nonce of its own.
    wrapped = _wrapping(key, salt).encrypt(bytes(_NONCE_BYTES), data_key, _identity(header))
    return replace(header, wrapped=wrapped.hex()), GcmSeal(data_key, header)


def seal_of(header: Header, key: MasterKey | None) -> Seal:
    """Give the seal that ``new_seal`` made.

    Raises SnapshotUnusable: sealed with another key, with one where there is none now, or with none
    where there is one; or the wrapped key was tampered with.
    """
    name = f"generation {header.generation} of kernel {header.kernel_id} in the store"
    if key is None:
        if header.key_id:
            raise SnapshotUnusable(
                f"{name} is sealed with the key {header.key_id}, and there is no key here",
                hint="set key_file or key_command to where that key is",
            )
        return PlainSeal()
    if not header.key_id:
        raise SnapshotUnusable(
            f"{name} is not sealed, and this store has a key: anybody could have put it there",
            hint="if you know that it is yours, fetch it with no key configured",
        )
    if header.key_id != key.key_id:
        raise SnapshotUnusable(
            f"{name} is sealed with the key {header.key_id}, and the key here is {key.key_id}",
            hint="set key_file or key_command to where the other key is",
        )
    wrapped = bytes.fromhex(header.wrapped)
    wrapping = _wrapping(key, bytes.fromhex(header.salt))
    try:
        data_key = _opened(wrapping, bytes(_NONCE_BYTES), wrapped, _identity(header))
    except ValueError as exc:
        raise SnapshotUnusable(
            f"the header of {name} is damaged: {exc}", hint="drop it there, and push it again"
        ) from exc
    return GcmSeal(data_key, header)


def _wrapping(key: MasterKey, salt: bytes) -> AESGCM:
    return AESGCM(_derived(key.raw, b"wrap", salt))


def _identity(header: Header) -> bytes:
    return json.dumps(
        [FORMAT, header.kernel_id, header.generation, header.upload, header.chunk_bytes]
    ).encode()


def _derived(key: bytes, use: bytes, salt: bytes | None = None) -> bytes:
    hkdf = HKDF(algorithm=SHA256(), length=_KEY_BYTES, salt=salt, info=b"torpor snapshot " + use)
    return hkdf.derive(key)


def _opened(key: AESGCM, nonce: bytes, closed: bytes, told: bytes) -> bytes:
    try:
        return key.decrypt(nonce, closed, told)
    except InvalidTag:
        raise ValueError("it is not what was sealed there") from None


def _nonce(place: Place) -> bytes:
    return place.file_number.to_bytes(4, "big") + place.index.to_bytes(8, "big")


def _place_bytes(place: Place) -> bytes:
    parts = [place.file, place.file_number, place.index, place.total, place.size_bytes]
    return json.dumps(parts).encode()
